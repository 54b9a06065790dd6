"""The columns as others want them: features of datasets, schemas of Arrow, a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from builder.model.column import RAGGED, Column
from builder.model.columns import DEFAULT_BINS, columns_of

if TYPE_CHECKING:
    from datasets import Features

Node = TypeVar("Node")


def features(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> Features:
    """Return the `datasets.Features` of one configuration; `bins` and `own` as for `columns_of`."""
    from datasets import Features

    return Features.from_arrow_schema(public_schema(config, bins, own))


def public_schema(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> pa.Schema:
    """Return the Arrow schema of one configuration; `bins` and `own` as for `columns_of`.

    Its metadata have the features as `datasets` keeps them. They are written without it, whose import takes as long as
    the reduction of 250 spectra, and say Sequence where `datasets` 4 and later say List, which no earlier one reads.
    """
    columns = columns_of(config, bins, own)
    types = _nested(columns, lambda column: column.public_type, lambda fields: pa.struct(fields.items()))
    declared = _nested(columns, _feature, dict)
    return pa.schema(types.items(), {"huggingface": json.dumps({"info": {"features": declared}})})


def card_features(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> list[dict[str, Any]]:
    """Return the features of one configuration as ``dataset_info`` of a card has them; parameters as for `features`."""
    columns = columns_of(config, bins, own)
    return _named(_nested(columns, _card_feature, lambda fields: {"struct": _named(fields)}))


def _nested(
    columns: tuple[Column, ...], leaf: Callable[[Column], Node], struct: Callable[[dict[str, Node]], Node]
) -> dict[str, Node]:
    """Make a `leaf` of each column, and a `struct` of all leaves ``struct.field``."""
    tree: dict[str, dict[str, Column]] = {}
    for column in columns:
        name, _, field = column.name.partition(".")
        tree.setdefault(name, {})[field] = column
    return {
        name: leaf(fields[""]) if "" in fields else struct({field: leaf(column) for field, column in fields.items()})
        for name, fields in tree.items()
    }


def _feature(column: Column) -> dict[str, Any]:
    value: dict[str, Any] = (
        {"names": column.classes, "_type": "ClassLabel"}
        if column.classes
        else {"dtype": column.dtype, "_type": "Value"}
    )
    for length in reversed(column.shape):
        value = {"feature": value, "length": length, "_type": "Sequence"}
    return value


def _card_feature(column: Column) -> dict[str, Any]:
    names = {str(number): name for number, name in enumerate(column.classes)}
    value: dict[str, Any] = {"dtype": {"class_label": {"names": names}} if names else column.dtype}
    for length in reversed(column.shape):
        inner = column.dtype if value == {"dtype": column.dtype} else value
        value = {"sequence": inner} if length == RAGGED else {"sequence": inner, "length": length}
    return value


def _named(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, **entry} for name, entry in entries.items()]


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
