"""Writing VOTable, as text (the TABLEDATA serialization of VOTable 1.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from builder.model.columns import CATALOG


class _Field(NamedTuple):
    """A VOTable column's ``datatype`` (``char`` is of any length) and unit ('' for none)."""

    datatype: str
    unit: str = ""


_DATATYPES = {"string": "char", "bool": "boolean", "int32": "int", "float32": "double", "float64": "double"}

# Units are declared as FITS writes them; VOTable 1.3 wants them as the CDS does.
_FIELDS = {
    column.name: _Field(_DATATYPES[column.dtype], column.unit.replace(" ", ".").replace("count", "ct"))
    for column in CATALOG
}
"""The catalog's columns as its service declares them."""


def _is_null(value: object) -> bool:
    """Whether a catalog value is missing: None, or a NaN."""
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def write_votable(
    names: Sequence[str], rows: Iterable[Mapping[str, object]], *, overflow: bool = False, error: str | None = None
) -> bytes:
    """Write a table as a TAP service answers it.

    Parameters
    ----------
    names : sequence of str
        The columns, in order. Those that the catalog has not get their type from their first value.
    rows : iterable of mapping
        A missing key, None and NaN are written as null.
    overflow : bool
        Say, after the table, that the row limit cut it short.
    error : str, optional
        Write no table but this reason, with QUERY_STATUS ERROR.
    """
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n<RESOURCE type="results">\n'
    )
    tail = "</RESOURCE>\n</VOTABLE>\n"
    if error is not None:
        return f'{head}<INFO name="QUERY_STATUS" value="ERROR">{escape(error)}</INFO>\n{tail}'.encode()
    rows = list(rows)
    declared, columns = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        field = _FIELDS.get(name) or _inferred(values)
        size = ' arraysize="*"' if field.datatype == "char" else ""
        unit = f" unit={quoteattr(field.unit)}" if field.unit else ""
        declared.append(f'<FIELD name={quoteattr(name)} datatype="{field.datatype}"{size}{unit}/>\n')
        write = _WRITERS[field.datatype]
        columns.append(["" if _is_null(value) else write(value) for value in values])
    body = "".join(f"<TR><TD>{'</TD><TD>'.join(cells)}</TD></TR>\n" for cells in zip(*columns, strict=True))
    limit = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>\n' if overflow else ""
    return (
        f'{head}<INFO name="QUERY_STATUS" value="OK"/>\n<TABLE>\n{"".join(declared)}<DATA><TABLEDATA>\n'
        f"{body}</TABLEDATA></DATA>\n</TABLE>\n{limit}{tail}"
    ).encode()


def _inferred(values: Sequence[object]) -> _Field:
    first = next((value for value in values if not _is_null(value)), None)
    if isinstance(first, bool):
        return _Field("boolean")
    return _Field("long" if isinstance(first, int) else "char" if isinstance(first, str) else "double")


def _double(value: object) -> str:
    number = float(value)  # type: ignore[arg-type]
    return repr(number) if math.isfinite(number) else f"{'+' if number > 0 else '-'}Inf"  # VOTable's spelling


def _integer(value: object) -> str:
    return str(int(value))  # type: ignore[call-overload]


_WRITERS: dict[str, Callable[[object], str]] = {
    "char": lambda value: escape(str(value)),
    "double": _double,
    "int": _integer,
    "long": _integer,
    "boolean": lambda value: "T" if value else "F",
}
