"""Positions of one's own against the sources of a catalog, by their true separation."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from builder.model.sky import Position, separation

Row = Mapping[str, Any]
Source = tuple[str | None, float, float]
"""Name, right ascension and declination in deg."""


@dataclass(frozen=True, slots=True)
class Match:
    """The source that is nearest to a position.

    Attributes
    ----------
    source : Source, optional
        None where there is none within the radius.
    separation : float, optional
        Its distance in deg.
    others : int
        Further sources within the radius.
    detections : int
        Detections of the source that are selected.
    """

    position: Position
    source: Source | None = None
    separation: float | None = None
    others: int = 0
    detections: int = 0

    @property
    def label(self) -> str:
        """Name of the position, or its place."""
        return self.position.name or f"{self.position.ra:.5f} {self.position.dec:+.5f}"


def source_of(row: Row) -> Source | None:
    """Give the source of a catalog row; None where it has no position."""
    return None if None in (row["ra"], row["dec"]) else (row["name"], row["ra"], row["dec"])


def match_positions(positions: Sequence[Position], radius: float, sources: Iterable[Source]) -> list[Match]:
    """Find the nearest source of each position within a radius in deg; of equally near ones the first by name."""
    ordered = sorted(set(sources), key=lambda source: (source[2], source[0] or "", source[1]))
    decs = [source[2] for source in ordered]
    matches = []
    for position in positions:
        first = bisect_left(decs, position.dec - radius * (1 + 1e-9))  # a hair wider, against rounding
        last = bisect_right(decs, position.dec + radius * (1 + 1e-9))
        found = [
            (distance, source[0] or "", source)
            for source in ordered[first:last]
            if (distance := separation(position.ra, position.dec, *source[1:])) <= radius
        ]
        if found:
            distance, _, source = min(found)
            matches.append(Match(position, source, distance, len(found) - 1))
        else:
            matches.append(Match(position))
    return matches


def counted(matches: Iterable[Match], rows: Iterable[Row]) -> tuple[Match, ...]:
    """Say of each match how many of the selected rows are of its source."""
    numbers = Counter(source_of(row) for row in rows)
    return tuple(replace(match, detections=numbers[match.source] if match.source else 0) for match in matches)
