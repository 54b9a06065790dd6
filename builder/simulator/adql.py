"""The catalog's tables in SQLite, for queries in ADQL.

ADQL is SQL but for ``TOP n``. What SQLite has and the service has not, or is fussy about, is refused: functions other
than COUNT, JOIN, LIMIT, double quotes, and all that is no query. A query that goes through far more than the tables
hold, as one without join conditions does, is stopped.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from builder.model.errors import SettingError
from builder.simulator.sky import SERVED

_COLUMNS = {table: [column.name for column in SERVED if column.query.startswith(table)] for table in "mo"}

# Columns, and the keys by which one row is found. Every observation is a stack of its own, and every match unique.
_TABLES = {
    "master_source": (_COLUMNS["m"], ["name"]),
    "master_stack_assoc": (
        ["name", "detect_stack_id", "region_id", "match_type"],
        ["name, detect_stack_id, region_id", "detect_stack_id, region_id, name"],
    ),
    "stack_source": (["detect_stack_id", "region_id"], ["detect_stack_id, region_id"]),
    "stack_observation_assoc": (
        ["detect_stack_id", "obsid", "obi", "region_id"],
        ["detect_stack_id, region_id, obsid, obi", "obsid, obi, region_id"],
    ),
    "observation_source": (_COLUMNS["o"], ["obsid, obi, region_id"]),
}

_START = re.compile(r"\s*SELECT\b(?:\s+TOP\s+(\d+)\b)?", re.IGNORECASE)
_REFUSED = re.compile(r"'(?:[^']|'')*'|(\b(?:JOIN|LIMIT|OFFSET|UNION|GLOB|REGEXP)\b|[\";`\[]|--|/\*)", re.IGNORECASE)
_UNKNOWN = re.compile(r"(?:no such|not authorized to use) (?:function|(table|column)): (.+)")

# Instructions of SQLite's machine that a query may take; the join of the five tables takes about 80 a row.
_STEP, _FIXED, _A_ROW = 10_000, 1_000_000, 300


class Result(NamedTuple):
    """Result of a query: the output names, the rows, and whether the row limit cut them short."""

    names: list[str]
    rows: list[dict[str, object]]
    overflow: bool


class Catalog:
    """A catalog to be queried, from several threads at once; its tables are made at the first query.

    Parameters
    ----------
    rows : sequence of mapping
        One a detection, by the names of `SERVED`; None, NaN and missing keys are null. Of several rows with the same
        key the first is taken.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        self._rows = rows
        self._lock = threading.Lock()

    def query(self, text: str, limit: int | None = None) -> Result:
        """Run a query.

        Parameters
        ----------
        limit : int, optional
            Row limit; a result that would have more is cut there and called an overflow.

        Raises
        ------
        SettingError
            If the query is not understood, or stopped.
        """
        start = _START.match(text)
        if start is None:
            raise SettingError("expected SELECT")
        if refused := next(filter(None, (match[1] for match in _REFUSED.finditer(text))), None):
            raise SettingError(f"unexpected {refused}")
        top = int(start[1] or sys.maxsize)
        end = top if limit is None else min(top, limit + 1)
        with self._lock:
            steps = itertools.count(-(_FIXED + _A_ROW * len(self._rows)) // _STEP)
            self._database.set_progress_handler(lambda: next(steps) >= 0, _STEP)
            try:
                cursor = self._database.execute(f"SELECT {text[start.end() :]}")
                names = [str(column[0]) for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in itertools.islice(cursor, min(end, sys.maxsize))]
            except (sqlite3.Error, sqlite3.Warning) as error:
                if str(error) == "interrupted":
                    raise SettingError("the query takes too long; is a join condition missing?") from error
                reason = _UNKNOWN.sub(lambda match: f"{match[1] or ''} {match[2]} not found".lstrip(), str(error))
                raise SettingError(reason) from error
        if len(set(names)) < len(names):
            raise SettingError("two columns of the result have the same name")
        return Result(names, rows[:limit], limit is not None and limit < len(rows))

    @cached_property
    def _database(self) -> sqlite3.Connection:
        database = sqlite3.connect(":memory:", check_same_thread=False)
        database.execute("ATTACH ':memory:' AS csc21")
        names = [column.name for column in SERVED]
        made = "detect_stack_id AS (obsid || '_' || obi), match_type AS ('u')"
        # Without types: a number never equals the text that spells it, and what goes in comes out.
        database.execute(f"CREATE TABLE detection ({', '.join(names)}, {made})")
        values = ([row.get(name) for name in names] for row in self._rows)
        database.executemany(f"INSERT INTO detection VALUES ({', '.join('?' * len(names))})", values)
        for table, (columns, keys) in _TABLES.items():
            listed, unique = ", ".join(columns), "".join(f", UNIQUE ({key})" for key in keys)
            database.execute(f"CREATE TABLE csc21.{table} ({listed}{unique})")
            database.execute(f"INSERT OR IGNORE INTO csc21.{table} SELECT {listed} FROM detection")
        database.execute("DROP TABLE detection")
        database.commit()
        database.set_authorizer(_permission)
        return database


def _permission(action: int, one: str | None, two: str | None, *_: str | None) -> int:
    """Decide what a query may do, as SQLite's authorizer: read the tables, and count."""
    reads = action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and one in _TABLES)
    counts = action == sqlite3.SQLITE_FUNCTION and str(two).upper() == "COUNT"
    return sqlite3.SQLITE_OK if reads or counts else sqlite3.SQLITE_DENY
