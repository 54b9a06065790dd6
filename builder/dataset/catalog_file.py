"""The selection as a file: VOTable, Parquet or HDF5, by the file's ending."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builder.archive.catalog import NAMES, SCHEMA, read_votable, write_votable
from builder.files import write_whole
from builder.model.columns import CATALOG
from builder.model.errors import CatalogError, SettingError
from builder.model.ids import DetectionId

_VOTABLE = (".vot", ".xml", ".votable")
_HDF5 = (".hdf5", ".h5", ".hdf")


def check_ending(path: Path) -> None:
    """Refuse a file name of another format with SettingError."""
    if path.suffix not in (*_VOTABLE, *_HDF5, ".parquet"):
        raise SettingError(f"{path}: a catalog file ends in .vot, .parquet or .hdf5")


def write_catalog(path: Path, catalog: pa.Table) -> None:
    """Write a catalog in the format of the file's ending.

    The HDF5 file has one dataset a column under its bare name.

    Raises
    ------
    SettingError
        If the ending is of no such format.
    OutputError
        If the file cannot be written; none is left half written.
    """
    check_ending(path)
    with write_whole(path) as partial:
        if path.suffix in _VOTABLE:
            partial.write_bytes(write_votable(catalog.to_pylist()))
        elif path.suffix in _HDF5:
            from builder.dataset.hdf5 import HDF5Writer

            with HDF5Writer(partial, columns=CATALOG) as writer:
                writer.append(catalog)
        else:
            pq.write_table(catalog, partial)


def read_catalog(path: Path) -> pa.Table:
    """Read a catalog file, in any order of rows; columns that it lacks are null, but for the name and the ids.

    Raises
    ------
    SettingError
        If the ending is of no such format.
    CatalogError
        If it cannot be read or names no detections.
    """
    check_ending(path)
    try:
        if path.suffix in _VOTABLE:
            table, overflow = read_votable(path, str(path), needed=NAMES)
            if overflow:
                raise CatalogError(f"{path} was cut at the service's row limit; write it again")
            return table
        if path.suffix in _HDF5:
            from builder.dataset.hdf5 import read_columns

            table = read_columns(path, CATALOG)
        else:
            table = pq.read_table(path)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(f"cannot read the catalog {path}: {error}") from error
    for name in NAMES:
        if name not in table.column_names:
            raise CatalogError(f"the catalog {path} has no column {name}")
    have = set(table.column_names)
    try:
        columns = [table[f.name].cast(f.type) if f.name in have else pa.nulls(len(table), f.type) for f in SCHEMA]
    except pa.ArrowException as error:
        raise CatalogError(f"the catalog {path} has a column of another type: {error}") from error
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read_detections(path: Path) -> frozenset[DetectionId]:
    """Read a file with one ``obsid.obi.region_id`` a line; empty lines and ``#`` comments are passed over.

    Raises
    ------
    SettingError
        If it cannot be read, holds none, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot read detections from {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            try:
                found.append(DetectionId.parse(text).catalog)
            except SettingError as error:
                raise SettingError(f"{path}, line {number}: {error}") from None
    if not found:
        raise SettingError(f"{path} holds no detections")
    return frozenset(found)
