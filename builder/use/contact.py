"""First contact with an archive: a few small requests that show whether and how it can be asked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pyarrow as pa
import requests

from builder.archive.answers import Contents, ProductCheck, check_votable
from builder.archive.catalog import read_texts
from builder.archive.collector import parsed_listing
from builder.archive.csccli import BANDS, FILETYPES, Facts, PackageService
from builder.archive.http import Client, Patience, Request
from builder.archive.packages import DETECTION_BYTES, RMF_BYTES
from builder.archive.products import KINDS
from builder.archive.recording import recorded_session, write_recording
from builder.archive.tap import CatalogService
from builder.model.errors import ArchiveError, ChandraSpectraError, SettingError
from builder.model.ids import DetectionId
from builder.model.releases import release_of
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CONNECTIONS, Settings
from builder.model.text import size_text

_OBSID = 4938
"""An observation that all releases have: one of the two whose files come with Sherpa is of it."""

_DEFAULT_DETECTIONS, _DEFAULT_OBSERVATIONS = 130_000, 10_000
"""Of the default selection, about."""

_PATIENCE = Patience(connect=10, read=60, query=120, total=60)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one question."""

    asked: str
    came: str
    good: bool
    seconds: float


def check_archive(settings: Settings, save: Path | None = None) -> Iterator[Finding]:
    """Ask an archive a few small things, one after the other.

    Parameters
    ----------
    settings : Settings
        Archive and release.
    save : Path, optional
        File for all requests and answers.

    Yields
    ------
    Finding
        The last says whether `prepare` would work.

    Raises
    ------
    SettingError
        If the archive is not one over HTTP.
    OutputError
        If the file cannot be written.
    """
    if settings.from_mirror or not settings.archive.startswith("http"):
        raise SettingError(f"archive {settings.archive!r} is on this machine: check asks one at an http(s) address")
    folder = Path(tempfile.mkdtemp(prefix="chandra-spectra-check-"))
    try:
        with recorded_session() as session:
            contact = _Contact(settings, session, folder)
            try:
                yield from contact.all()
            finally:
                if save is not None:
                    write_recording(save, settings.archive.rstrip("/"), session.entries)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Contact:
    settings: Settings
    session: requests.Session
    folder: Path
    detection: DetectionId | None = None
    works: set[str] = field(default_factory=set)
    speed: float = 0.0

    def __post_init__(self) -> None:
        base = self.settings.archive.rstrip("/")
        release = release_of(self.settings.release)
        self.client = Client(base, _PATIENCE)
        self.catalog = CatalogService(self.client, base, release, self._slot, self.folder)
        self.packages = PackageService(self.client, base, release.version, Facts("check"))

    @contextlib.contextmanager
    def _slot(self) -> Iterator[tuple[Path, requests.Session]]:
        yield self.folder, self.session

    def all(self) -> Iterator[Finding]:
        """Ask everything; what cannot be asked any more is left out."""
        yield from self._host()
        if "host" not in self.works:
            yield Finding("prepare", "it would not work: check the network, and the address", False, 0)
            return
        yield self._try("the list of columns", self._columns)
        yield self._try(f"rows of observation {_OBSID}", lambda: self._rows((_OBSID,)))
        if self.detection is None and "catalog" in self.works:
            yield self._try("rows of another observation", self._other_rows)
        yield self._try("COUNT(*) of the same rows", self._count)
        if self.detection is not None:
            for verb in ("GET", "POST"):
                yield self._try(f"the package of {self.detection} by {verb}", functools.partial(self._package, verb))
            for band in BANDS:
                words = "with a band" if band else "without a band"
                yield self._try(f"its files, listed {words}", functools.partial(self._listing, band))
            yield self._try("the PHA file alone", self._single)
            yield self._try("a detection that is not there", self._nothing)
        yield self._verdict()

    def _host(self) -> Iterator[Finding]:
        address = urlsplit(self.settings.archive)
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        begun = time.monotonic()
        try:
            with socket.create_connection((str(address.hostname), port), _PATIENCE.connect) as connection:
                yield Finding(f"host {address.hostname}, port {port}", "reached", True, time.monotonic() - begun)
                self.works.add("host")
                if address.scheme == "https":
                    begun = time.monotonic()
                    with ssl.create_default_context().wrap_socket(connection, server_hostname=address.hostname) as tls:
                        yield Finding("TLS", f"{tls.version()}, certificate trusted", True, time.monotonic() - begun)
        except OSError as error:
            asked = "TLS" if self.works else f"host {address.hostname}, port {port}"
            self.works.clear()
            yield Finding(asked, f"failed: {error.strerror or error}", False, time.monotonic() - begun)

    def _try(self, asked: str, question: Callable[[], str]) -> Finding:
        begun = time.monotonic()
        try:
            came, good = question(), True
        except ChandraSpectraError as error:
            came, good = str(error), False
        return Finding(asked, came, good, time.monotonic() - begun)

    def _query(self, text: str, limit: int = 0) -> pa.Table:
        form = {"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": text} | ({"MAXREC": str(limit)} if limit else {})
        request = Request(f"{self.catalog.address}/sync?{urlencode(form)}", check_votable, 2**26, "POST", slow=True)
        path = self.folder / "answer.vot"
        self.client.ask(self.session, request, path)
        return read_texts(path, self.catalog.address)[0]

    def _columns(self) -> str:
        listed = self.catalog.listed_columns()
        if listed is None:
            raise ArchiveError("the service lists no columns, neither by TAP_SCHEMA nor at /tables")
        lacking = self.catalog.not_in(listed)
        return f"{len(listed):,} columns; " + (
            f"not there: {', '.join(lacking)}" if lacking else "all that are asked for"
        )

    def _rows(self, obsids: tuple[int, ...]) -> str:
        selection = Selection(0.0, 0.0, 180.0, obsids=obsids)
        table, origin = self.catalog.rows(selection, lambda address, path: None)
        self.works.add("catalog")
        rows = [row for row in table.to_pylist() if selection.keeps(row) and DetectionId.of(row)]
        if rows:
            self.detection = DetectionId.of(min(rows, key=lambda row: (row["obsid"], row["obi"], row["region_id"])))
        lacking = f"; without {', '.join(origin.missing)}" if origin.missing else ""
        return f"{len(table):,} rows of schema {origin.schema}{lacking}"

    def _other_rows(self) -> str:
        schema = self.catalog.release.schema
        where = "o.flux_bb_aper_b IS NOT NULL"
        found = self._query(f"SELECT o.obsid FROM {schema}.observation_source o WHERE {where}", 1)
        if not len(found):
            raise ArchiveError("the catalog has no detection with a flux")
        return self._rows((int(found["obsid"][0].as_py()),))

    def _count(self) -> str:
        obsid = self.detection.obsid if self.detection else _OBSID
        (query,) = Selection(0.0, 0.0, 180.0, obsids=(obsid,)).queries(self.catalog.release.schema)
        table = self._query(f"SELECT COUNT(*) AS n {query}")
        return str(table.column(0)[0].as_py()).strip()

    def _package(self, verb: str) -> str:
        assert self.detection is not None
        contents: list[Contents] = []
        request = self.packages.package([(self.detection, kind) for kind in FILETYPES], verb, contents)
        path, begun = self.folder / "package.tar", time.monotonic()
        self.client.ask(self.session, request, path)
        seconds, size = time.monotonic() - begun, path.stat().st_size
        (found,) = contents
        lacking = [kind for kind in KINDS if kind not in {kind for _, kind in found.good}]
        self.speed = max(self.speed, size / seconds)
        if lacking:
            raise ArchiveError(f"a tar of {size_text(size)} without {', '.join(lacking)} of it")
        self.works.add("packages")
        return f"a tar of {size_text(size)} with PHA, ARF and RMF" + (f"; {found.form}" if found.form else "")

    def _listing(self, band: str) -> str:
        assert self.detection is not None
        path, product = self.folder / "browse.json", (self.detection, "pha")
        self.client.ask(self.session, self.packages.listing(product, band), path)
        names = parsed_listing(path, product)
        if not names:
            raise ArchiveError("an empty list")
        self.filename = next(iter(names.values()))
        self.works.add("listing")
        return ", ".join(names.values())

    def _single(self) -> str:
        if "listing" not in self.works:
            raise ArchiveError("not asked for: no list names it")
        path = self.folder / "single"
        self.client.ask(self.session, self.packages.single(self.filename, "pha", ProductCheck()), path)
        self.works.add("single")
        return size_text(path.stat().st_size)

    def _nothing(self) -> str:
        assert self.detection is not None
        nothing = (dataclasses.replace(self.detection, region_id=9999), "pha")
        said = []
        for name, request in (
            ("retrieve", self.packages.package([nothing], "GET" if "packages" in self.works else "POST", [])),
            ("browse", self.packages.listing(nothing, "")),
        ):
            try:
                self.client.ask(self.session, request, self.folder / "nothing")
                said.append(f"{name}: an empty answer of the right kind")
            except ArchiveError as error:
                said.append(f"{name}: {error}")
        return "; ".join(said)

    def _verdict(self) -> Finding:
        good = "catalog" in self.works and ("packages" in self.works or "single" in self.works)
        if not good:
            lacking = "the catalog" if "catalog" not in self.works else "the files"
            return Finding("prepare", f"it would not work: {lacking} cannot be had", False, 0)
        each = _DEFAULT_DETECTIONS * DETECTION_BYTES
        shared = each - (_DEFAULT_DETECTIONS - _DEFAULT_OBSERVATIONS) * RMF_BYTES
        hours = [size / max(self.speed, 1) / DEFAULT_CONNECTIONS / 3600 for size in (each, shared)]
        came = "it would work"
        if self.speed:
            came += (
                f"; at {size_text(self.speed)}/s in each of {DEFAULT_CONNECTIONS} connections the default selection "
                f"takes {hours[0]:,.0f} h, with --rmf observation {hours[1]:,.1f} h"
            )
        return Finding("prepare", came, True, 0)
