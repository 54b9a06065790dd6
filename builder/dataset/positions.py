"""Lists of positions: a user's own, and that of a prepared folder with the source of each."""

from __future__ import annotations

import csv
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from builder.archive.matching import Match
from builder.model.errors import SettingError
from builder.model.sky import Position, angle

_TABLES = (".csv", ".ecsv", ".fits", ".fit", ".vot", ".xml", ".votable", ".parquet", ".hdf5", ".h5")
"""Endings of files that astropy's `Table.read` reads."""

_RA, _DEC, _NAME = ("ra", "raj2000", "_raj2000"), ("dec", "dej2000", "_dej2000"), ("name", "main_id", "source", "id")
"""Names of the columns, in lower case; the first that is there is taken."""


def read_positions(path: Path) -> tuple[Position, ...]:
    """Read a list of positions.

    Parameters
    ----------
    path : Path
        A table that astropy reads, with columns ``ra`` and ``dec`` (numbers in the column's unit, deg if it has none,
        or text as `builder.model.sky.angle` reads it) and perhaps ``name``; or text with one ``RA DEC NAME`` a line,
        with blanks or commas between, in which the name may be missing and ``#`` begins a comment.

    Raises
    ------
    SettingError
        If it cannot be read, holds none, or one is not on the sky.
    """
    positions = []
    for place, ra, dec, name in _rows(path) if path.suffix.lower() in _TABLES else _lines(path):
        try:
            position = Position(_degrees(ra, hours=True) % 360, _degrees(dec), name)
            if not (math.isfinite(position.ra) and -90 <= position.dec <= 90):
                raise ValueError
        except ValueError:
            raise SettingError(f"{path}, {place}: {ra} {dec} is not a position, such as 05:35:17.3 -5.39") from None
        positions.append(position)
    if not positions:
        raise SettingError(f"{path} holds no positions")
    return tuple(positions)


def _degrees(value: object, *, hours: bool = False) -> float:
    return angle(value, hours=hours) if isinstance(value, str) else float(str(value))


def _lines(path: Path) -> Iterator[tuple[str, object, object, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot read positions from {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        words = [word.strip() for word in text.split(",", 2)] if "," in text else text.split(None, 2)
        if re.fullmatch(r"[+-]?[\d.]+(\s+[+-]?[\d.]+)+", "".join(words[2:])):
            raise SettingError(f"{path}, line {number}: write a sexagesimal position as 05:35:17.3 -05:23:28")
        if text:
            yield f"line {number}", words[0], words[1] if len(words) > 1 else "", " ".join(words[2:])


def _rows(path: Path) -> Iterator[tuple[str, object, object, str]]:
    from astropy import units
    from astropy.table import Table

    try:
        with warnings.catch_warnings(action="ignore"):  # what is odd but readable is no matter for the user
            table = Table.read(path)
            table.convert_bytestring_to_unicode()
    except Exception as error:  # astropy raises whatever the reader of the format does
        reason = str(error).partition("\n")[0]
        raise SettingError(f"cannot read positions from {path}: {reason}") from error
    names = {name.lower(): name for name in reversed(table.colnames)}
    found = [next((names[name] for name in choice if name in names), None) for choice in (_RA, _DEC, _NAME)]
    if None in found[:2]:
        raise SettingError(f"{path} has no columns ra and dec; it has {', '.join(table.colnames[:8])}")
    columns: list[list[Any]] = []
    for name in found[:2]:
        column = table[name]
        try:
            factor = 1.0 if column.unit is None else units.Unit(column.unit).to("deg")
        except (units.UnitsError, ValueError, TypeError) as error:
            raise SettingError(f"{path}: column {name} is in {column.unit}, which is no angle") from error
        numbers = column.dtype.kind in "fiu"
        columns.append([value * factor if numbers and value is not None else value for value in column.tolist()])
    labels = table[found[2]].tolist() if found[2] else [None] * len(table)
    for number, (ra, dec, label) in enumerate(zip(*columns, labels, strict=True), 1):
        yield f"row {number}", ra, dec, "" if label is None else " ".join(str(label).split())


def write_matches(path: Path, matches: Sequence[Match]) -> None:
    """Write positions with the source of each as CSV, which `read_positions` reads back."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "ra", "dec", "match", "separation_arcsec", "other_sources", "detections"])
        for match in matches:
            position, distance = match.position, match.separation
            writer.writerow(
                [
                    position.name,
                    repr(position.ra),
                    repr(position.dec),
                    (match.source and match.source[0]) or "",
                    "" if distance is None else f"{3600 * distance:.3f}",
                    match.others,
                    match.detections,
                ]
            )
