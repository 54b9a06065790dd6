"""Labels of sources from a user's file, joined by detection, name or position."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from builder.archive.matching import match_positions, source_of
from builder.archive.values import MAX_LETTERS, SCHEMA, Found, kind_of, typed
from builder.dataset.catalog_file import read_table
from builder.model.errors import CatalogError, SettingError
from builder.model.ids import DetectionId, designation
from builder.model.own import MADE, described, own_column, own_name
from builder.model.sky import Position, angle
from builder.model.text import several

DISTANCE = "label_distance"
"""Column with the distance of a match by position, arcsec."""

_KEYS = ("detection_id", "name", "ra", "dec")
_MOST_CLASSES = 256
"""Distinct words up to which a column is one of classes; others are texts."""

_NAMED = 3
"""Things that a remark names."""

Key = tuple[str, str]
"""A source: by its name, or by its detection where it has none."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A catalog with labels.

    Attributes
    ----------
    catalog : pyarrow.Table
        With a column for each label, and `DISTANCE` where there are positions; null where there is no label.
    counts : dict of str to int
        Rows of the file (``rows``), those of a source of the catalog (``matched``), sources that have a label
        (``sources``), and values that are left out since the file contradicts itself (``conflicts``).
    remarks : list of str
        What a user should know.
    """

    catalog: pa.Table
    counts: dict[str, int]
    remarks: list[str]


def add_labels(catalog: pa.Table, path: Path, radius: float) -> Labelled:
    """Join labels of sources to the detections of a catalog.

    A row of the file is of the source of its ``detection_id``, else of that with its ``name``, else of the one that is
    nearest to ``ra`` and ``dec`` within a radius, by the first of these that the file has and that finds one. All
    detections of a source have its label. Columns of words become classes, others stay what they are.

    Parameters
    ----------
    catalog : pyarrow.Table
        Columns of `builder.model.columns.CATALOG`, and own ones.
    path : Path
        Any table that a catalog file may be.
    radius : float
        deg.

    Raises
    ------
    SettingError
        If the file has no key or no label, a label has the name of another column, or no row is of a source.
    CatalogError
        If it cannot be read.
    """
    found = {own_name(title): each for title, each in reversed(read_table(path).items())}
    found = dict(reversed(found.items()))
    labels = {name: each for name, each in found.items() if name not in _KEYS}
    if not (keys := [name for name in _KEYS if name in found]) or keys in (["ra"], ["dec"]):
        raise SettingError(f"{path} has no column detection_id or name, and no ra and dec, by which labels are joined")
    if not labels:
        raise SettingError(f"{path} has no column of labels beside {', '.join(keys)}")
    for name in labels:
        if name in {*MADE, *SCHEMA.names, *catalog.column_names, DISTANCE}:
            raise SettingError(f"{path}: every row has a column {name} already: give the label another name")
    rows = catalog.select(["name", "ra", "dec", "obsid", "obi", "region_id"]).to_pylist()
    sources = [_key(row) for row in rows]
    of_row = _match(found, rows, sources, radius)
    if not any(of_row):
        raise SettingError(f"no row of {path} is of a selected source: see its {', '.join(keys)}")
    lost = [number for number, match in enumerate(of_row, 1) if match is None]
    remarks = [f"{path.name}: no selected source for {_some(lost, 'row')}"] if lost else []
    conflicts = 0
    for name, each in labels.items():
        field, values = _values(name, each, path)
        known: dict[Key, set[Any]] = {}
        for match, value in zip(of_row, values, strict=True):
            if match and value is not None:
                known.setdefault(match[0], set()).add(value)
        if torn := [key for key, options in known.items() if len(options) > 1]:
            conflicts += len(torn)
            remarks.append(f"{path.name}: {name} differs for {_some([key[1] for key in torn], 'source')}: null there")
        label = {key: next(iter(options)) for key, options in known.items() if len(options) == 1}
        catalog = catalog.append_column(field, pa.array([label.get(key) for key in sources], field.type))
    distances: dict[Key, float] = {}
    for match in filter(None, of_row):
        if match[1] is not None:
            distances[match[0]] = min(match[1], distances.get(match[0], math.inf))
    if {"ra", "dec"} <= found.keys():
        said = {
            "unit": "arcsec",
            "description": "distance of the label's position from the source's; null where it "
            "was joined by name or detection",
            "source": path.name,
            "scope": "source",
        }
        field = described(pa.field(DISTANCE, pa.float64()), own_column(DISTANCE, pa.float64(), said))
        catalog = catalog.append_column(field, pa.array([distances.get(key) for key in sources], pa.float64()))
    matched = [match for match in of_row if match]
    counts = {"rows": len(of_row), "matched": len(matched), "sources": len({key for key, _ in matched})}
    return Labelled(catalog, counts | {"conflicts": conflicts}, remarks)


def _key(row: dict[str, Any]) -> Key:
    name = row["name"]
    return ("name", name) if name is not None else ("detection", _id(row))


def _id(row: dict[str, Any]) -> str:
    return f"{row['obsid']}.{row['obi']}.{row['region_id']}"


def _match(
    found: dict[str, Found], rows: list[dict[str, Any]], sources: list[Key], radius: float
) -> list[tuple[Key, float | None] | None]:
    """Find the source of each row of the file, and its distance in arcsec where it was found by position."""
    number = len(next(iter(found.values())).values)
    of_row: list[tuple[Key, float | None] | None] = [None] * number
    by_detection = {_id(row): key for row, key in zip(rows, sources, strict=True)}
    by_name = {key[1]: key for key in sources if key[0] == "name"}
    for column, known, write in (("detection_id", by_detection, _detection), ("name", by_name, _name)):
        for index, text in enumerate(_texts(found[column]) if column in found else ()):
            if of_row[index] is None and text is not None and (key := known.get(write(text))):
                of_row[index] = key, None
    if not {"ra", "dec"} <= found.keys():
        return of_row
    places = {place: key for row, key in reversed(list(zip(rows, sources, strict=True))) if (place := source_of(row))}
    angles = (_angles(found["ra"], hours=True), _angles(found["dec"]))
    wanted = [
        (index, Position(ra % 360, dec, ""))
        for index, (ra, dec) in enumerate(zip(*angles, strict=True))
        if of_row[index] is None and ra is not None and dec is not None and abs(dec) <= 90
    ]
    matches = match_positions([position for _, position in wanted], radius, places)
    for (index, _), match in zip(wanted, matches, strict=True):
        if match.source is not None and match.separation is not None:
            of_row[index] = places[match.source], 3600 * match.separation
    return of_row


def _detection(text: str) -> str:
    try:
        return str(DetectionId.parse(text).catalog)
    except SettingError:
        return text


def _name(text: str) -> str:
    return designation(text) or text


def _texts(found: Found) -> list[str | None]:
    values: list[str | None] = typed(found, pa.string()).to_pylist()
    return values


def _angles(found: Found, *, hours: bool = False) -> list[float | None]:
    """Give angles in deg: numbers in the column's unit, or text as `builder.model.sky.angle` reads it."""
    from astropy import units

    if kind_of(found, words=False) == pa.string():
        return [_angle(text, hours) for text in _texts(found)]
    try:
        factor = units.Unit(found.said.get("unit") or "deg").to("deg")
    except (units.UnitsError, ValueError, TypeError):
        raise CatalogError(f"a position in {found.said['unit']!r}, which is no angle") from None
    return [None if value is None else value * factor for value in typed(found, pa.float64()).to_pylist()]


def _angle(text: str | None, hours: bool) -> float | None:
    try:
        return None if text is None else angle(text, hours=hours)
    except ValueError:
        return None


def _values(name: str, found: Found, path: Path) -> tuple[pa.Field, list[Any]]:
    """Give a label's values, and its field: of classes where they are words."""
    kind = kind_of(found, words=True)
    if kind is None:
        raise CatalogError(f"{path}: column {name} is of {found.values.type}, which is no label")
    try:
        values = typed(found, kind)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise CatalogError(f"{path}: column {name} cannot be read: {error}") from error
    said = {"description": "label of the source", "source": path.name}
    said |= {key: text for key, text in found.said.items() if text} | {"scope": "source"}
    words = sorted(filter(None, pc.unique(values).to_pylist())) if pa.types.is_string(kind) else []
    if any(len(word) > MAX_LETTERS for word in words):
        raise CatalogError(f"{path}: column {name} has a text of more than {MAX_LETTERS} letters")
    if 0 < len(words) <= _MOST_CLASSES:
        codes = {word: code for code, word in enumerate(words)}
        said["classes"] = json.dumps(words, ensure_ascii=False)
        kind = pa.int64()
        return described(pa.field(name, kind), own_column(name, kind, said)), list(map(codes.get, values.to_pylist()))
    return described(pa.field(name, kind), own_column(name, kind, said)), values.to_pylist()


def _some(things: Iterable[object], what: str) -> str:
    """Count things, and name the first of them."""
    listed = list(map(str, things))
    return f"{several(len(listed), what)} ({', '.join(listed[:_NAMED])}{', ...' if len(listed) > _NAMED else ''})"
