"""Columns beside the declared ones: a user's own labels, or more of the catalog's; and what a file says of any column.

An Arrow field carries what is known of its column (unit, description, UCD, source) as its metadata. A table with own
columns declares them itself so, from the reader of a catalog to the Parquet file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from builder.model.columns import CATALOG, COLUMNS, EBOUNDS, Column
from builder.model.errors import SettingError

_TYPES = {"string": pa.string(), "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}
"""Types of own columns."""

_SAID = {"unit": "unit", "description": "meaning", "ucd": "ucd", "source": "source"}
"""Keys of a field's metadata, and the attributes of a column that they hold."""

_KNOWN = frozenset(column.name for column in CATALOG)

MADE = (
    frozenset(word for column in COLUMNS for word in (column.name, column.hdf5_name, column.name.partition(".")[0]))
    | frozenset(column.name for column in EBOUNDS)
    | {"ebounds"}
) - _KNOWN
"""Names of what the dataset makes itself, which no own column can have."""


def check_asked(columns: Iterable[str]) -> None:
    """Raise SettingError for what is no further column of the catalog's tables, such as ``m.gal_l``."""
    for column in columns:
        if not re.fullmatch(r"[mo]\.[a-z][a-z0-9_]*", column):
            raise SettingError(f"{column!r} is no column such as m.gal_l (of a source) or o.apec_z (of a detection)")
        if (name := column.partition(".")[2]) in _KNOWN | MADE:
            raise SettingError(f"{column}: every dataset has a column {name}")


def own_name(text: str) -> str:
    """Write a name as that of an own column: in lower case, with ``_`` for what is no letter, digit or ``_``."""
    return re.sub(r"\W", "_", text.strip().lower())


def own_column(name: str, kind: pa.DataType, said: Mapping[str, str]) -> Column:
    """Declare an own column, by what is said of it under the keys of a field's metadata."""
    dtype = next(word for word, each in _TYPES.items() if each == kind)
    known: dict[str, Any] = {attribute: said.get(key, "") for key, attribute in _SAID.items()}
    return Column(name, dtype, **known, nullable=True, own=True)


def described(field: pa.Field, column: Column) -> pa.Field:
    """Give a field what is known of its column."""
    known = {key: getattr(column, attribute) for key, attribute in _SAID.items()}
    return field.with_metadata({key: text for key, text in known.items() if text})


def said_of(field: pa.Field) -> dict[str, str]:
    """Read what a field says of its column."""
    found = {key.decode(): text.decode(errors="replace") for key, text in (field.metadata or {}).items()}
    return {key: text for key, text in found.items() if key in _SAID}


def own_columns(schema: pa.Schema) -> tuple[Column, ...]:
    """Return the own columns of a catalog's table."""
    return tuple(own_column(field.name, field.type, said_of(field)) for field in schema if field.name not in _KNOWN)


def own_dicts(columns: Iterable[Column]) -> list[dict[str, str]]:
    """Write own columns as the manifest has them."""
    return [{"name": c.name, "dtype": c.dtype, **{a: getattr(c, a) for a in _SAID.values()}} for c in columns]


def own_of_dicts(said: Iterable[Mapping[str, str]]) -> tuple[Column, ...]:
    """Return the inverse of `own_dicts`; KeyError or TypeError where it cannot be."""
    keys = {attribute: key for key, attribute in _SAID.items()}
    return tuple(
        own_column(each["name"], _TYPES[each["dtype"]], {keys[a]: each[a] for a in _SAID.values()}) for each in said
    )
