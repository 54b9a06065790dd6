"""Answers of the archive's services: TAP and csccli over some holdings, without the wire.

The addresses and the habits are those of https://cda.cfa.harvard.edu, as far as its documentation and its public
clients tell them, and others where asked for (`builder.simulator.habits`):

- ``/csc21tap/sync`` redirects (303) to ``/csc21tap/results/<id>``, a VOTable; see `builder.simulator.tap`
- ``/csccli/retrieve`` answers a tar with those of the products asked for that there are
- ``/csccli/browse`` lists products as JSON, ``/csccli/retrieveFile`` answers one of them
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from builder.archive.catalog import read_votable
from builder.archive.mirror import CATALOG_FILE, read_index
from builder.archive.products import ProductName, write_tar
from builder.model.errors import ArchiveError, ChandraSpectraError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.releases import RELEASES
from builder.simulator.adql import Catalog
from builder.simulator.faults import Faults
from builder.simulator.reply import Reply, error_page, error_text
from builder.simulator.tap import TapService, with_bad_row

_KINDS = {"spectrum": "pha", "arf": "arf", "rmf": "rmf"}  # csccli's file types
_FILETYPES = {kind: filetype for filetype, kind in _KINDS.items()}
_ITEM = re.compile(r"(\d+\.\d+\.\d+)/(\w+)/(b?)")
_LONG = 300
"""Characters of an address that a service of ``short-address`` takes."""

_FORMATS = {"tar-gnu": tarfile.GNU_FORMAT, "tar-pax": tarfile.PAX_FORMAT}


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
            table, _ = read_votable(folder / CATALOG_FILE, str(folder / CATALOG_FILE), needed=())
        except OSError as error:
            raise ArchiveError(f"cannot read {error.filename}: {error.strerror}; is {folder} a mirror?") from error
        index = read_index(folder)
        self._tars = {  # where one has the RMF of a detection, that one
            DetectionId.parse(text).catalog: line["file"]
            for held in ("detections", "rmfs")
            for line in index
            for text in line[held]
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
    habits : frozenset of str
        See `builder.simulator.habits.HABITS`.
    """

    holdings: Holdings
    faults: Faults
    max_rows: int | None = None
    error_status: int = HTTPStatus.OK
    habits: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        rows = self.holdings.rows
        catalog = Catalog(with_bad_row(rows) if "bad-row" in self.habits else rows)
        self._tap = {
            release.service: TapService(release, catalog, self.habits, self.max_rows, self.error_status)
            for release in RELEASES.values()
        }
        self._detections = {DetectionId.of(row) for row in rows}

    def reply(self, path: str, parameters: dict[str, str], verb: str = "GET", length: int = 0) -> Reply:
        """Answer one request, given its path, its decoded parameters, its verb and the length of its address."""
        folder, _, service = path.rpartition("/")
        tap, _, rest = path.removeprefix("/").partition("/")
        csccli = {"retrieve": self._retrieve, "browse": self._browse, "retrieveFile": self._retrieve_file}
        try:
            if tap in self._tap:
                return self._tap[tap].reply(rest, parameters)
            if folder == "/csccli" and service in csccli:
                if (refusal := self._refused(service, verb, length, parameters)) is not None:
                    return refusal
                if parameters.get("version") not in RELEASES:
                    return error_page(service, f"version must be one of {', '.join(RELEASES)}")
                return csccli[service]({name: value for name, value in parameters.items() if name != "version"})
        except (OSError, tarfile.TarError, ChandraSpectraError) as error:
            return Reply(service, f"The holdings are damaged: {error}\n".encode(), status=500)
        return Reply(path, b"There is nothing here, but at /csc21tap/sync and /csccli/retrieve.\n", status=404)

    def _refused(self, service: str, verb: str, length: int, parameters: dict[str, str]) -> Reply | None:
        """Refuse what a habit refuses; None where it is answered properly."""
        asked = _packageset({"packageset": parameters.get("packageset", "")})
        detections = () if isinstance(asked, str) else _texts(asked)
        if "short-address" in self.habits and length > _LONG:
            return Reply(service, b"Too long.\n", status=414, detections=detections)
        if service != "retrieve":
            return None
        if ({"POST": "get-only", "GET": "post-only"})[verb] in self.habits:
            return Reply(service, b"Not by this method.\n", status=405, detections=detections)
        if verb == "GET" and "get-page" in self.habits:
            return Reply(service, error_page(service, "Use the form.").body, "text/html", detections=detections)
        if "files-only" in self.habits:
            return Reply(service, b"Not found.\n", status=404, detections=detections)
        return None

    def _retrieve(self, parameters: dict[str, str]) -> Reply:
        asked = _packageset(parameters)
        if isinstance(asked, str):
            return error_text("retrieve", asked)
        there = {file.detection for file in map(_name, self._files(asked)) if file is not None}
        if "strict-package" in self.habits and any(detection not in there for detection, _ in asked):
            return Reply("retrieve", b"Not all of this is there.\n", status=404, detections=_texts(asked))
        body = self._tar(self._files(asked, package=True))
        return Reply("retrieve", body, "application/x-tar", detections=_texts(asked))

    def _tar(self, files: list[File]) -> bytes:
        """Make a tar of the form that is the habit."""
        stream = io.BytesIO()
        form = next((form for habit, form in _FORMATS.items() if habit in self.habits), tarfile.USTAR_FORMAT)
        write_tar(stream, files, form)
        if "tar-v7" in self.habits:
            return _as_v7(stream.getvalue())
        if "tar-endless" in self.habits:
            return _without_end(stream.getvalue())
        return gzip.compress(stream.getvalue(), 1, mtime=0) if "tar-gzip" in self.habits else stream.getvalue()

    def _browse(self, parameters: dict[str, str]) -> Reply:
        asked = _packageset(parameters)
        if isinstance(asked, str):
            return error_text("browse", asked)
        banded = any(item.endswith("/b") for item in parameters["packageset"].split(","))
        hidden = ("browse-unbanded" if banded else "browse-banded") in self.habits
        names = [(file.name, _name(file)) for file in self._files(asked)]
        listed = [{"filename": text, "filetype": _FILETYPES[name.kind]} for text, name in names if name is not None]
        if hidden:
            listed = []
        if not listed:
            if "browse-error" in self.habits:
                return error_text("browse", f"no product {parameters['packageset']}", _texts(asked))
            if "browse-blank" in self.habits:
                return Reply("browse", b"", "text/html", detections=_texts(asked))
            if "browse-500" in self.habits:
                return Reply("browse", b"Internal error.\n", status=500, detections=_texts(asked))
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


def _name(file: File) -> ProductName | None:
    return ProductName.parse(file.name)


def _as_v7(tar: bytes) -> bytes:
    """Give a tar without the fields that came after version 7: magic, version and whatever follows them."""
    old = bytearray(tar)
    at = 0
    while any(old[at : at + tarfile.BLOCKSIZE]):
        size = int(old[at + 124 : at + 135], 8)
        old[at + 257 : at + tarfile.BLOCKSIZE] = bytes(tarfile.BLOCKSIZE - 257)
        old[at + 148 : at + 156] = b" " * 8
        old[at + 148 : at + 156] = b"%06o\0 " % sum(old[at : at + tarfile.BLOCKSIZE])
        at += tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE))
    return bytes(old)


def _without_end(tar: bytes) -> bytes:
    """Cut a tar behind its last member."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        opened.getmembers()
        return tar[: opened.offset]


def _texts(asked: Asked) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(detection) for detection, _ in asked))


def _gzipped(file: File) -> File:
    """Return the file as the archive serves it; holdings may have it as it is within the installed Sherpa."""
    if file.data.startswith(b"\x1f\x8b"):
        return file
    return File(f"{file.name.removesuffix('.gz')}.gz", gzip.compress(file.data, compresslevel=1, mtime=0))
