"""The archive over HTTP: the catalog's TAP service and the package service."""

from __future__ import annotations

import contextlib
import json
import re
import tarfile
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pyarrow as pa
import requests

from builder.archive.catalog import VOTABLE_TAG, count_of, from_rows, read_votable
from builder.archive.http import Client, Slots, one_session
from builder.archive.interface import Archive, Fetched, Record, forget
from builder.archive.packages import Package
from builder.archive.products import KINDS, MAX_MEMBER_BYTES, ProductName
from builder.model.columns import CATALOG
from builder.model.errors import CatalogError, RefusedError, SettingError, TransientError, UnavailableError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CONNECTIONS
from builder.model.text import one_line

_FILETYPES = {"pha": "spectrum", "arf": "arf", "rmf": "rmf"}  # the service's words for the products
_BAND = "b"
_MAX_CATALOG_BYTES = 4 * 2**30
_LAST_OBSID = 999_999
_LEFT = 86_400  # seconds after which an answer that nobody removed is nobody's: it is read as soon as it is there
_BELIEVED = 3  # detections that an archive may refuse one after the other; if it serves none at all, it is out of order

COLUMNS_QUERIED = ", ".join(column.query for column in CATALOG)
"""Every catalog column of the dataset, as the query asks for it."""

Product = tuple[DetectionId, str]
"""A detection, of one cycle where it has two, and the kind of file."""


@dataclass
class HttpArchive(Archive):
    """The services below one base URL.

    Attributes
    ----------
    base : str
        Base URL without a slash at the end.
    folder : Path
        Where answers are kept for as long as they are needed, and the locks of the budget.
    client : Client
        For this base URL.
    connections : int
        Connections at once, of all processes that share `folder`.
    """

    base: str
    release: str
    folder: Path
    client: Client
    connections: int = DEFAULT_CONNECTIONS

    @property
    def identity(self) -> str:
        """See `Archive.identity`; the base URL."""
        return self.base

    @contextlib.contextmanager
    def _slot(self) -> Iterator[tuple[Path, requests.Session]]:
        """Give a folder and a session with one connection: they last as long as the place in the budget."""
        with Slots(self.folder, self.connections).take() as folder, one_session() as session:
            yield folder, session

    # -- the catalog

    def catalog(self, selection: Selection, record: Record = forget) -> pa.Table:
        """See `Archive.catalog`; what exceeds the service's row limit is asked for in ranges of obsid.

        Raises
        ------
        CatalogError
            If the service reports an error, or the parts do not add up to its own ``COUNT(*)``.
        SettingError
            For release 2.0: the service's tables are those of 2.1, and region ids are a release's own.
        """
        if self.release == "rel2.0":
            raise SettingError(
                "the catalog service has the tables of release 2.1 only: for the files of rel2.0 give a catalog file "
                "of that release with --cat-file"
            )
        answers = [from_rows([])]
        for query in selection.queries():
            expected = count_of(self._answer(f"SELECT COUNT(*) AS n {query}", record), self.base)
            parts = list(self._parts(query, 0, _LAST_OBSID, record)) if expected else []
            found = sum(len(part) for part in parts)
            if found != expected:
                raise CatalogError(f"{self.base} counts {expected} rows but answered {found}: run the command again")
            answers += parts
        return pa.concat_tables(answers)

    def _parts(self, query: str, first: int, last: int, record: Record) -> Iterator[pa.Table]:
        whole = (first, last) == (0, _LAST_OBSID)
        limits = "" if whole else f" AND o.obsid BETWEEN {first} AND {last}"
        table, overflow = read_votable(self._answer(f"SELECT {COLUMNS_QUERIED} {query}{limits}", record), self.base)
        if not overflow:
            yield table
        elif first == last:
            raise CatalogError(f"{self.base}: observation {first} alone exceeds the service's row limit")
        else:
            middle = self._middle(table, first, last)
            yield from self._parts(query, first, middle, record)
            yield from self._parts(query, middle + 1, last, record)

    @staticmethod
    def _middle(table: pa.Table, first: int, last: int) -> int:
        """Find the obsid that divides a range: the median of the rows that came, where that divides it at all."""
        obsids = sorted(obsid for obsid in table["obsid"].to_pylist() if first <= obsid < last)
        return int(obsids[len(obsids) // 2]) if obsids else (first + last) // 2

    def _answer(self, query: str, record: Record) -> bytes:
        form = urlencode({"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": query})
        address = f"{self.base}/csc21tap/sync?{form}"
        path = self.download_catalog(address)
        try:
            record(address, path)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    def download_catalog(self, url: str) -> Path:
        """Download one catalog answer, checked to be a VOTable that ends."""
        with self._slot() as (folder, session):
            for left in self.folder.glob("*.vot"):  # by runs that were killed
                with contextlib.suppress(FileNotFoundError):
                    if left.stat().st_mtime < time.time() - _LEFT:
                        left.unlink()
            self.client.download(session, url, folder / "catalog.vot", _check_votable, _MAX_CATALOG_BYTES)
            # Out of the slot, which whoever takes it next empties.
            return (folder / "catalog.vot").replace(self.folder / f"{uuid.uuid4().hex}.vot")

    # -- packages

    @contextlib.contextmanager
    def fetch(self, package: Package, record: Record = forget) -> Iterator[Fetched]:
        """See `Archive.fetch`.

        What the answer lacks is asked for once more, and then file by file. Detections that the service refuses to
        serve are named in `Fetched.unserved`.

        Raises
        ------
        ArchiveError
            If the archive is out of order: it refuses the package, and then one detection after the other.
        """
        urls = {detection: self._package_url([detection]) for detection in package.detections}
        with self._slot() as (folder, session):
            parts, unserved = self._collect(session, folder, package.detections, record)
            yield Fetched(tuple(parts), urls, unserved)

    def _collect(
        self, session: requests.Session, folder: Path, detections: tuple[DetectionId, ...], record: Record
    ) -> tuple[list[Path], dict[DetectionId, str]]:
        parts: list[Path] = []
        have: set[Product] = set()
        refusals: dict[DetectionId, str] = {}
        lacking = detections
        for number in range(2):
            path = folder / f"{number}.tar"
            try:
                have |= self._download_package(session, lacking, path)
            except (RefusedError, UnavailableError) as error:
                refusals = dict.fromkeys(lacking, str(error))
                break
            record(self._package_url(lacking), path)
            parts.append(path)
            lacking = _lacking(lacking, have)
            if not lacking:
                break
        served = bool(have)
        for asked, detection in enumerate(lacking):
            if asked == _BELIEVED and not served:
                # To go on would turn an outage into rejections, which are not asked for again by themselves.
                raise UnavailableError(
                    f"{self.client.host} refuses whatever it is asked for: {refusals[lacking[asked - 1]]}; check the "
                    "service, then run the same command again to go on"
                )
            try:
                # Where the service does not even list files, it is the service that fails, and not this package.
                listed = self._listed(session, folder, detection)
            except RefusedError as error:
                refusals[detection] = str(error)
                continue
            try:
                parts += self._single_files(session, folder, listed, have, record)
                refusals.pop(detection, None)
                served = True
            except (RefusedError, UnavailableError) as error:
                refusals[detection] = str(error)
        return parts, refusals

    def _package_url(self, detections: Iterable[DetectionId]) -> str:
        products = ",".join(f"{d.catalog}/{_FILETYPES[kind]}/{_BAND}" for d in detections for kind in KINDS)
        return f"{self.base}/csccli/retrieve?" + urlencode({"version": self.release, "packageset": products}, safe="/,")

    def _download_package(
        self, session: requests.Session, detections: tuple[DetectionId, ...], path: Path
    ) -> set[Product]:
        """Download one tar; gives the products in it."""
        wanted = {detection.catalog for detection in detections}
        # A detection of an interleaved observation has two files of each kind.
        limit = 2 * len(KINDS) * len(wanted)
        found: set[Product] = set()

        def check(file: Path) -> None:
            nonlocal found
            found = _check_tar(file, wanted, limit)

        self.client.download(session, self._package_url(detections), path, check, limit * MAX_MEMBER_BYTES)
        return found

    def _listed(self, session: requests.Session, folder: Path, detection: DetectionId) -> dict[Product, str]:
        """Return the files that the service lists for a detection, by cycle and kind."""
        url = self._package_url([detection]).replace("/retrieve?", "/browse?")
        listing = folder / "browse.json"
        self.client.download(session, url, listing, _check_json, MAX_MEMBER_BYTES)
        filenames = [str(entry.get("filename", "")) for entry in json.loads(listing.read_bytes())]
        names = [(ProductName.parse(filename), filename) for filename in filenames]
        return {
            (name.detection, name.kind): filename
            for name, filename in names
            if name is not None and name.detection.catalog == detection.catalog
        }

    def _single_files(
        self, session: requests.Session, folder: Path, listed: dict[Product, str], have: set[Product], record: Record
    ) -> list[Path]:
        """Fetch, one by one, the files that are listed but that no package held."""
        found = []
        for (detection, kind), filename in listed.items():
            if (detection, kind) in have:
                continue
            form = {"filename": filename, "filetype": _FILETYPES[kind], "version": self.release}
            query = urlencode(form, errors="replace")  # JSON may hold characters that no address can
            path = folder / filename.rpartition("/")[2]  # it was parsed as a product's name: no path hides in it
            address = f"{self.base}/csccli/retrieveFile?{query}"
            self.client.download(session, address, path, _check_product, MAX_MEMBER_BYTES)
            record(address, path)
            found.append(path)
        return found


def _lacking(detections: tuple[DetectionId, ...], have: set[Product]) -> tuple[DetectionId, ...]:
    """Return the detections of which a product is missing, of any cycle that has one."""
    cycles: dict[DetectionId, set[DetectionId]] = {}
    for detection, _ in have:
        cycles.setdefault(detection.catalog, set()).add(detection)
    return tuple(
        detection
        for detection in detections
        if any((key, kind) not in have for key in cycles.get(detection, {detection}) for kind in KINDS)
    )


def _start(path: Path, length: int = 512) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _words(path: Path) -> str:
    """Return the first words of an answer that is not what was asked for."""
    return one_line(_start(path, 200).decode("utf-8", "replace")) or "nothing"


def _check_votable(path: Path) -> None:
    if not re.search(rb"<" + VOTABLE_TAG, _start(path, 4096)):
        raise TransientError(f"the catalog answered {_words(path)!r} instead of a VOTable")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 512))
        if not re.search(rb"</" + VOTABLE_TAG + rb"\s*>", file.read()):
            raise TransientError("the catalog's answer is cut short")


def _check_tar(path: Path, wanted: set[DetectionId], limit: int) -> set[Product]:
    """Return the products in a tar, which is whole and holds no more than was asked for."""
    start = _start(path)
    empty = len(start) == tarfile.BLOCKSIZE and not start.strip(b"\0")
    if not empty and start[257:262] != b"ustar":
        raise TransientError(f"the package service answered {_words(path)!r} instead of a tar file")
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            end = tar.offset
    except Exception as error:  # of a damaged header tarfile raises ValueError, OverflowError, RecursionError and more
        raise TransientError(f"a package is not a whole tar file: {error}") from error
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(tarfile.BLOCKSIZE)
    if len(tail) < tarfile.BLOCKSIZE or tail.strip(b"\0"):
        raise TransientError("a package does not end as a tar file does")
    files = [member for member in members if member.isfile() and not member.issparse()]
    if len(files) > limit:
        raise RefusedError(f"a package has {len(files)} files where at most {limit} were asked for")
    found = set()
    for member in files:
        name = ProductName.parse(member.name)
        if name is not None and name.detection.catalog not in wanted:
            raise TransientError(f"a package holds {member.name!r}, which was not asked for")
        if member.size > MAX_MEMBER_BYTES:
            raise RefusedError(f"a package's member {member.name!r} claims {member.size} bytes")
        if name is not None:
            found.add((name.detection, name.kind))
    return found


def _check_json(path: Path) -> None:
    try:
        listing = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise TransientError(f"the package service answered {_words(path)!r} instead of a listing") from None
    if not isinstance(listing, list) or not all(isinstance(entry, dict) for entry in listing):
        raise TransientError("the package service answered something else than a listing")


def _check_product(path: Path) -> None:
    if not _start(path).startswith((b"\x1f\x8b", b"SIMPLE  =")):
        raise TransientError(f"the package service answered {_words(path)!r} instead of a FITS file")
