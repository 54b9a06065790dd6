"""Values of a catalog as rows can hold them, whichever reader they came through: one rule for all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.model.columns import CATALOG
from builder.model.errors import CatalogError
from builder.model.own import MADE, described, own_column, own_name
from builder.model.schema import arrow_schema
from builder.model.text import one_line, several

SCHEMA = arrow_schema(CATALOG)
IDS = ("obsid", "obi", "region_id")
"""Columns that name a detection."""

NAMES = ("name", *IDS)
"""Columns that every catalog must have."""

MAX_LETTERS = 200
"""Most letters of a text; the longest that the catalog has are names of some 25."""

_FLAGS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
"""Booleans as VOTable writes them, also where a service or a table sends them as text."""

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A column as a reader found it.

    Attributes
    ----------
    values : pyarrow.ChunkedArray
    said : dict of str to str
        What the file says of it, under the keys of a field's metadata, see `builder.model.own`.
    kind : pyarrow.DataType, optional
        What the values are, where they are text and the file says it.
    """

    values: pa.ChunkedArray
    said: dict[str, str]
    kind: pa.DataType | None = None


def normalise(
    found: Mapping[str, Found],
    origin: str,
    *,
    needed: Collection[str] = (),
    own: Collection[str] | None = None,
    file: str = "",
    words: bool = False,
) -> pa.Table:
    """Make a catalog of the columns of any reader.

    Parameters
    ----------
    found : dict of str to Found
        By name, in any case; of several that are alike the first is taken.
    origin : str
        Where they came from, for messages.
    needed : collection of str
        Columns that must be there, besides `NAMES`; others that are not are null.
    own : collection of str, optional
        Own columns to keep; all by default. What cannot be kept is named in a warning.
    file : str
        Name of the file that they are of, for own columns of which it says nothing.
    words : bool
        Take an own column of no texts but T and F, or true and false, for flags.

    Returns
    -------
    pyarrow.Table
        Columns of `builder.model.columns.CATALOG`, and own ones as int64, float64, bool or string, described by their
        fields. What is empty, masked or not finite is null.

    Raises
    ------
    CatalogError
        If a needed column is missing, or the values of a column are not of its kind.
    """
    columns: dict[str, Found] = {}
    left: list[str] = []
    for title, each in found.items():
        name = own_name(title)
        if name not in columns:
            columns[name] = each
        elif own is None:
            left.append(f"{title} (there twice)")
    fields, arrays = [], []
    for column in CATALOG:
        fields.append(SCHEMA.field(column.name))
        known = columns.pop(column.name, None)
        if known is None and column.name in {*needed, *NAMES}:
            raise CatalogError(f"{origin} has no column {column.name}")
        rows = len(next(iter(found.values())).values) if found else 0
        try:
            arrays.append(pa.nulls(rows, column.full_type) if known is None else typed(known, column.full_type))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise CatalogError(f"{origin}: column {column.name} cannot be read: {error}") from error
    for name, each in columns.items():
        if own is not None and name not in own:
            continue
        kind = kind_of(each, words)
        if name in MADE or kind is None:
            left.append(f"{name} ({'made anew' if name in MADE else f'of {each.values.type}'})")
            continue
        try:
            arrays.append(typed(each, kind))
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise CatalogError(f"{origin}: column {name} cannot be read: {error}") from error
        said = {"description": "column of the catalog file", "source": file} if file else {}
        said |= {key: text for key, text in each.said.items() if text}
        fields.append(described(pa.field(name, kind), own_column(name, kind, said)))
    if left:
        logger.warning("%s: columns that are not taken over: %s", origin, ", ".join(left))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def kind_of(found: Found, words: bool) -> pa.DataType | None:
    """Tell what an own column holds; None for what no column can."""
    kind = found.kind or found.values.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return pa.float64()
    if not _is_text(kind):
        return pa.string() if pa.types.is_temporal(kind) else None
    texts = {text.strip().lower() for text in pc.unique(_texts(found.values)).to_pylist() if text}
    if not texts and words:  # some formats keep the type of a column without values, others do not
        return pa.float64()
    return pa.bool_() if words and texts and texts <= {"t", "f", "true", "false"} else pa.string()


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


def _texts(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts without blanks at their ends; what is empty is null."""
    trimmed = pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def typed(found: Found, kind: pa.DataType) -> pa.ChunkedArray:
    """Turn a column into what it is declared to be; what is empty or not finite is null."""
    values = found.values
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(kind):
        return _texts(values)
    if _is_text(values.type):
        values = _texts(values)
        if pa.types.is_boolean(kind):
            return pa.chunked_array([[None if text is None else _flag(text) for text in values.to_pylist()]], kind)
        try:
            values = pc.cast(values, pa.int64() if pa.types.is_integer(kind) else pa.float64())
        except pa.ArrowInvalid:  # an integer as 8.0, or a number as +Inf
            values = pa.chunked_array(
                [[None if text is None else float(text) for text in values.to_pylist()]], pa.float64()
            )
    if pa.types.is_floating(values.type):
        if found.kind == pa.float32():  # as in a file that holds such numbers rather than their decimals
            values = values.cast(pa.float32())
        values = values.cast(pa.float64())
        finite = pc.is_finite(values)
        if not pc.all(finite).as_py():
            values = pc.if_else(finite, values, pa.scalar(None, pa.float64()))
    if pa.types.is_boolean(kind) and not pa.types.is_boolean(values.type):
        values = values.cast(pa.int64())
        for number in set(pc.unique(values).to_pylist()) - {0, 1, None}:
            raise ValueError(f"{number} is neither true nor false")
    return values.cast(kind)


def _flag(text: str) -> bool | None:
    if text == "?":  # VOTable's null
        return None
    if text.lower() not in _FLAGS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _FLAGS[text.lower()]


def tidy(catalog: pa.Table) -> tuple[pa.Table, list[str]]:
    """Make null of what no row can hold, and write texts in one line.

    Parameters
    ----------
    catalog : pyarrow.Table
        Columns of `builder.model.columns.CATALOG`, and own ones.

    Returns
    -------
    catalog : pyarrow.Table
        Without NaN, infinities, numbers that float32 cannot hold in a column of it, and overlong texts.
    notes : list of str
        What was changed, but for NaN, which is another word for null.
    """
    notes: list[str] = []
    known = {column.name: column.dtype for column in CATALOG}
    for index, field in enumerate(catalog.schema):
        dtype = known.get(field.name, str(field.type).replace("double", "float64"))
        values, lost = _tidied(catalog[field.name].combine_chunks(), dtype)
        catalog = catalog.set_column(index, field, values)
        if lost:
            why = f"longer than {MAX_LETTERS} letters" if dtype == "string" else f"beyond {dtype}"
            notes.append(f"{field.name} is null in {several(lost, 'row')}: {why}")
    return catalog, notes


def _tidied(values: pa.Array, dtype: str) -> tuple[pa.Array, int]:
    """Give the values as rows can hold them, and the number of those that became null, other than of NaN."""
    if pa.types.is_floating(values.type):
        largest = np.finfo(dtype).max
        beyond = pc.fill_null(pc.greater(pc.abs(values), pa.scalar(largest, values.type)), False)
        unknown = pc.or_(beyond, pc.fill_null(pc.is_nan(values), False))
        return pc.if_else(unknown, pa.scalar(None, values.type), values), pc.sum(beyond).as_py() or 0
    if pa.types.is_string(values.type):
        long = pc.fill_null(pc.greater(pc.utf8_length(values), MAX_LETTERS), False)
        values = pc.if_else(long, pa.scalar(None, values.type), values)
        if pc.any(pc.match_substring_regex(values, "[^ -~]|  |^ | $|^$")).as_py():
            texts = (None if text is None else one_line(text) or None for text in values.to_pylist())
            values = pa.array(texts, values.type)
        return values, pc.sum(long).as_py() or 0
    return values, 0
