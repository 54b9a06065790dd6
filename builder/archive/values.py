"""Values of a catalog as rows can hold them, whichever reader they came through: one rule for all."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.model.columns import CATALOG, Column
from builder.model.text import one_line, several

MAX_LETTERS = 200
"""Most letters of a text; the longest that the catalog has are names of some 25."""


def tidy(catalog: pa.Table) -> tuple[pa.Table, list[str]]:
    """Make null of what no row can hold, and write texts in one line.

    Parameters
    ----------
    catalog : pyarrow.Table
        Columns of `builder.model.columns.CATALOG`.

    Returns
    -------
    catalog : pyarrow.Table
        Without NaN, infinities, numbers that float32 cannot hold in a column of it, and overlong texts.
    notes : list of str
        What was changed, but for NaN, which is another word for null.
    """
    notes: list[str] = []
    for index, column in enumerate(CATALOG):
        values, lost = _tidied(catalog[column.name].combine_chunks(), column)
        catalog = catalog.set_column(index, catalog.schema.field(index), values)
        if lost:
            why = f"longer than {MAX_LETTERS} letters" if column.dtype == "string" else f"beyond {column.dtype}"
            notes.append(f"{column.name} is null in {several(lost, 'row')}: {why}")
    return catalog, notes


def _tidied(values: pa.Array, column: Column) -> tuple[pa.Array, int]:
    """Give the values as rows can hold them, and the number of those that became null, other than of NaN."""
    if pa.types.is_floating(values.type):
        largest = np.finfo(column.dtype).max
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
