"""The part of ADQL that this project sends, evaluated over the rows of a catalog in memory.

    SELECT [TOP n] {column [AS word], … | COUNT(*) [AS word]} FROM table [alias], … [WHERE condition]
    [ORDER BY column [ASC | DESC], …]

A condition is built with AND, OR and parentheses from: ``column {= < <= > >= <> !=} value``, ``column BETWEEN value
AND value``, ``column IN (value, …)``, ``column IS [NOT] NULL`` and the joins ``a.column = b.column``. Values are
numbers (0 and 1 for flags) and ``'strings'`` with doubled quotes. Everything else (functions, arithmetic, NOT, JOIN,
GROUP BY, ``*``) is refused.

The tables are those between a master source and its detections. As the rows are their join, the join conditions hold
by construction, but must be there: without them the real service would answer every combination.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.archive.votable import FIELDS, is_null
from builder.model.columns import CATALOG
from builder.model.errors import SettingError

__all__ = ["TABLES", "Catalog", "Result"]

_MASTER, _OBSERVATION = "csc21.master_source", "csc21.observation_source"

TABLES = {
    _MASTER: {column.name for column in CATALOG if column.query.startswith("m.")},
    "csc21.master_stack_assoc": {"name", "match_type"},
    "csc21.stack_source": set[str](),
    "csc21.stack_observation_assoc": {"obsid", "obi"},
    _OBSERVATION: {column.name for column in CATALOG if column.query.startswith("o.")},
}
"""The tables, and their columns whose values the rows hold."""

# Stacks are not in the rows: these columns can be joined on and nothing else (a stack numbers its own regions).
_KEYS = {
    "csc21.master_stack_assoc": {"detect_stack_id", "region_id"},
    "csc21.stack_source": {"detect_stack_id", "region_id"},
    "csc21.stack_observation_assoc": {"detect_stack_id", "region_id"},
}

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>'(?:[^']|'')*')
          |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
          |(?P<word>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
          |(?P<mark><=|>=|<>|!=|[=<>(),*]))""",
    re.VERBOSE,
)

_COMPARISONS: dict[str, Callable[[Any, Any], NDArray[np.bool_]]] = {
    "=": np.equal,
    "<>": np.not_equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}

_RESERVED = {"WHERE", "ORDER", "JOIN", "INNER", "LEFT", "RIGHT", "FULL", "NATURAL", "CROSS", "ON", "GROUP", "HAVING"}
_BEFORE_PARENTHESIS = {"COUNT", "IN", "AND", "OR", "NOT", "WHERE"}

Value = float | str
Condition = Callable[["Catalog"], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Result:
    """What a query selects: the output names, the rows, and whether the row limit cut them short."""

    names: list[str]
    rows: list[dict[str, object]]
    overflow: bool


@dataclass(frozen=True, slots=True)
class _Query:
    top: int | None
    columns: dict[str, str]  # output name -> column; COUNT(*) is the column '*'
    sources_only: bool  # the master table alone: one row a source, not one a detection
    where: Condition
    order: list[tuple[str, bool]]  # column, descending


class Catalog:
    """A catalog that can be queried.

    Parameters
    ----------
    rows : sequence of mapping
        One a detection, under the bare column names of `builder.archive.votable.FIELDS`; None, NaN and missing keys are
        null. Without a ``match_type`` a row is of a unique match, ``'u'``.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        self.rows = rows
        self._columns: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}

    def column(self, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The values of a column as one array (strings, or float64) and the mask of its nulls."""
        if name not in self._columns:
            values = [row.get(name, "u" if name == "match_type" else None) for row in self.rows]
            null = np.array([is_null(value) for value in values], dtype=bool)
            array: NDArray[Any]
            if _is_text(name):
                array = np.array(["" if is_null(value) else str(value) for value in values], dtype=str)
            else:
                array = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            self._columns[name] = (array, null)
        return self._columns[name]

    def query(self, text: str, limit: int | None = None) -> Result:
        """Run a query.

        Parameters
        ----------
        text : str
        limit : int, optional
            Row limit; a result that would have more is cut there and called an overflow.

        Raises
        ------
        SettingError
            If the query is not understood.
        """
        try:
            query = _Parser(text).query()
        except RecursionError:
            raise SettingError("parentheses are nested too deeply") from None
        chosen = np.flatnonzero(query.where(self))
        if query.sources_only:
            _, first = np.unique(self.column("name")[0][chosen], return_index=True)
            chosen = chosen[np.sort(first)]
        if list(query.columns.values()) == ["*"]:
            return Result(list(query.columns), [dict.fromkeys(query.columns, int(chosen.size))], overflow=False)
        for name, descending in reversed(query.order):
            # Stable both ways, so that the keys before can be sorted by after.
            step = -1 if descending else 1
            chosen = chosen[::step]
            chosen = chosen[np.argsort(self.column(name)[0][chosen], kind="stable")][::step]
        chosen = chosen[: query.top]
        cut = chosen[:limit]
        picked = [self.rows[index] for index in cut]
        rows = [{output: row.get(name) for output, name in query.columns.items()} for row in picked]
        return Result(list(query.columns), rows, overflow=cut.size < chosen.size)


class _Parser:
    """One query's tokens, read from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        text, at = text.rstrip(), 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise SettingError(f"unexpected {text[at:].strip()[:20]!r}")
            self._tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            at = match.end()
        self._tokens.append(("end", "the end of the query"))
        for (kind, word), (_, following) in pairwise(self._tokens):
            if kind == "word" and following == "(" and word.upper() not in _BEFORE_PARENTHESIS:
                raise SettingError(f"{word} not found")  # what the real service says of the geometry functions
        self._at = 0
        self._tables: dict[str, str] = {}  # alias -> table
        self._joined: list[set[str]] = []  # aliases that join conditions connect

    def query(self) -> _Query:
        self._expect("SELECT")
        top = self._count() if self._accept("TOP") else None
        selected = [self._selected()]
        while self._accept(","):
            selected.append(self._selected())
        self._expect("FROM")
        self._table()
        while self._accept(","):
            self._table()
        self._joined = [{alias} for alias in self._tables]
        where = self._any() if self._accept("WHERE") else _everything
        order = self._order() if self._accept("ORDER") else []
        if self._peek()[0] != "end":
            raise self._unexpected()
        columns = {output: "*" if name == "*" else self._resolve(name) for name, output in selected}
        if len(columns) < len(selected):
            raise SettingError("two columns of the result have the same name")
        if "*" in columns.values() and len(columns) > 1:
            raise SettingError("COUNT(*) beside columns needs GROUP BY, which is not supported")
        if len(self._joined) > 1:
            raise SettingError(f"no join condition between {' and '.join(min(group) for group in self._joined)}")
        sources_only = list(self._tables.values()) == [_MASTER]
        if not sources_only and _OBSERVATION not in self._tables.values():
            raise SettingError(f"FROM needs {_OBSERVATION}, or {_MASTER} alone")
        return _Query(top, columns, sources_only, where, order)

    def _selected(self) -> tuple[str, str]:
        """One item of SELECT: the column as it was written, or '*' for COUNT(*), and its name in the result."""
        name = self._word()
        if name.upper() == "COUNT":
            for mark in "(*)":
                self._expect(mark)
            name, output = "*", "COUNT"
        else:
            output = name.rpartition(".")[2].lower()
        return name, self._word() if self._accept("AS") else output

    def _table(self) -> None:
        table = self._word().lower()
        if table not in TABLES:
            raise SettingError(f"table {table} not found")
        self._accept("AS")
        kind, word = self._peek()
        alias = self._word().lower() if kind == "word" and word.upper() not in _RESERVED else table.rpartition(".")[2]
        if alias in self._tables:
            raise SettingError(f"{alias} names two tables")
        self._tables[alias] = table

    def _order(self) -> list[tuple[str, bool]]:
        self._expect("BY")
        order = []
        while True:
            name = self._resolve(self._word())
            order.append((name, not self._accept("ASC") and self._accept("DESC")))
            if not self._accept(","):
                return order

    def _any(self) -> Condition:
        conditions = [self._all()]
        while self._accept("OR"):
            conditions.append(self._all())
        return lambda catalog: np.logical_or.reduce([condition(catalog) for condition in conditions])

    def _all(self) -> Condition:
        conditions = [self._condition()]
        while self._accept("AND"):
            conditions.append(self._condition())
        return lambda catalog: np.logical_and.reduce([condition(catalog) for condition in conditions])

    def _condition(self) -> Condition:
        if self._accept("("):
            condition = self._any()
            self._expect(")")
            return condition
        written = self._word()
        if self._peek()[1] == "=" and self._peek(1)[0] == "word":
            self._at += 1
            return self._join(written, self._word())
        name = self._resolve(written)
        if self._accept("IS"):
            wanted = not self._accept("NOT")
            self._expect("NULL")
            return lambda catalog: catalog.column(name)[1] == wanted
        if self._accept("BETWEEN"):
            low = self._value(name)
            self._expect("AND")
            high = self._value(name)
            return lambda catalog: _not_null(catalog, name, lambda values: (values >= low) & (values <= high))
        if self._accept("IN"):
            self._expect("(")
            listed = [self._value(name)]
            while self._accept(","):
                listed.append(self._value(name))
            self._expect(")")
            return lambda catalog: _not_null(catalog, name, lambda values: np.isin(values, listed))
        compare = _COMPARISONS.get(self._peek()[1])
        if compare is None:
            raise self._unexpected()
        self._at += 1
        value = self._value(name)
        return lambda catalog: _not_null(catalog, name, lambda values: compare(values, value))

    def _join(self, left: str, right: str) -> Condition:
        aliases = []
        for written in (left, right):
            alias, _, column = written.lower().rpartition(".")
            table = self._tables.get(alias, "")
            if column not in TABLES.get(table, set()) | _KEYS.get(table, set()):
                raise SettingError(f"column {written} not found")
            aliases.append(alias)
        if left.lower().rpartition(".")[2] != right.lower().rpartition(".")[2] or aliases[0] == aliases[1]:
            raise SettingError(f"{left} = {right} is no join of two tables by the same key")
        groups = [group for group in self._joined if group & set(aliases)]
        self._joined = [group for group in self._joined if group not in groups] + [set[str]().union(*groups)]
        return _everything

    def _resolve(self, written: str) -> str:
        """The bare name of a column, with or without its table's alias."""
        alias, _, column = written.lower().rpartition(".")
        tables = [self._tables.get(alias, "")] if alias else self._tables.values()
        if not any(column in TABLES.get(table, set()) for table in tables):
            raise SettingError(f"column {written} not found")
        return column

    def _value(self, column: str) -> Value:
        """A literal that can be compared with the column."""
        kind, word = self._peek()
        if kind not in ("string", "number"):
            raise self._unexpected()
        if (kind == "string") != _is_text(column):
            raise SettingError(f"{column} cannot be compared with {word}")
        self._at += 1
        return word[1:-1].replace("''", "'") if kind == "string" else float(word)

    def _count(self) -> int:
        _, word = self._peek()
        if not word.isdecimal():
            raise self._unexpected()
        self._at += 1
        return int(word)

    def _word(self) -> str:
        kind, word = self._peek()
        if kind != "word":
            raise self._unexpected()
        self._at += 1
        return word

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def _accept(self, word: str) -> bool:
        kind, found = self._peek()
        if kind not in ("word", "mark") or found.upper() != word:
            return False
        self._at += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise SettingError(f"expected {word}, found {self._peek()[1]}")

    def _unexpected(self) -> SettingError:
        return SettingError(f"unexpected {self._peek()[1]}")


def _is_text(column: str) -> bool:
    return column == "match_type" or FIELDS[column].datatype == "char"


def _everything(catalog: Catalog) -> NDArray[np.bool_]:
    return np.ones(len(catalog.rows), dtype=bool)


def _not_null(catalog: Catalog, name: str, compare: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """A comparison with a null is neither true nor false: the row is not selected."""
    values, null = catalog.column(name)
    return compare(values) & ~null
