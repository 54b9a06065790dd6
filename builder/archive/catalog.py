"""The catalog's answers: VOTables to tables of rows."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO
from xml.parsers.expat import ExpatError

import numpy as np
import pyarrow as pa

from builder.archive.values import SCHEMA, Found, normalise
from builder.archive.votable import KINDS, SCALAR, Field, StreamError, VotableReader
from builder.archive.votable import write_votable as write
from builder.model.column import Column
from builder.model.columns import ASKED, CATALOG
from builder.model.errors import CatalogError, QueryError
from builder.model.own import described
from builder.model.text import text_of

ALL = frozenset(column.name for column in ASKED)
"""Columns that an answer has where the service has all of them."""

VOTABLE_TAG = rb"(?:[\w.-]+:)?VOTABLE\b"
"""Pattern of the root element's name, which may have a prefix for its namespace."""


def read_votable(
    source: bytes | Path, origin: str, *, needed: Collection[str] = ALL, own: Collection[str] = ()
) -> tuple[pa.Table, bool]:
    """Read the catalog's answer.

    Parameters
    ----------
    source : bytes or Path
        A VOTable.
    origin : str
        Where it came from, for messages.
    needed : collection of str
        Columns that it must have; others that it lacks are null.
    own : collection of str
        Columns to take besides those of `builder.model.columns.CATALOG`.

    Returns
    -------
    catalog : pyarrow.Table
        As `builder.archive.values.normalise` gives it, in the answer's order of rows.
    overflow : bool
        The service cut the answer at its row limit.

    Raises
    ------
    CatalogError
        It is no VOTable, is cut short or lacks a needed column; QueryError if it reports an error.
    OSError
        The file cannot be read.
    """
    found, overflow = read_columns(source, origin)
    return normalise(found, origin, needed=needed, own=own), overflow


def read_columns(source: bytes | Path, origin: str) -> tuple[dict[str, Found], bool]:
    """Read the columns of a VOTable, and whether it was cut at the row limit; raises as `read_votable`."""
    table, fields, overflow = _read(source, origin)
    columns = {}
    for name, field in zip(table.column_names, fields, strict=True):
        said = {"unit": field.unit, "description": field.description, "ucd": field.ucd}
        kind = KINDS.get(field.datatype, pa.string())
        scalar = kind == pa.string() or field.arraysize in SCALAR
        columns[name] = Found(table[name], said, kind if scalar else pa.list_(kind))
    return columns, overflow


def count_of(source: bytes | Path, origin: str) -> int:
    """Read the number in a VOTable of one row and one column, the answer to ``COUNT(*)``; CatalogError otherwise."""
    table, _ = read_texts(source, origin)
    try:
        return int(table.column(0)[0].as_py())
    except (IndexError, TypeError, ValueError) as error:
        raise CatalogError(f"{origin} did not answer a count: {error}") from error


def read_texts(source: bytes | Path, origin: str) -> tuple[pa.Table, bool]:
    """Read the first table of a VOTable as text, names in lower case, and whether it was cut at the row limit.

    Raises
    ------
    CatalogError
        It is no VOTable or is cut short; QueryError if it reports an error.
    OSError
        The file cannot be read.
    """
    table, _, overflow = _read(source, origin)
    return table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), overflow


def _read(source: bytes | Path, origin: str) -> tuple[pa.Table, list[Field], bool]:
    """Read the first table of a VOTable, its fields, and whether it was cut."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        start = file.read(4096)
        if not re.search(rb"<" + VOTABLE_TAG, start):
            words = text_of(start)
            raise CatalogError(
                f"{origin} is not a VOTable but: {words!r}" if words else f"{origin}: the answer is empty"
            )
        file.seek(0)
        reader = VotableReader()
        try:
            reader.read(file)
            if reader.binary:
                file.seek(0)
                return _read_binary(file, reader.fields), reader.fields, reader.overflow
        except StreamError as error:
            raise CatalogError(
                f"{origin} has its rows at another address (STREAM href), which is not followed"
            ) from error
        except (ExpatError, ValueError, LookupError, MemoryError) as error:
            raise CatalogError(f"{origin} is not a whole VOTable: {error}") from error
    if reader.error is not None:
        raise QueryError(f"{origin}: the catalog says: {reader.error}")
    if reader.table is None:
        raise CatalogError(f"{origin} is not a whole VOTable: it has no table")
    return reader.table, reader.fields, reader.overflow


def _read_binary(file: IO[bytes], fields: list[Field]) -> pa.Table:
    """Read the first table of a VOTable whose rows are no text, as text; ValueError if it cannot be read."""
    from astropy.io import votable

    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            table = votable.parse(file, verify="ignore").get_first_table()
    except Exception as error:  # astropy raises ExpatError, ValueError, IndexError and its own kinds
        raise ValueError(str(error)) from error
    columns = {}
    for known, field in zip(fields, table.fields, strict=True):
        values = np.ma.asarray(table.array[field.ID])
        values = values[:, 0] if values.shape[1:] == (1,) else values
        hidden = np.ma.getmaskarray(values).reshape(len(values), -1).all(axis=1)
        columns[known.name] = pa.array(
            [None if masked else str(value) for value, masked in zip(values, np.atleast_1d(hidden), strict=True)],
            pa.string(),
        )
    return pa.table(columns)


def from_rows(rows: Iterable[dict[str, object]], own: tuple[Column, ...] = ()) -> pa.Table:
    """Return rows as dicts to a catalog table, with own columns; what a row lacks is null."""
    fields = [described(pa.field(column.name, column.full_type), column) for column in own]
    return pa.Table.from_pylist(list(rows), schema=pa.schema([*SCHEMA, *fields]))


def write_votable(rows: list[dict[str, object]], own: tuple[Column, ...] = ()) -> bytes:
    """Make a VOTable of catalog rows, as the service would answer; the same rows give the same bytes.

    Parameters
    ----------
    rows : list of dict
        Values by column name; what a row lacks is null.
    own : tuple of Column
        Columns besides those of `builder.model.columns.CATALOG`.
    """
    return write([column.name for column in (*CATALOG, *own)], rows, own)
