"""The selection as a file, and catalog files: any table that astropy reads, with a user's own columns."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.archive.catalog import read_columns as read_votable_columns
from builder.archive.catalog import write_votable
from builder.archive.values import Found, normalise
from builder.dataset.describe import with_descriptions
from builder.files import write_whole
from builder.model.columns import CATALOG
from builder.model.errors import CatalogError, SettingError
from builder.model.ids import DetectionId
from builder.model.own import own_columns, said_of

_VOTABLE = (".vot", ".xml", ".votable")
_HDF5 = (".hdf5", ".h5", ".hdf")
_TABLES = {".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv", ".csv": "ascii.csv"}
"""Endings of what astropy reads here, and its names for the formats."""


def check_ending(path: Path) -> None:
    """Refuse the name of a file to write in another format with SettingError."""
    if path.suffix not in (*_VOTABLE, *_HDF5, ".parquet"):
        raise SettingError(f"{path}: a catalog file that is written ends in .vot, .parquet or .hdf5")


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
    own = own_columns(catalog.schema)
    with write_whole(path) as partial:
        if path.suffix in _VOTABLE:
            partial.write_bytes(write_votable(catalog.to_pylist(), own))
        elif path.suffix in _HDF5:
            from builder.dataset.hdf5 import HDF5Writer

            with HDF5Writer(partial, columns=(*CATALOG, *own)) as writer:
                writer.append(catalog)
        else:
            pq.write_table(catalog.cast(with_descriptions(catalog.schema, (*CATALOG, *own))), partial)


def read_catalog(path: Path) -> pa.Table:
    """Read a catalog file, in any order of rows.

    Parameters
    ----------
    path : Path
        A VOTable, Parquet, HDF5 (this project's, or a table of astropy's), FITS, ECSV or CSV file, by its ending.

    Returns
    -------
    pyarrow.Table
        As `builder.archive.values.normalise` gives it: columns that the file lacks are null, but for the name and the
        ids, and its own columns are kept.

    Raises
    ------
    SettingError
        If the ending is of no such format.
    CatalogError
        If it cannot be read or names no detections.
    """
    try:
        return normalise(read_table(path), str(path), file=path.name, words=True)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(f"cannot read the catalog {path}: {error}") from error


def read_table(path: Path) -> dict[str, Found]:
    """Read the columns of a table, by the reader of the format that its ending names; errors as of `read_catalog`."""
    if not path.is_file():
        raise CatalogError(f"cannot read the table {path}: there is no such file")
    try:
        return _columns(path, f".{path.name.removesuffix('.gz').rpartition('.')[2].lower()}")
    except (OSError, KeyError, pa.ArrowException) as error:
        raise CatalogError(f"cannot read the table {path}: {error}") from error


def _columns(path: Path, ending: str) -> dict[str, Found]:
    """Read the columns of a file by the reader of its format."""
    if ending in _VOTABLE:
        found, overflow = read_votable_columns(path, str(path))
        if overflow:
            raise CatalogError(f"{path} was cut at the service's row limit; write it again")
        return found
    if ending == ".parquet":
        table = pq.read_table(path)
        return {field.name: Found(table[field.name], said_of(field)) for field in table.schema}
    if ending in _HDF5:
        from builder.dataset.hdf5 import read_datasets, table_path

        if (inside := table_path(path)) is None:
            return read_datasets(path, CATALOG)
        return _astropy_columns(path, "hdf5", inside)
    if ending in _TABLES:
        return _astropy_columns(path, _TABLES[ending])
    raise SettingError(f"{path}: a catalog file ends in .fits, .ecsv, .csv, .vot, .parquet or .hdf5")


def _astropy_columns(path: Path, form: str, inside: str | None = None) -> dict[str, Found]:
    """Read the columns of a table by astropy; what is masked is null."""
    from astropy.table import Table

    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            table = Table.read(path, format=form, **({"path": inside} if inside else {}))
    except Exception as error:  # each format's reader has kinds of its own
        raise CatalogError(f"cannot read the table {path}: {' '.join(str(error).split())[:200]}") from error
    return {name: _found(table[name]) for name in table.colnames}


def _found(column: Any) -> Found:
    """Take a column of astropy's as a reader found it."""
    if not hasattr(column, "dtype"):  # a time, a position: as it is written
        column = np.array([str(value) for value in column])
    values = np.ma.asarray(column)
    said = {"unit": _unit(column), "description": getattr(column, "description", None) or ""}
    masked = np.ma.getmaskarray(values)
    plain = values.data
    if plain.ndim > 1:
        return Found(pa.chunked_array([pa.array(plain.reshape(len(plain), -1).tolist())]), said)
    if plain.dtype.kind in "SUO":
        pairs = zip(plain.tolist(), masked.tolist(), strict=True)
        objects = [None if hidden else _plain(value) for value, hidden in pairs]
        try:
            array = pa.array(objects, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # of several kinds
            array = pa.array([None if each is None else str(each) for each in objects], pa.string())
        return Found(pa.chunked_array([array]), said)
    native = plain.astype(plain.dtype.newbyteorder("="))
    return Found(pa.chunked_array([pa.array(native, mask=masked)]), said)


def _unit(column: Any) -> str:
    """Write the unit of a column as FITS does, where FITS has it."""
    unit = getattr(column, "unit", None)
    try:
        return unit.to_string("fits") if unit else ""
    except ValueError:
        return str(unit)


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


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
