"""The detections that a selection comes to, and how they are divided into packages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from builder.archive.catalog import IDS, SCHEMA
from builder.model.errors import CatalogError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import Rejection
from builder.model.settings import Recipe

PACKAGE_SIZE = 50
"""Detections in one request: known to work, about 55 MB of answer."""

DETECTION_BYTES = 1_100_000
"""Size of the files of one detection, nearly all of it the RMF, which hardly compresses."""


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
        The detections to fetch, in the order of obsid, obi, region_id; columns of `builder.model.columns.CATALOG`.
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


def plan(answer: pa.Table, size: int = PACKAGE_SIZE, limit: int | None = None) -> Plan:
    """Order the catalog's rows, drop repeated detections, take the first `limit` and divide them into packages.

    Raises
    ------
    CatalogError
        If a row does not name a detection.
    """
    # By every column in the end, so that the plan does not depend on the answer's order of rows.
    keys = dict.fromkeys((*IDS, "name", *SCHEMA.names))
    ordered = answer.take(pc.sort_indices(answer, [(name, "ascending") for name in keys]))
    ids = [_detection(key) for key in zip(*(ordered[name].to_pylist() for name in IDS), strict=True)]
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
