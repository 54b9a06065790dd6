"""The catalog's answers: VOTables to rows, and rows to packages."""

from __future__ import annotations

import hashlib
import io
import json
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

__all__ = ["PACKAGE_SIZE", "Package", "Plan", "count_of", "from_rows", "plan", "read_votable", "write_votable"]

PACKAGE_SIZE = 50
"""Detections in one request: known to work, about 55 MB of answer."""

DETECTION_BYTES = 1_100_000
"""Size of the files of one detection, nearly all of it the RMF, which hardly compresses."""

SCHEMA = arrow_schema(CATALOG)
_IDS = ("obsid", "obi", "region_id")
NAMES = ("name", *_IDS)
"""Columns that every catalog must have."""


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
    table, overflow = _table(content, origin)
    names = {name.lower(): name for name in table.dtype.names or ()}
    arrays = []
    for column in CATALOG:
        if column.name not in names:
            if whole or column.name in NAMES:
                raise CatalogError(f"{origin} has no column {column.name}")
            arrays.append(pa.nulls(len(table), column.full_type))
            continue
        try:
            arrays.append(_arrow(table[names[column.name]], column))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise CatalogError(f"{origin}: column {column.name} cannot be read: {error}") from error
    return pa.Table.from_arrays(arrays, schema=SCHEMA), overflow


def count_of(content: bytes, origin: str) -> int:
    """The number in a VOTable of one row and one column, the answer to ``COUNT(*)``; CatalogError if it is not that."""
    table, _ = _table(content, origin)
    try:
        return int(table[table.dtype.names[0]][0])
    except (IndexError, TypeError, ValueError, np.ma.MaskError) as error:
        raise CatalogError(f"{origin} did not answer a count: {error}") from error


def _table(content: bytes, origin: str) -> tuple[Any, bool]:
    """The first table of a VOTable as a masked record array, and whether it was cut at the row limit."""
    from astropy.io import votable

    if b"<VOTABLE" not in content[:4096]:
        words = " ".join(content[:200].decode("utf-8", "replace").split())
        raise CatalogError(f"{origin} is not a VOTable but: {words!r}" if words else f"{origin}: the answer is empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            document = votable.parse(io.BytesIO(content), verify="ignore")
        resource = document.resources[0]
        status = [info for info in resource.infos if info.name.upper() == "QUERY_STATUS"]
        if errors := [info for info in status if info.value.upper() == "ERROR"]:
            raise CatalogError(f"{origin}: the catalog says: {' '.join((errors[0].content or '').split())}")
        return resource.tables[0].array, any(info.value.upper() == "OVERFLOW" for info in status)
    except CatalogError:
        raise
    except Exception as error:  # astropy raises ExpatError, ValueError, IndexError and its own kinds
        raise CatalogError(f"{origin} is not a whole VOTable: {error}") from error


def _arrow(values: Any, column: Column) -> pa.Array:
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    if column.dtype == "string":
        texts = [
            None if hidden or not str(text) else str(text).strip() for text, hidden in zip(data, mask, strict=True)
        ]
        return pa.array(texts, pa.string())
    if data.dtype.kind == "O":  # numbers sent as text
        data = np.where(mask, "0", data).astype(np.float64)
    if data.dtype.kind == "f":
        mask = mask | ~np.isfinite(data)
    return pa.array(data, mask=mask).cast(column.full_type)


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
