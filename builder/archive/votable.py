"""VOTable as text (the TABLEDATA serialization of VOTable 1.3): read as it streams by, and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, NamedTuple
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa

from builder.archive.values import Found, typed
from builder.model.column import Column
from builder.model.columns import CATALOG

_BATCH = 2048
"""Rows that are held as Python strings at a time."""


class Field(NamedTuple):
    """A VOTable column: its ``datatype`` (``char`` is of any length), and what is said of it, '' for nothing."""

    name: str
    datatype: str
    unit: str = ""
    ucd: str = ""
    description: str = ""
    arraysize: str = ""


KINDS = {
    **dict.fromkeys(("short", "int", "long", "unsignedByte"), pa.int64()),
    "float": pa.float32(),
    "double": pa.float64(),
    **dict.fromkeys(("boolean", "bit"), pa.bool_()),
}
"""What values are by their datatype; text for any other."""

SCALAR = ("", "1")
"""Array sizes of columns of one value a row."""

_DATATYPES = {"bool": "boolean", "int32": "int", "int64": "long", "float32": "double", "float64": "double"}


def field_of(column: Column) -> Field:
    """Declare a column of scalars as a service would."""
    # Units are declared as FITS writes them; VOTable 1.3 wants them as the CDS does.
    unit = column.unit
    if not column.own:
        unit = unit.replace("10**20 ", "10+20").replace(" ", ".").replace("count", "ct")
    datatype = _DATATYPES.get(column.dtype, "char")
    description = column.meaning if column.own else ""
    return Field(column.name, datatype, unit, column.ucd, description, "*" if datatype == "char" else "")


_FIELDS = {column.name: field_of(column) for column in CATALOG}
"""The catalog's columns as its service declares them."""


def _is_null(value: object) -> bool:
    """Tell whether a catalog value is missing: None, or a NaN."""
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


class StreamError(Exception):
    """The rows of a VOTable are at another address, which may be a file of this machine."""


class VotableReader:
    """Reads the first table of a VOTable, and what the service says of the query, in one go.

    A general reader holds every value as an object and takes three times as long.

    Attributes
    ----------
    table : pyarrow.Table or None
        By column name in lower case: int64 or float64 where the field says so and every value is such, else text. What
        its field calls null is null.
    fields : list of Field
        Its columns; names in lower case.
    overflow : bool
        Whether the service cut the table at its row limit.
    error : str or None
        The service's words where it refuses the query.
    binary : bool
        Whether the rows are in another serialization, and were not read.
    """

    def __init__(self) -> None:
        self.table: pa.Table | None = None
        self.overflow = self.binary = False
        self.error: str | None = None
        self.fields: list[Field] = []
        self._nulls: list[str | None] = []
        self._chunks: list[list[pa.Array]] = []
        self._path: list[str] = []
        self._done = self._failed = False
        self._text: list[str] = []
        self._cells: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._outside()

    def read(self, file: IO[bytes]) -> None:
        """Read a document to its end.

        Raises
        ------
        ExpatError
            It is not well-formed, or cut short.
        ValueError
            A row has another number of cells than the table has columns, or the encoding is unknown.
        StreamError
            The rows are at another address.
        """
        self._parser.ParseFile(file)

    def _outside(self) -> None:
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = self._text.append

    def _start(self, tag: str, data: dict[str, str]) -> None:
        name = tag.rpartition(":")[2]
        self._path.append(name)
        self._text.clear()
        if name == "INFO" and data.get("name", "").upper() == "QUERY_STATUS":
            status = data.get("value", "").upper()
            self.overflow, self._failed = self.overflow or status == "OVERFLOW", status == "ERROR"
        elif name == "STREAM" and "href" in data:
            raise StreamError
        elif self._done or "TABLE" not in self._path:
            return
        elif name == "FIELD":
            words = {key: data.get(key, "") for key in ("datatype", "unit", "ucd", "arraysize")}
            self.fields.append(Field(data.get("name", "").lower(), **words))
            self._nulls.append(None)
            self._chunks.append([])
        elif name == "VALUES" and self._path[-2] == "FIELD":
            self._nulls[-1] = data.get("null")
        elif name in ("BINARY", "BINARY2", "FITS"):
            self.binary = True
        elif name == "TABLEDATA" and self.fields:
            # Nothing but the ends of cells and rows matters here: blanks before a cell are trimmed with it.
            self._parser.StartElementHandler, self._parser.EndElementHandler = None, self._end_of_row_or_cell

    def _end(self, tag: str) -> None:
        name = self._path.pop()
        if name == "INFO" and self._failed:
            self.error, self._failed = " ".join("".join(self._text).split()), False
        elif name == "DESCRIPTION" and self._path[-1:] == ["FIELD"] and not self._done:
            self.fields[-1] = self.fields[-1]._replace(description=" ".join("".join(self._text).split()))
        elif name == "TABLE" and self.fields and not self._done:
            self._done = True
            # The first of two columns of one name.
            first = {field.name: number for number, field in reversed([*enumerate(self.fields)])}
            self.fields = [self.fields[number] for number in sorted(first.values())]
            columns = [_joined(self._chunks[number]) for number in sorted(first.values())]
            self.table = pa.Table.from_arrays(columns, names=[field.name for field in self.fields])
        self._text.clear()

    def _end_of_row_or_cell(self, tag: str) -> None:
        if tag.endswith("TD"):
            self._cells.append("".join(self._text))
            self._text.clear()
        elif tag.endswith("TR"):
            if len(self._cells) % len(self.fields):
                raise ValueError(f"a row has not the {len(self.fields)} cells that the table has columns")
            if len(self._cells) >= _BATCH * len(self.fields):
                self._flush()
        elif tag.endswith("TABLEDATA"):
            self._flush()
            self._outside()
            self._path.pop()

    def _flush(self) -> None:
        for number, (field, null) in enumerate(zip(self.fields, self._nulls, strict=True)):
            values: list[str | None] = [*self._cells[number :: len(self.fields)]]
            if null is not None:
                values = [None if (value or "").strip() == null else value for value in values]
            self._chunks[number].append(_narrow(pa.array(values, pa.string()), field))
        self._cells.clear()


def _narrow(texts: pa.Array, field: Field) -> pa.Array:
    """Give the numbers of a column of scalars, which take half the room of their texts; texts where one is none."""
    kind = KINDS.get(field.datatype)
    if kind is None or pa.types.is_boolean(kind) or field.arraysize not in SCALAR:
        return texts
    try:
        found = Found(pa.chunked_array([texts]), {}, kind)
        return typed(found, pa.int64() if pa.types.is_integer(kind) else pa.float64()).combine_chunks()
    except (pa.ArrowException, ValueError, OverflowError):
        return texts


def _joined(chunks: list[pa.Array]) -> pa.ChunkedArray:
    if len({chunk.type for chunk in chunks}) != 1:
        chunks = [chunk.cast(pa.string()) for chunk in chunks]
    return pa.chunked_array(chunks, chunks[0].type if chunks else pa.string())


def write_votable(
    names: Sequence[str],
    rows: Iterable[Mapping[str, object]],
    own: Iterable[Column] = (),
    *,
    overflow: bool = False,
    error: str | None = None,
) -> bytes:
    """Write a table as a TAP service answers it.

    Parameters
    ----------
    names : sequence of str
        The columns, in order. Those that neither the catalog has nor `own` declares get their type from their first
        value.
    rows : iterable of mapping
        A missing key, None and NaN are written as null.
    own : iterable of Column
        Columns that the catalog has not.
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
    known = _FIELDS | {column.name: field_of(column) for column in own}
    declared, columns = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        field = known.get(name) or _inferred(name, values)
        declared.append(declaration(field))
        write = _WRITERS[field.datatype]
        columns.append(["" if _is_null(value) else write(value) for value in values])
    body = "".join(f"<TR><TD>{'</TD><TD>'.join(cells)}</TD></TR>\n" for cells in zip(*columns, strict=True))
    limit = '<INFO name="QUERY_STATUS" value="OVERFLOW"/>\n' if overflow else ""
    return (
        f'{head}<INFO name="QUERY_STATUS" value="OK"/>\n<TABLE>\n{"".join(declared)}<DATA><TABLEDATA>\n'
        f"{body}</TABLEDATA></DATA>\n</TABLE>\n{limit}{tail}"
    ).encode()


def declaration(field: Field) -> str:
    """Write a FIELD element, in a line."""
    words = {key: text for key, text in field._asdict().items() if text and key != "description"}
    attributes = " ".join(f"{key}={quoteattr(text)}" for key, text in words.items())
    if not field.description:
        return f"<FIELD {attributes}/>\n"
    return f"<FIELD {attributes}><DESCRIPTION>{escape(field.description)}</DESCRIPTION></FIELD>\n"


def _inferred(name: str, values: Sequence[object]) -> Field:
    first = next((value for value in values if not _is_null(value)), None)
    if isinstance(first, bool):
        return Field(name, "boolean")
    if isinstance(first, str):
        return Field(name, "char", arraysize="*")
    return Field(name, "long" if isinstance(first, int) else "double")


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
