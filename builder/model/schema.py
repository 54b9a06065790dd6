"""The columns as others want them: features of datasets, a schema of Arrow, a table in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.model.column import RAGGED, Column
from builder.model.columns import DEFAULT_BINS, columns_of

if TYPE_CHECKING:
    from datasets import Features


def features(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> Features:
    """Return the `datasets.Features` of one configuration; `bins` and `own` as for `columns_of`."""
    from datasets import ClassLabel, Features, Sequence, Value  # Sequence gives a List; datasets 3 has no other word

    tree: dict[str, Any] = {}
    for column in columns_of(config, bins, own):
        value: Any = ClassLabel(names=list(column.classes)) if column.classes else Value(column.dtype)
        for length in reversed(column.shape):
            value = Sequence(value, length=length)
        struct, _, field = column.name.rpartition(".")
        (tree.setdefault(struct, {}) if struct else tree)[field] = value
    return Features(tree)


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Return the schema of `columns` in the store: flat, under their public names, and nothing rounded."""
    return pa.schema([(column.name, column.full_type) for column in columns])


def markdown(columns: tuple[Column, ...]) -> str:
    """Make a Markdown table of columns, for README and card."""
    lines = ["| column | type | unit | meaning | source |", "| --- | --- | --- | --- | --- |"]
    for column in columns:
        shape = f"[{', '.join('n' if length == RAGGED else str(length) for length in column.shape)}]"
        cells = (
            f"`{column.name}`",
            column.dtype + shape.removesuffix("[]"),
            column.unit,
            column.meaning,
            column.source,
        )
        lines.append("| " + " | ".join(cells).replace("*", r"\*") + " |")  # a product, no emphasis
    return "\n".join(lines)
