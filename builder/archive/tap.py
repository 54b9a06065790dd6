"""The catalog service: one query by TAP, and what to do where the service does not answer it as it is.

TAP 1.1 (ivo://ivoa.net/std/TAP), of which the service is known to take synchronous queries.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode
from xml.etree import ElementTree

import pyarrow as pa
import requests

from builder.archive.answers import check_document, check_votable
from builder.archive.catalog import count_of, read_texts, read_votable
from builder.archive.http import Client, Request
from builder.archive.interface import Record, forget
from builder.archive.packages import Origin
from builder.model.column import Column
from builder.model.columns import ASKED
from builder.model.errors import ArchiveError, CatalogError, QueryError, RefusedError, TooSlowError, UnavailableError
from builder.model.own import described, own_column, own_columns, said_of
from builder.model.releases import Release
from builder.model.selection import Selection

logger = logging.getLogger(__name__)

_MAX_BYTES = 4 * 2**30
_LAST_OBSID = 999_999
_USUAL_OBSID = 32_000
"""Observations are numbered from 1; those of the releases so far end below this."""

_LEFT = 86_400
"""Seconds after which an answer that nobody removed is nobody's: it is read as soon as it is there."""

_POLLS = (2.0, 60.0)
"""Seconds between the first looks at an asynchronous query, and between the later ones."""

_JOB_TIMES = 4
"""Waits for a synchronous query that an asynchronous one may take."""

PROVEN = (
    *("name", "ra", "dec", "obsid", "obi", "region_id", "src_cnts_aper_b", "flux_significance_b", "flux_aper_b"),
    *("theta", "flux_bb_aper_b", "gti_mjd_obs", "hard_hm", "hard_hs", "hard_ms", "var_prob_b", "var_index_b"),
)
"""Columns that public clients have had from the service."""

_TABLES = {"m": "master_source", "o": "observation_source"}


@dataclass
class CatalogService:
    """The TAP service of one release.

    Attributes
    ----------
    base : str
        Base URL of the archive.
    slot : callable
        Gives a folder and a session with one connection, for as long as they are used.
    folder : Path
        Where answers are kept until they are read.
    columns : tuple of Column
        Columns of the dataset that are asked for.
    own : tuple of str
        Other columns that are asked for, such as ``m.gal_l``.
    """

    client: Client
    base: str
    release: Release
    slot: Callable[[], AbstractContextManager[tuple[Path, requests.Session]]]
    folder: Path
    columns: tuple[Column, ...] = ASKED
    own: tuple[str, ...] = ()
    _limit: int = 0
    _counts: bool = True
    _needed: set[str] = field(default_factory=set)

    @property
    def address(self) -> str:
        """Base URL of the service."""
        return f"{self.base}/{self.release.service}"

    def rows(self, selection: Selection, record: Record, own: Sequence[str] = ()) -> tuple[pa.Table, Origin]:
        """Ask for at least the selected rows, with the service's own columns, such as ``m.gal_l``, that are wanted.

        Raises
        ------
        CatalogError
            If the service reports an error, or the rows do not add up to its own ``COUNT(*)``.
        ArchiveError
            If no answer comes.
        """
        self._needed, self.own = selection.columns, tuple(own)
        answers: list[pa.Table] = []
        for query in selection.queries(self.release.schema):
            answers += self._whole(query, record)
        rows = pa.concat_tables(answers)
        if own:
            rows = self._described(rows, record)
        missing = tuple(column.name for column in ASKED if column not in self.columns)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        origin = Origin(self.address, self.release.schema, self.release.version, today, missing)
        if selection.positions:  # the boxes of two queries may overlap
            described = rows.schema
            rows = rows.group_by(rows.column_names, use_threads=False).aggregate([]).cast(described)
        return rows, origin

    def _whole(self, query: str, record: Record) -> list[pa.Table]:
        """Ask for all rows of a query: at once, or in ranges of obsid where the service cuts it or takes too long."""
        try:
            table, cut = self._select(query, (0, _LAST_OBSID), record)
        except TooSlowError as error:
            logger.warning("%s; asking for it in ranges of observations", error)
            return self._halves(query, (0, _LAST_OBSID), None, record)
        if not cut:
            counted = self._count(query, record)
            if counted is None or counted == len(table):
                return [table]
            if counted < len(table):
                raise CatalogError(
                    f"{self.base} counts {counted} rows but answered {len(table)}: run the command again"
                )
            self._limit = len(table)  # without a word: parts as long are cut, too
        parts = self._halves(query, (0, _LAST_OBSID), table, record)
        found = sum(len(part) for part in parts)
        if not cut and counted != found:
            raise CatalogError(f"{self.base} counts {counted} rows but answered {found}: run the command again")
        return parts

    def _halves(self, query: str, ends: tuple[int, int], table: pa.Table | None, record: Record) -> list[pa.Table]:
        middle = _middle(table, *ends)
        parts = []
        for first, last in ((ends[0], middle), (middle + 1, ends[1])):
            try:
                part, cut = self._select(query, (first, last), record)
            except TooSlowError as error:
                logger.warning("%s; asking for it as a job", error)
                part, cut = self._select(query, (first, last), record, self._job)
            if not cut:
                parts.append(part)
            elif first == last:
                raise CatalogError(f"{self.base}: observation {first} alone exceeds the service's row limit")
            else:
                parts += self._halves(query, (first, last), part, record)
        return parts

    def _select(
        self,
        query: str,
        ends: tuple[int, int],
        record: Record,
        ask: Callable[[str, Record], AbstractContextManager[Path]] | None = None,
    ) -> tuple[pa.Table, bool]:
        """Ask for the rows of a range of observations, and tell whether there are more."""
        own = [column.partition(".")[2] for column in self.own]
        limits = "" if ends == (0, _LAST_OBSID) else f" AND o.obsid BETWEEN {ends[0]} AND {ends[1]}"
        while True:
            names = ", ".join((*(column.query for column in self.columns), *self.own))
            try:
                with (ask or self._answer)(f"SELECT {names} {query}{limits}", record) as path:
                    table, cut = read_votable(path, self.base, needed=self._needed.union(own), own=own)
            except QueryError as error:
                if not self._ask_for_less(error, record):
                    raise
                continue
            return table, cut or bool(self._limit and len(table) >= self._limit)

    def _ask_for_less(self, error: QueryError, record: Record) -> bool:
        """Leave out columns that the service does not have; False where there are none to leave out."""
        before = self.columns
        if before == ASKED:
            listed = self.listed_columns(record)
            kept = before
            if listed is not None:
                if unknown := [column for column in self.own if _listed_as(column) not in listed]:
                    raise CatalogError(f"{self.base} has no column {unknown[0]}{_similar(unknown[0], listed)}")
                kept = tuple(column for column in ASKED if column.name not in self.not_in(listed))
            if kept == before:
                kept = tuple(column for column in ASKED if column.name in PROVEN)
        else:
            kept = tuple(column for column in before if column.name in PROVEN)
        if lost := self._needed - {column.name for column in kept}:
            raise CatalogError(f"{error}; it does not list {', '.join(sorted(lost))}, which the selection needs")
        self.columns = kept
        return kept != before

    def _described(self, rows: pa.Table, record: Record) -> pa.Table:
        """Describe own columns by the service's own list, where its answers do not."""
        silent = [column for column in own_columns(rows.schema) if not column.meaning]
        said: dict[tuple[str, str], dict[str, str]] = {}
        if silent:
            query = "SELECT table_name, column_name, description, unit, ucd FROM TAP_SCHEMA.columns"
            with contextlib.suppress(ArchiveError), self._answer(query, record, alive=True) as path:
                for row in read_texts(path, self.base)[0].to_pylist():
                    place = _bare(row["table_name"]), _bare(row["column_name"])
                    said[place] = {key: (row.get(key) or "").strip() for key in ("description", "unit", "ucd")}
        for query in self.own:
            table, name = _listed_as(query)
            number = rows.schema.get_field_index(name)
            field = rows.schema.field(number)
            known = {key: text for key, text in said_of(field).items() if text}
            words = {**said.get((table, name), {}), **known, "source": f"CSC {table}.{name}"}
            words["description"] = words.get("description") or f"{name} of the catalog's {table}"
            column = own_column(name, field.type, words)
            rows = rows.set_column(number, described(field, column), rows[name])
        return rows

    def listed_columns(self, record: Record = forget) -> set[tuple[str, str]] | None:
        """Ask for the service's own list of its columns, with their tables; None where it gives none."""
        query = "SELECT table_name, column_name FROM TAP_SCHEMA.columns"
        with contextlib.suppress(ArchiveError), self._answer(query, record, alive=True) as path:
            rows, _ = read_texts(path, self.base)
            if found := {(_bare(r["table_name"]), _bare(r["column_name"])) for r in rows.to_pylist()}:
                return found
        with contextlib.suppress(ArchiveError, ElementTree.ParseError):
            path = self.download(Request(f"{self.address}/tables", check_document, _MAX_BYTES), alive=True)
            try:
                return _columns_of(path) or None
            finally:
                path.unlink(missing_ok=True)
        return None

    @staticmethod
    def not_in(listed: set[tuple[str, str]]) -> list[str]:
        """Name columns of the dataset that are not in the service's own list."""
        return [column.name for column in ASKED if (_TABLES[column.query[0]], column.name) not in listed]

    def _count(self, query: str, record: Record) -> int | None:
        """Ask for the service's own number of the rows; None where it does not count."""
        if not self._counts:
            return None
        try:
            with self._answer(f"SELECT COUNT(*) AS n {query}", record, alive=True) as path:
                return count_of(path, self.base)
        except ArchiveError as error:
            logger.info("the catalog does not count its rows (%s): they are taken as they come", error)
            self._counts = False
            return None

    @contextlib.contextmanager
    def _answer(self, query: str, record: Record, alive: bool = False) -> Iterator[Path]:
        """Ask a query; QueryError where it is refused."""
        form = urlencode({"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": query})
        request = Request(f"{self.address}/sync?{form}", check_votable, _MAX_BYTES, "POST", slow=True)
        with self._kept(request, record, alive) as path:
            yield path

    @contextlib.contextmanager
    def _kept(self, request: Request, record: Record, alive: bool = False) -> Iterator[Path]:
        try:
            path = self.download(request, alive)
        except RefusedError as error:
            raise QueryError(f"{self.base}: the catalog says: {error}") from error
        try:
            record(request.url, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def download(self, request: Request, alive: bool = False) -> Path:
        """Download one answer of the service; errors as `Client.download`.

        Parameters
        ----------
        alive : bool
            The service was seen to answer just now, so that three failures are enough.
        """
        with self.slot() as (folder, session):
            for left in self.folder.glob("*.vot"):  # by runs that were killed
                with contextlib.suppress(FileNotFoundError):
                    if left.stat().st_mtime < time.time() - _LEFT:
                        left.unlink()
            self.client.download(session, request, folder / "catalog.vot", lambda: alive)
            # Out of the slot, which whoever takes it next empties.
            return (folder / "catalog.vot").replace(self.folder / f"{uuid.uuid4().hex}.vot")

    # -- jobs (UWS 1.1)

    @contextlib.contextmanager
    def _job(self, query: str, record: Record) -> Iterator[Path]:
        """Ask a query as a job."""
        form = urlencode({"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": query, "PHASE": "RUN"})
        job = self._state(Request(f"{self.address}/async?{form}", check_document, _MAX_BYTES, "POST"))
        address = f"{self.address}/async/{job['jobId']}"
        if job["phase"] == "PENDING":
            self._state(Request(f"{address}/phase?PHASE=RUN", check_document, _MAX_BYTES, "POST"), address)
        begun, pause = self.client.clock(), _POLLS[0]
        while job["phase"] in ("PENDING", "QUEUED", "EXECUTING", "SUSPENDED", "HELD", "UNKNOWN"):
            if self.client.clock() - begun > _JOB_TIMES * self.client.patience.query:
                raise UnavailableError(f"{address} is still {job['phase']}; run the same command again to go on")
            self.client.sleep(pause)
            pause = min(1.5 * pause, _POLLS[1])
            job = self._state(Request(address, check_document, _MAX_BYTES))
        if job["phase"] != "COMPLETED":
            raise QueryError(f"{self.base}: the catalog says: {job['said'] or job['phase']}")
        with self._kept(Request(f"{address}/results/result", check_votable, _MAX_BYTES, slow=True), record) as path:
            yield path

    def _state(self, request: Request, address: str = "") -> dict[str, str]:
        """Read id, phase and error of a job."""
        path = self.download(request)
        try:
            root = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise CatalogError(f"{self.address}/async did not answer a job: {error}") from error
        finally:
            path.unlink(missing_ok=True)
        found = {_tag(node): " ".join("".join(node.itertext()).split()) for node in root.iter()}
        if not re.fullmatch(r"[\w.~-]+", found.get("jobId", "")):
            raise CatalogError(f"{self.address}/async did not answer a job")
        return {"jobId": found["jobId"], "phase": found.get("phase", "UNKNOWN"), "said": found.get("errorSummary", "")}


def _middle(table: pa.Table | None, first: int, last: int) -> int:
    """Find the obsid that divides a range: the median of the rows that came, where that divides it at all."""
    obsids = (
        [] if table is None else sorted(o for o in table["obsid"].to_pylist() if o is not None and first <= o < last)
    )
    if obsids:
        return int(obsids[len(obsids) // 2])
    return (first + (_USUAL_OBSID if first < _USUAL_OBSID < last else last)) // 2


def _listed_as(query: str) -> tuple[str, str]:
    """Give the table and the name of a column that is asked for as ``m.gal_l``."""
    table, _, name = query.partition(".")
    return _TABLES[table], name


def _similar(query: str, listed: set[tuple[str, str]]) -> str:
    """Name columns of the two tables that may be meant."""
    _, name = _listed_as(query)
    known = {name: f"{letter}.{name}" for letter, table in _TABLES.items() for found, name in listed if found == table}
    meant = [known[near] for near in difflib.get_close_matches(name, known, 3)]
    return f": did you mean {' or '.join(meant)}?" if meant else ""


def _bare(name: str | None) -> str:
    return (name or "").strip().strip('"').rpartition(".")[2].lower()


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]


def _columns_of(path: Path) -> set[tuple[str, str]]:
    """Read the tables and columns of a VOSI tableset."""
    found = set()
    for table in ElementTree.parse(path).getroot().iter():
        if _tag(table) == "table":
            names = [_bare(child.text) for child in table if _tag(child) == "name"]
            columns = [child for child in table if _tag(child) == "column"]
            found |= {(names[0], _bare(name.text)) for c in columns for name in c if _tag(name) == "name" and names}
    return found
