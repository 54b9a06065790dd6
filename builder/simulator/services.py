"""Answers of the archive's services: TAP and csccli over some holdings, without the wire.

The addresses and the habits are those of https://cda.cfa.harvard.edu, as far as its documentation and its public
clients tell them:

- ``/csc21tap/sync`` redirects (303) to ``/csc21tap/results/<id>``, a VOTable; see `builder.simulator.adql`
- ``/csccli/retrieve`` answers a tar with those of the products asked for that there are
- ``/csccli/browse`` lists products as JSON, ``/csccli/retrieveFile`` answers one of them
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from builder.archive.catalog import read_votable
from builder.archive.mirror import CATALOG_FILE, read_index
from builder.archive.products import ProductName, write_tar
from builder.archive.votable import write_votable
from builder.model.errors import ArchiveError, ChandraSpectraError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.selection import RELEASES
from builder.simulator.adql import Catalog
from builder.simulator.faults import Faults

_VOTABLE = "application/x-votable+xml"
_KINDS = {"spectrum": "pha", "arf": "arf", "rmf": "rmf"}  # csccli's file types
_FILETYPES = {kind: filetype for filetype, kind in _KINDS.items()}
_ITEM = re.compile(r"(\d+\.\d+\.\d+)/(\w+)/b")


class Holdings(Protocol):
    """A catalog and its files, to be asked from several threads at once."""

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The catalog, one row a detection, by bare column name; None is null."""

    def files(self, detection: DetectionId) -> list[File]:
        """Return the product files of a catalog row: three, six for an interleaved observation, none for HRC."""


class MirrorHoldings:
    """The content of a mirror folder, see `builder.archive.mirror`.

    Raises
    ------
    ArchiveError
        If the folder is no mirror, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            table, _ = read_votable((folder / CATALOG_FILE).read_bytes(), str(folder / CATALOG_FILE))
        except OSError as error:
            raise ArchiveError(f"cannot read {error.filename}: {error.strerror}; is {folder} a mirror?") from error
        self._tars = {
            DetectionId.parse(text).catalog: line["file"] for line in read_index(folder) for text in line["detections"]
        }
        self.rows: list[dict[str, Any]] = table.to_pylist()
        self._members: dict[str, dict[DetectionId, list[tuple[str, int, int]]]] = {}
        self._lock = threading.Lock()

    def files(self, detection: DetectionId) -> list[File]:
        """See `Holdings.files`."""
        tar = self._tars.get(detection.catalog)
        if tar is None:
            return []
        found = []
        with (self.folder / tar).open("rb") as stream:
            for name, start, size in self._index(tar).get(detection.catalog, []):
                stream.seek(start)
                found.append(File(name, stream.read(size)))
        return found

    def _index(self, tar: str) -> dict[DetectionId, list[tuple[str, int, int]]]:
        """Return the places of each detection's files in a tar; it is read through once."""
        with self._lock:
            if tar not in self._members:
                places: dict[DetectionId, list[tuple[str, int, int]]] = {}
                with tarfile.open(self.folder / tar, "r:") as opened:
                    for member in opened:
                        name = ProductName.parse(member.name)
                        if member.isfile() and name is not None:
                            place = (member.name.rpartition("/")[2], member.offset_data, member.size)
                            places.setdefault(name.detection.catalog, []).append(place)
                self._members[tar] = places
            return self._members[tar]


Asked = list[tuple[DetectionId, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it is meant, before any fault.

    Attributes
    ----------
    service : str
        ``sync``, ``results``, ``retrieve``, ``browse``, ``retrieveFile``, or the path of anything else.
    location : str
        Path that the client is redirected to.
    detections : tuple of str
        What was asked for, where the service takes detections.
    """

    service: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    location: str = ""
    detections: tuple[str, ...] = ()


@dataclass
class Services:
    """The services over some holdings.

    Attributes
    ----------
    faults : Faults
        Its permanent faults damage the files.
    max_rows : int, optional
        Row limit of the catalog.
    error_status : int
        Status of the answer to a bad query.
    """

    holdings: Holdings
    faults: Faults
    max_rows: int | None = None
    error_status: int = HTTPStatus.OK
    _queries: dict[str, tuple[str, int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._catalog = Catalog(self.holdings.rows)
        ids = (map(str, (row["obsid"], row["obi"], row["region_id"])) for row in self.holdings.rows)
        self._detections = {DetectionId.parse(".".join(numbers)) for numbers in ids}

    def reply(self, path: str, parameters: dict[str, str]) -> Reply:
        """Answer one request, given its path and its decoded parameters."""
        folder, _, service = path.rpartition("/")
        csccli = {"retrieve": self._retrieve, "browse": self._browse, "retrieveFile": self._retrieve_file}
        try:
            if path == "/csc21tap/sync":
                return self._sync(parameters)
            if folder == "/csc21tap/results":
                return self._results(service)
            if folder == "/csccli" and service in csccli:
                if parameters.get("version") not in RELEASES:
                    return error_page(service, f"version must be one of {', '.join(RELEASES)}")
                return csccli[service]({name: value for name, value in parameters.items() if name != "version"})
        except (OSError, tarfile.TarError, ChandraSpectraError) as error:
            return Reply(service, f"The holdings are damaged: {error}\n".encode(), status=500)
        return Reply(path, b"There is nothing here, but at /csc21tap/sync and /csccli/retrieve.\n", status=404)

    def _sync(self, parameters: dict[str, str]) -> Reply:
        given = {name.upper(): value for name, value in parameters.items()}  # TAP's names have no case
        for name, expected in (("REQUEST", "doQuery"), ("LANG", "ADQL")):
            if given.get(name) != expected:
                return self._bad_query("sync", f"{name} must be {expected}")
        limit = given.get("MAXREC")
        if limit is not None and not limit.isdecimal():
            return self._bad_query("sync", f"MAXREC={limit} is not a number of rows")
        query = (given.get("QUERY", ""), None if limit is None else int(limit))
        name = hashlib.sha256(repr(query).encode()).hexdigest()[:24]
        self._queries[name] = query
        return Reply("sync", b"", status=HTTPStatus.SEE_OTHER, location=f"/csc21tap/results/{name}")

    def _results(self, name: str) -> Reply:
        if name not in self._queries:
            return Reply("results", b"There is no such result.\n", status=404)
        query, maxrec = self._queries[name]
        limit = min((limit for limit in (self.max_rows, maxrec) if limit is not None), default=None)
        try:
            result = self._catalog.query(query, limit)
        except SettingError as error:
            return self._bad_query("results", str(error))
        return Reply("results", write_votable(result.names, result.rows, overflow=result.overflow), _VOTABLE)

    def _bad_query(self, service: str, reason: str) -> Reply:
        return Reply(service, write_votable([], [], error=reason), _VOTABLE, self.error_status)

    def _retrieve(self, parameters: dict[str, str]) -> Reply:
        asked = _packageset(parameters)
        if isinstance(asked, str):
            return error_text("retrieve", asked)
        stream = io.BytesIO()
        write_tar(stream, self._files(asked, package=True))
        return Reply("retrieve", stream.getvalue(), "application/x-tar", detections=_texts(asked))

    def _browse(self, parameters: dict[str, str]) -> Reply:
        asked = _packageset(parameters)
        if isinstance(asked, str):
            return error_text("browse", asked)
        names = [(file.name, ProductName.parse(file.name)) for file in self._files(asked)]
        listed = [{"filename": text, "filetype": _FILETYPES[name.kind]} for text, name in names if name is not None]
        return Reply("browse", json.dumps(listed).encode(), "application/json", detections=_texts(asked))

    def _retrieve_file(self, parameters: dict[str, str]) -> Reply:
        if parameters.keys() != {"filename", "filetype"}:
            return error_text("retrieveFile", "give filename, filetype and version, and nothing else")
        filename = parameters["filename"]
        name = ProductName.parse(filename)
        if name is None or _KINDS.get(parameters["filetype"]) != name.kind:
            return error_text("retrieveFile", f"{filename} is no file of type {parameters['filetype']}")
        asked = [(name.detection.catalog, name.kind)]
        for file in self._files(asked):
            if file.name.removesuffix(".gz") == filename.removesuffix(".gz"):
                return Reply("retrieveFile", file.data, "application/gzip", detections=_texts(asked))
        return error_text("retrieveFile", f"there is no file {filename}", _texts(asked))

    def _files(self, asked: Asked, *, package: bool = False) -> list[File]:
        """Return the files asked for, as far as there are any."""
        kinds: dict[DetectionId, set[str]] = {}
        for detection, kind in asked:
            kinds.setdefault(detection, set()).add(kind)
        files = []
        for detection, wanted in kinds.items():
            if detection in self._detections:
                held = [(ProductName.parse(file.name), file) for file in self.holdings.files(detection)]
                sound = [_gzipped(file) for name, file in held if name is not None and name.kind in wanted]
                files += self.faults.damaged(detection, sound, package=package)
        return files


def error_page(service: str, reason: str) -> Reply:
    """Make an error as web servers like to put it: an HTML page, with status 200."""
    page = (
        f"<!DOCTYPE html>\n<html><head><title>Error</title></head><body><h1>Error</h1><p>{reason}</p></body></html>\n"
    )
    return Reply(service, page.encode(), "text/html; charset=utf-8")


def error_text(service: str, reason: str, detections: tuple[str, ...] = ()) -> Reply:
    """Make an error as csccli puts it, with status 200."""
    return Reply(service, f"Error executing query: {reason}\n".encode(), detections=detections)


def _packageset(parameters: dict[str, str]) -> Asked | str:
    """Return the detections and kinds of file that are asked for, or what is wrong with them."""
    if parameters.keys() != {"packageset"}:
        return "give packageset and version, and nothing else"
    asked = []
    for item in parameters["packageset"].split(","):
        match = _ITEM.fullmatch(item)
        if match is None or match[2] not in _KINDS:
            return f"{item!r} is not obsid.obi.region_id/{{spectrum|arf|rmf}}/b"
        try:
            asked.append((DetectionId.parse(match[1]), _KINDS[match[2]]))
        except SettingError as error:
            return str(error)
    return asked


def _texts(asked: Asked) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(detection) for detection, _ in asked))


def _gzipped(file: File) -> File:
    """Return the file as the archive serves it; holdings may have it as it is within the installed Sherpa."""
    if file.data.startswith(b"\x1f\x8b"):
        return file
    return File(f"{file.name.removesuffix('.gz')}.gz", gzip.compress(file.data, compresslevel=1, mtime=0))
