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
import pyarrow.compute as pc

from builder.archive.votable import StreamError, VotableReader
from builder.archive.votable import write_votable as write
from builder.model.columns import ASKED, CATALOG, Column, arrow_schema
from builder.model.errors import CatalogError, QueryError
from builder.model.text import text_of

SCHEMA = arrow_schema(CATALOG)
IDS = ("obsid", "obi", "region_id")
"""Columns that name a detection."""

ALL = frozenset(column.name for column in ASKED)
"""Columns that an answer has where the service has all of them."""

NAMES = ("name", *IDS)
"""Columns that every catalog must have."""

VOTABLE_TAG = rb"(?:[\w.-]+:)?VOTABLE\b"
"""Pattern of the root element's name, which may have a prefix for its namespace."""

_FLAGS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
"""Booleans as VOTable writes them, also where a service sends them as text."""


def read_votable(source: bytes | Path, origin: str, *, needed: Collection[str] = ALL) -> tuple[pa.Table, bool]:
    """Read the catalog's answer.

    Parameters
    ----------
    source : bytes or Path
        A VOTable.
    origin : str
        Where it came from, for messages.
    needed : collection of str
        Columns that it must have; others that it lacks are null.

    Returns
    -------
    catalog : pyarrow.Table
        Columns of `builder.model.columns.CATALOG`, in the answer's order of rows.
    overflow : bool
        The service cut the answer at its row limit.

    Raises
    ------
    CatalogError
        It is no VOTable, is cut short or lacks a needed column; QueryError if it reports an error.
    OSError
        The file cannot be read.
    """
    table, overflow = read_texts(source, origin)
    arrays = []
    for column in CATALOG:
        if column.name not in table.column_names:
            if column.name in {*needed, *NAMES}:
                raise CatalogError(f"{origin} has no column {column.name}")
            arrays.append(pa.nulls(len(table), column.full_type))
            continue
        try:
            arrays.append(_typed(table[column.name], column))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise CatalogError(f"{origin}: column {column.name} cannot be read: {error}") from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA), overflow


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
                return _read_binary(file), reader.overflow
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
    return reader.table, reader.overflow


def _read_binary(file: IO[bytes]) -> pa.Table:
    """Read the first table of a VOTable whose rows are no text, as text; ValueError if it cannot be read."""
    from astropy.io import votable

    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            table = votable.parse(file, verify="ignore").get_first_table()
    except Exception as error:  # astropy raises ExpatError, ValueError, IndexError and its own kinds
        raise ValueError(str(error)) from error
    columns = {}
    for field in table.fields:
        values = np.ma.asarray(table.array[field.ID])
        values = values[:, 0] if values.shape[1:] == (1,) else values
        hidden = np.ma.getmaskarray(values).reshape(len(values), -1).all(axis=1)
        columns[field.name.lower()] = pa.array(
            [None if masked else str(value) for value, masked in zip(values, np.atleast_1d(hidden), strict=True)],
            pa.string(),
        )
    return pa.table(columns)


def _typed(texts: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    """Turn a column of text into what it is declared to be; what is empty or not finite is null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    filled = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    if column.dtype == "string":
        return filled
    if column.dtype == "bool":
        return pa.chunked_array([[None if text is None else _flag(text) for text in filled.to_pylist()]], pa.bool_())
    whole = column.dtype.startswith("int")
    try:
        values = pc.cast(filled, pa.int64() if whole else pa.float64())
    except pa.ArrowInvalid:  # an integer as 8.0, or a number as +Inf
        values = pa.chunked_array(
            [[None if text is None else float(text) for text in filled.to_pylist()]], pa.float64()
        )
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64()))
    return values.cast(column.full_type)


def _flag(text: str) -> bool | None:
    if text == "?":  # VOTable's null
        return None
    if text.lower() not in _FLAGS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _FLAGS[text.lower()]


def from_rows(rows: Iterable[dict[str, object]]) -> pa.Table:
    """Return rows as dicts to a catalog table; what a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def write_votable(rows: list[dict[str, object]]) -> bytes:
    """Make a VOTable of catalog rows, as the service would answer; the same rows give the same bytes.

    Parameters
    ----------
    rows : list of dict
        Values by column name; what a row lacks is null.
    """
    return write([column.name for column in CATALOG], rows)
