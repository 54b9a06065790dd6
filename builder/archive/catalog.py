"""The catalog's answers: VOTables to tables of rows."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from builder.model.columns import CATALOG, Column, arrow_schema
from builder.model.errors import CatalogError

SCHEMA = arrow_schema(CATALOG)
IDS = ("obsid", "obi", "region_id")
"""Columns that name a detection."""

NAMES = ("name", *IDS)
"""Columns that every catalog must have."""

VOTABLE_TAG = rb"(?:[\w.-]+:)?VOTABLE\b"
"""Pattern of the root element's name, which may have a prefix for its namespace."""

_FLAGS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
"""Booleans as VOTable writes them, also where a service sends them as text."""


def read_votable(content: bytes, origin: str, *, whole: bool = True) -> tuple[pa.Table, bool]:
    """Read the catalog's answer.

    Parameters
    ----------
    content : bytes
        A VOTable.
    origin : str
        Where it came from, for messages.
    whole : bool
        It must have every column; else those that it lacks are null.

    Returns
    -------
    catalog : pyarrow.Table
        Columns of `builder.model.columns.CATALOG`, in the answer's order of rows.
    overflow : bool
        The service cut the answer at its row limit.

    Raises
    ------
    CatalogError
        It is no VOTable, is cut short, reports an error or lacks a column.
    """
    columns, overflow = _columns(content, origin)
    arrays = []
    for column in CATALOG:
        if column.name not in columns:
            if whole or column.name in NAMES:
                raise CatalogError(f"{origin} has no column {column.name}")
            arrays.append(pa.nulls(len(columns["name"]), column.full_type))
            continue
        try:
            arrays.append(_arrow(columns[column.name], column))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise CatalogError(f"{origin}: column {column.name} cannot be read: {error}") from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA), overflow


def count_of(content: bytes, origin: str) -> int:
    """The number in a VOTable of one row and one column, the answer to ``COUNT(*)``; CatalogError if it is not that."""
    columns, _ = _columns(content, origin)
    try:
        return int(next(iter(columns.values()), [])[0])
    except (IndexError, TypeError, ValueError, np.ma.MaskError) as error:
        raise CatalogError(f"{origin} did not answer a count: {error}") from error


def _columns(content: bytes, origin: str) -> tuple[dict[str, Any], bool]:
    """The columns of the first table by name in lower case, masked arrays, and whether it was cut at the row limit."""
    from astropy.io import votable

    if not re.search(rb"<" + VOTABLE_TAG, content[:4096]):
        words = " ".join(content[:200].decode("utf-8", "replace").split())
        raise CatalogError(f"{origin} is not a VOTable but: {words!r}" if words else f"{origin}: the answer is empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            if _points_outside(content):
                raise CatalogError(f"{origin} has its rows at another address (STREAM href), which is not followed")
            document = votable.parse(io.BytesIO(content), verify="ignore")
        status = [info for info in document.iter_info() if info.name.upper() == "QUERY_STATUS"]
        if errors := [info for info in status if info.value.upper() == "ERROR"]:
            raise CatalogError(f"{origin}: the catalog says: {' '.join((errors[0].content or '').split())}")
        table = document.get_first_table()
        columns = {field.name.lower(): table.array[field.ID] for field in table.fields}
    except CatalogError:
        raise
    except Exception as error:  # astropy raises ExpatError, ValueError, IndexError and its own kinds
        raise CatalogError(f"{origin} is not a whole VOTable: {error}") from error
    scalars = {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in columns.items()}
    return scalars, any(info.value.upper() == "OVERFLOW" for info in status)


def _points_outside(content: bytes) -> bool:
    """Whether a STREAM has an address, which astropy would open, be it a file of this machine."""
    from astropy.utils.xml.iterparser import get_xml_iterator

    if not any(sign in content for sign in (b"STREAM", b"<!ENTITY", b"\0")):  # UTF-16 has the last
        return False  # and need not be read twice
    with get_xml_iterator(io.BytesIO(content)) as events:
        return any(start and tag == "STREAM" and "href" in data for start, tag, data, _ in events)


def _arrow(values: Any, column: Column) -> pa.Array:
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    if column.dtype == "string" or data.dtype.kind in "OU":
        texts = [None if hidden else str(text).strip() or None for text, hidden in zip(data, mask, strict=True)]
        if column.dtype == "string":
            return pa.array(texts, pa.string())
        read = _flag if column.dtype == "bool" else float
        data = np.array([math.nan if text is None else read(text) for text in texts], np.float64)
    if data.dtype.kind == "f":
        mask = mask | ~np.isfinite(data)
    return pa.array(data, mask=mask).cast(column.full_type)


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _FLAGS[text.lower()]


def from_rows(rows: Iterable[dict[str, object]]) -> pa.Table:
    """Rows as dicts to a catalog table; what a row lacks is null."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def write_votable(rows: list[dict[str, object]]) -> bytes:
    """A VOTable of catalog rows, as the service would answer; the same rows give the same bytes.

    Parameters
    ----------
    rows : list of dict
        Values by column name; what a row lacks is null.
    """
    from builder.archive.votable import write_votable as write

    return write([column.name for column in CATALOG], rows)
