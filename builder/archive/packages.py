"""The detections that a selection comes to, and how they are divided into packages."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from builder.archive.matching import Match
from builder.archive.values import IDS
from builder.model.columns import SEVERAL_SOURCES
from builder.model.ids import DetectionId
from builder.model.records import Rejection
from builder.model.settings import RMFS, Recipe
from builder.model.text import one_line

PACKAGE_SIZE = 50
"""Detections in one request with all their files: known to work, about 55 MB of answer."""

PACKAGE_PRODUCTS = 3 * PACKAGE_SIZE
"""Files in one request, by which the length of its address is known to work, too."""

RMF_BYTES = 1_060_000
"""Size of an RMF file, which hardly compresses."""

DETECTION_BYTES = RMF_BYTES + 40_000
"""Size of the files of one detection."""


HARDLY = "hardly resolves energy: no spectrum of it is taken"
"""What is said of HRC."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where and when a catalog was asked for.

    Attributes
    ----------
    service, schema, version : str
        Address and schema of the tables, and the release's word in requests for files.
    retrieved : str
        Date, ISO 8601.
    missing : tuple of str
        Columns that the service does not have: null in every row.
    """

    service: str
    schema: str
    version: str
    retrieved: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Package:
    """Detections that are fetched, reduced and stored together.

    Attributes
    ----------
    start : int
        Catalog row of the first detection.
    detections : tuple of DetectionId
        The catalog rows from `start` on.
    rmf : str
        Whose RMF is asked for, one of `builder.model.settings.RMFS`.
    own : tuple of str
        Observations of which each detection's own RMF is asked for all the same, see `builder.store.energies`.
    """

    start: int
    detections: tuple[DetectionId, ...]
    rmf: str = RMFS[0]
    own: tuple[str, ...] = ()

    @property
    def shares(self) -> bool:
        """Whether the channel energies of one RMF serve an observation."""
        return self.rmf != RMFS[0]

    @property
    def observations(self) -> dict[str, list[DetectionId]]:
        """Detections of each observation interval, in their order; the catalog knows no cycles."""
        found: dict[str, list[DetectionId]] = {}
        for detection in self.detections:
            found.setdefault(detection.observation, []).append(detection)
        return found

    @property
    def first_rmfs(self) -> frozenset[DetectionId]:
        """Detections whose RMF is asked for at first; that of another only where one of these is of no use."""
        if not self.shares:
            return frozenset(self.detections)
        own = {".".join(name.split(".")[:2]) for name in self.own}  # both cycles come together
        return frozenset(
            detection
            for name, detections in self.observations.items()
            for detection in (detections if name in own else detections[:1])
        )

    def key(self, release: str, recipe: Recipe) -> str:
        """Return the key of the package in a store: it changes with all but its place in the catalog."""
        words = [release, recipe.key, *map(str, self.detections)]
        if self.shares:
            words += [self.rmf, *self.own]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Plan:
    """Detections and packages of a selection.

    Attributes
    ----------
    catalog : pyarrow.Table
        The detections to fetch, in the order of obsid, obi, region_id; columns of `builder.model.columns.CATALOG`, and
        own ones.
    packages : tuple of Package
        All rows of `catalog`, in its order.
    rejections : tuple of Rejection
        Rows of HRC, or that name no detection.
    duplicates : int
        Rows of the answer that repeat a detection (one detection under two sources); the first is kept.
    origin : Origin, optional
        Where the catalog was asked for, where it was.
    matches : tuple of Match
        The source of each position that was asked for.
    labels : dict of str to int
        What became of a file of labels, where there is one.
    """

    catalog: pa.Table
    packages: tuple[Package, ...]
    rejections: tuple[Rejection, ...]
    duplicates: int
    origin: Origin | None = None
    matches: tuple[Match, ...] = ()
    labels: dict[str, int] = field(default_factory=dict)


def plan(
    answer: pa.Table,
    size: int = PACKAGE_SIZE,
    limit: int | None = None,
    origin: Origin | None = None,
    rmf: str = RMFS[0],
) -> Plan:
    """Order the catalog's rows, drop repeated detections, take the first `limit` and divide them into packages."""
    # By every column in the end, so that the plan does not depend on the answer's order of rows.
    keys = dict.fromkeys((*IDS, "name", *answer.schema.names))
    ordered = answer.take(pc.sort_indices(answer, [(name, "ascending") for name in keys]))
    rows = ordered.select([*IDS, "instrument", "name", SEVERAL_SOURCES]).to_pylist()
    texts = [".".join("none" if row[name] is None else str(row[name]) for name in IDS) for row in rows]
    first = [index for index, text in enumerate(texts) if index == 0 or text != texts[index - 1]]
    duplicates = len(texts) - len(first)
    # Known already where the rows come of a mirror or a catalog file, which has one row of each detection.
    several = {text for text, row in zip(texts, rows, strict=True) if row[SEVERAL_SOURCES]}
    several |= {
        one
        for (one, row), (other, last) in pairwise(zip(texts, rows, strict=True))
        if one == other and row["name"] != last["name"]
    }
    detections, places, rejections = [], [], []
    for index in first[:limit]:
        detection, instrument = DetectionId.of(rows[index]), rows[index]["instrument"]
        if detection is None:
            words = "obsid has up to 6 digits, obi 3, region_id 4"
            rejections.append(Rejection(texts[index], "select", "no_detection", f"{texts[index]}: {words}"))
        elif not (instrument or "ACIS").upper().startswith("ACIS"):
            rejections.append(Rejection(detection, "select", "not_acis", f"{one_line(instrument)} {HARDLY}"))
        else:
            detections.append(detection)
            places.append(index)
    packages = divide(detections, size, rmf)
    catalog = ordered.take(pa.array(places, pa.int64()))
    flags = pa.array([texts[index] in several for index in places], pa.bool_())
    number = catalog.schema.get_field_index(SEVERAL_SOURCES)
    catalog = catalog.set_column(number, catalog.schema.field(number), flags)
    return Plan(catalog, packages, tuple(rejections), duplicates, origin)


def divide(detections: Sequence[DetectionId], size: int = PACKAGE_SIZE, rmf: str = RMFS[0]) -> tuple[Package, ...]:
    """Divide detections into packages, in their order.

    Of `size` detections each; where one RMF serves an observation, of whole observations, unless one is larger than a
    package, for as long as the files are no more than those of `size` detections with RMFs of their own.
    """
    if rmf == RMFS[0]:
        parts = [detections[start : start + size] for start in range(0, len(detections), size)]
    else:
        parts, most, products = [], 3 * size, 0
        longest = (most - 1) // 2  # PHA and ARF of each, and one RMF
        for _, group in itertools.groupby(detections, lambda detection: detection.observation):
            observation = tuple(group)
            for start in range(0, len(observation), longest):
                piece = observation[start : start + longest]
                added = 2 * len(piece) + 1
                if not parts or products + added > most:
                    parts.append(())
                    products = 0
                parts[-1] = (*parts[-1], *piece)
                products += added
    starts = itertools.accumulate((len(part) for part in parts), initial=0)
    return tuple(Package(start, tuple(part), rmf) for start, part in zip(starts, parts, strict=False))
