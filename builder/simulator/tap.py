"""The catalog's service: TAP over the rows of some holdings, synchronous and as jobs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from xml.sax.saxutils import escape

from builder.archive.votable import write_votable
from builder.model.errors import SettingError
from builder.model.releases import Release
from builder.simulator.adql import Catalog
from builder.simulator.habits import MISSING_COLUMNS, SILENT_ROWS
from builder.simulator.reply import Reply
from builder.simulator.sky import MORE, SERVED

_VOTABLE = "application/x-votable+xml"
_LIST = re.compile(
    r"\s*SELECT\s+(table_name\s*,\s*column_name[\w\s,]*?)\s+FROM\s+TAP_SCHEMA\.columns\s*", re.IGNORECASE
)
_COUNT = re.compile(r"\s*SELECT\s+COUNT\b", re.IGNORECASE)
_RANGE = re.compile(r"\bobsid\s+(BETWEEN|IN)\b", re.IGNORECASE)
_TABLES = {"m": "master_source", "o": "observation_source"}


class TapService:
    """One release's service.

    Parameters
    ----------
    max_rows : int, optional
        Row limit; a longer answer is cut there and says OVERFLOW.
    error_status : int
        Status of the answer to a bad query.
    """

    def __init__(
        self, release: Release, catalog: Catalog, habits: frozenset[str], max_rows: int | None, error_status: int
    ) -> None:
        self.release, self.habits, self.max_rows = release, habits, max_rows
        self.error_status = 400 if "status-400" in habits else error_status
        self._catalog = catalog
        self._queries: dict[str, tuple[str, int | None]] = {}
        lacking = MISSING_COLUMNS if {"fewer-columns", "no-tables"} & habits else frozenset[str]()
        self._columns = [
            {
                "table_name": f"{release.schema}.{_TABLES[column.query[0]]}",
                "column_name": column.name,
                "description": column.meaning,
                "unit": column.unit,
                "ucd": column.ucd,
            }
            for column in SERVED
            if column.name not in lacking
        ]
        words = "|".join(lacking) or "(?!)"
        self._unknown = re.compile(rf"\b[mo]\.({words})\b")

    def reply(self, path: str, parameters: Mapping[str, str]) -> Reply:
        """Answer a request for a path below the service's."""
        given = {name.upper(): value for name, value in parameters.items()}  # TAP's names have no case
        first, _, rest = path.partition("/")
        if first in ("sync", "async") and not rest:
            return self._asked(first, given)
        if first == "results":
            return self._results(rest)
        if first == "async":
            job, _, part = rest.partition("/")
            if job in self._queries:
                return self._results(job) if part == "results/result" else self._job(job)
        if first == "tables" and not rest and "no-tables" not in self.habits:
            return self._tables()
        return Reply(f"/{self.release.service}/{path}", b"There is nothing here.\n", status=404)

    def _asked(self, service: str, given: Mapping[str, str]) -> Reply:
        for name, expected in (("REQUEST", "doQuery"), ("LANG", "ADQL")):
            if given.get(name) != expected:
                return self._bad_query(service, f"{name} must be {expected}")
        limit = given.get("MAXREC")
        if limit is not None and not limit.isdecimal():
            return self._bad_query(service, f"MAXREC={limit} is not a number of rows")
        query = (given.get("QUERY", ""), None if limit is None else int(limit))
        name = hashlib.sha256(repr(query).encode()).hexdigest()[:24]
        self._queries[name] = query
        place = "results" if service == "sync" else "async"
        slow = service == "sync" and self._is_slow(query[0])
        location = f"/{self.release.service}/{place}/{name}"
        return Reply(service, b"", status=HTTPStatus.SEE_OTHER, location=location, slow=slow)

    def _is_slow(self, query: str) -> bool:
        if _LIST.match(query):
            return False
        if _COUNT.match(query):
            return "slow-count" in self.habits
        return "slow-ranges" in self.habits or ("slow-join" in self.habits and not _RANGE.search(query))

    def _results(self, name: str) -> Reply:
        if name not in self._queries:
            return Reply("results", b"There is no such result.\n", status=404)
        query, maxrec = self._queries[name]
        if listed := _LIST.fullmatch(query):
            return self._list(re.findall(r"\w+", listed[1]))
        if _COUNT.match(query) and "no-count" in self.habits:
            return self._bad_query("results", "Function COUNT not found")
        if unknown := self._unknown.search(query):
            return self._bad_query("results", f"column {unknown[0]} not found")
        limit = min((limit for limit in (self.max_rows, maxrec) if limit is not None), default=None)
        silent = "silent-limit" in self.habits
        limit = min(limit or SILENT_ROWS, SILENT_ROWS) if silent else limit
        # The tables are made once, in the schema of 2.1.
        text = re.sub(rf"\b{self.release.schema}\.", "csc21.", query.replace("csc21.", "elsewhere."))
        try:
            result = self._catalog.query(query if self.release.schema == "csc21" else text, limit)
        except SettingError as error:
            return self._bad_query("results", str(error))
        overflow = result.overflow and not silent
        return Reply("results", write_votable(result.names, result.rows, MORE, overflow=overflow), _VOTABLE)

    def _bad_query(self, service: str, reason: str) -> Reply:
        return Reply(service, write_votable([], [], error=reason), _VOTABLE, self.error_status)

    def _list(self, names: list[str]) -> Reply:
        if "no-tables" in self.habits:
            return self._bad_query("results", "table TAP_SCHEMA.columns not found")
        return Reply("results", write_votable(names, self._columns), _VOTABLE)

    def _tables(self) -> Reply:
        """List the tables as VOSI 1.1 does."""
        tables: dict[str, list[str]] = {}
        for column in self._columns:
            words = f"<column><name>{escape(column['column_name'])}</name></column>"
            tables.setdefault(column["table_name"], []).append(words)
        body = "".join(f"<table><name>{name}</name>{''.join(found)}</table>" for name, found in tables.items())
        text = (
            '<vosi:tableset xmlns:vosi="http://www.ivoa.net/xml/VOSITables/v1.0">'
            f"<schema><name>{self.release.schema}</name>{body}</schema></vosi:tableset>\n"
        )
        return Reply("tables", text.encode(), "text/xml")

    def _job(self, name: str) -> Reply:
        """Tell of a job as UWS 1.1 does; it is done at once."""
        text = (
            '<uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" version="1.1">'
            f"<uws:jobId>{name}</uws:jobId><uws:phase>COMPLETED</uws:phase></uws:job>\n"
        )
        return Reply("job", text.encode(), "text/xml")


def with_bad_row(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Add a row that names no detection."""
    return [*rows, *({**row, "name": f"{row['name']} x", "obsid": 1_000_000} for row in rows[:1])]
