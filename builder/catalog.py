"""The catalog's answers: VOTables to rows, and rows to packages."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.columns import CATALOG, Column, arrow_schema
from builder.errors import CatalogError, SettingError
from builder.records import DetectionId, Recipe, Rejection

__all__ = [
    "PACKAGE_SIZE",
    "VOTABLE_TAG",
    "Package",
    "Plan",
    "count_of",
    "from_rows",
    "plan",
    "read_votable",
    "write_votable",
]

PACKAGE_SIZE = 50
"""Detections in one request: known to work, about 55 MB of answer."""

DETECTION_BYTES = 1_100_000
"""Size of the files of one detection, nearly all of it the RMF, which hardly compresses."""

SCHEMA = arrow_schema(CATALOG)
_IDS = ("obsid", "obi", "region_id")
NAMES = ("name", *_IDS)
"""Columns that every catalog must have."""

VOTABLE_TAG = rb"(?:[\w.-]+:)?VOTABLE\b"
"""Pattern of the root element's name, which may have a prefix for its namespace."""

_FLAGS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
"""Booleans as VOTable writes them, also where a service sends them as text."""


@dataclass(frozen=True, slots=True)
class Package:
    """Detections that are fetched, reduced and stored together.

    Attributes
    ----------
    start : int
        Catalog row of the first detection.
    detections : tuple of DetectionId
        The catalog rows from `start` on.
    """

    start: int
    detections: tuple[DetectionId, ...]

    def key(self, release: str, recipe: Recipe) -> str:
        """What the package is stored under: it changes with the release, the recipe and any detection."""
        words = [release, recipe.key, *map(str, self.detections)]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a selection comes to.

    Attributes
    ----------
    catalog : pyarrow.Table
        The detections to fetch, in the order of obsid, obi, region_id; columns of `builder.columns.CATALOG`.
    packages : tuple of Package
        All rows of `catalog`, in its order.
    rejections : tuple of Rejection
        Detections that have no spectra to fetch.
    duplicates : int
        Rows of the answer that repeat a detection (one detection under two sources); the first is kept.
    """

    catalog: pa.Table
    packages: tuple[Package, ...]
    rejections: tuple[Rejection, ...]
    duplicates: int


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
        Columns of `builder.columns.CATALOG`, in the answer's order of rows.
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
    from builder.votable import write_votable as write

    return write([column.name for column in CATALOG], rows)


def plan(answer: pa.Table, size: int = PACKAGE_SIZE, limit: int | None = None) -> Plan:
    """Order the catalog's rows, drop repeated detections, take the first `limit` and divide them into packages.

    Raises
    ------
    CatalogError
        If a row does not name a detection.
    """
    # By every column in the end, so that the plan does not depend on the answer's order of rows.
    keys = dict.fromkeys((*_IDS, "name", *SCHEMA.names))
    ordered = answer.take(pc.sort_indices(answer, [(name, "ascending") for name in keys]))
    ids = [_detection(key) for key in zip(*(ordered[name].to_pylist() for name in _IDS), strict=True)]
    first = [index for index, key in enumerate(ids) if index == 0 or key != ids[index - 1]]
    duplicates = len(ids) - len(first)
    first = first[:limit]
    instruments = ordered["instrument"].to_pylist()
    fetchable = [index for index in first if (instruments[index] or "ACIS").upper().startswith("ACIS")]
    rejections = tuple(
        Rejection(ids[index], "select", "not_acis", f"{instruments[index]} has no spectra in the catalog")
        for index in sorted(set(first) - set(fetchable))
    )
    detections = [ids[index] for index in fetchable]
    packages = tuple(
        Package(start, tuple(detections[start : start + size])) for start in range(0, len(detections), size)
    )
    return Plan(ordered.take(pa.array(fetchable, pa.int64())), packages, rejections, duplicates)


def _detection(ids: tuple[int, int, int]) -> DetectionId:
    try:
        return DetectionId(*ids)
    except (TypeError, SettingError) as error:
        raise CatalogError(f"a row of the catalog names no detection: obsid, obi, region_id are {ids}") from error
