"""Mirrors: folders with what the archive answered, to build from later and without a network.

A mirror holds ``catalog.vot``, ``packages/*.tar`` and ``packages.jsonl``, the index: for each tar, one line with its
size, SHA-256, detections, those of them that were refused and, unless it was all, those whose RMF was asked for. A tar
is renamed into place before its line is written, so whatever the index names is whole, and a download that is
interrupted goes on after the last line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from builder.archive.catalog import read_columns, write_votable
from builder.archive.interface import Answer, Archive, Choose, Fetched, Record, choose_all, forget
from builder.archive.packages import Package, Plan, plan
from builder.archive.products import members, write_tar
from builder.archive.values import normalise
from builder.files import file_sha256, hold, write_whole
from builder.model.columns import ASKED
from builder.model.errors import ArchiveError, CatalogError, SettingError, StoreError
from builder.model.ids import DetectionId
from builder.model.own import own_columns
from builder.model.records import ProductFile
from builder.model.selection import Selection

logger = logging.getLogger(__name__)

CATALOG_FILE = "catalog.vot"
"""The catalog's answer in a mirror folder."""

INDEX_FILE = "packages.jsonl"
"""The index of a mirror folder: the detections of each tar."""


def read_index(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a mirror's index: ``file``, ``bytes``, ``sha256``, ``detections``.

    A last line without an end is of a download that was interrupted, and is passed over.

    Raises
    ------
    ArchiveError
        If it cannot be read or is damaged.
    """
    path = folder / INDEX_FILE
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        for line in lines:
            line["detections"] = [str(DetectionId.parse(text)) for text in line["detections"]]
            line["file"], line["bytes"], line["sha256"] = str(line["file"]), int(line["bytes"]), str(line["sha256"])
            line["rmfs"] = [str(DetectionId.parse(text)) for text in line.get("rmfs", line["detections"])]
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}; is {folder} a mirror?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{path} is damaged: {error}; download the mirror again") from error
    return lines


@dataclass(frozen=True)
class MirrorArchive(Archive):
    """A mirror folder as an archive.

    Attributes
    ----------
    nulls : bool
        Let detections pass a cut on a quantity that the catalog does not give.
    """

    folder: Path
    release: str
    nulls: bool = False
    _index: dict[str, dict[str, tuple[int, str]]] = field(default_factory=dict, compare=False, repr=False)
    _unserved: dict[DetectionId, str] = field(default_factory=dict, compare=False, repr=False)
    _rmfs: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def identity(self) -> str:
        """See `Archive.identity`; the content of the index, wherever the mirror lies."""
        try:
            return file_sha256(self.folder / INDEX_FILE)
        except OSError as error:
            raise ArchiveError(f"cannot read {self.folder / INDEX_FILE}: {error.strerror}; is it a mirror?") from error

    def catalog(self, selection: Selection, columns: Sequence[str] = (), record: Record = forget) -> Answer:
        """See `Archive.catalog`."""
        path = self.folder / CATALOG_FILE
        own = {column.partition(".")[2] for column in columns}
        try:
            # One of an older version, or of another program, has not all columns.
            found, overflow = read_columns(path, str(path))
            record(str(path), path)
        except OSError as error:
            raise CatalogError(f"cannot read {path}: {error.strerror}") from error
        if overflow:
            raise CatalogError(f"{path} was cut at the service's row limit; download the mirror again")
        if missing := [column.name for column in ASKED if column.name not in found]:
            logger.warning("%s does not give %s: null in every row", path, ", ".join(missing))
        if lacking := own - found.keys():
            raise SettingError(f"{path} has no column {min(lacking)}: download the mirror with --columns, too")
        return Answer(normalise(found, str(path), needed=selection.columns, own=own or None, file=CATALOG_FILE))

    @contextmanager
    def fetch(self, package: Package, record: Record = forget, choose: Choose | None = None) -> Iterator[Fetched]:
        """See `Archive.fetch`."""
        if not self._index:
            index: dict[str, dict[str, tuple[int, str]]] = {}
            unserved: dict[DetectionId, str] = {}
            for line in read_index(self.folder):
                for detection in line["detections"]:
                    index.setdefault(detection, {})[line["file"]] = line["bytes"], line["sha256"]
                    # A later download may have brought what an earlier one was refused.
                    unserved.pop(DetectionId.parse(detection), None)
                unserved |= {DetectionId.parse(text): words for text, words in _refused(line).items()}
                self._rmfs.update(line["rmfs"])
            self._unserved.update(unserved)
            self._index.update(index)  # at once: other threads look into it
        tars: dict[str, tuple[int, str]] = {}
        for detection in map(str, package.detections):
            if detection not in self._index:
                raise ArchiveError(f"{self.folder} has no files of {detection}; run its download again to complete it")
            tars |= self._index[detection]
        for name, (size, _) in tars.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ArchiveError(f"{path} {what}; download the mirror again")
            record(str(path), path)
        # Relative, so that the same mirror in another place gives the same rejections.
        refused = {d: self._unserved[d] for d in package.detections if d in self._unserved}
        named = {detection: " ".join(self._index[str(detection)]) for detection in package.detections}
        digests = tuple(digest for _, digest in tars.values())
        parts, asked = tuple(self.folder / name for name in tars), set[DetectionId]()
        choose = choose or choose_all(package)
        chosen = choose(None)
        while chosen:
            for detection in sorted(chosen):
                if str(detection) not in self._rmfs:
                    raise ArchiveError(
                        f"{self.folder} was made with --rmf observation, and has not the RMF of {detection}: give that "
                        "option and the same cuts, or run its download again without it"
                    )
            asked |= chosen
            chosen = choose(parts)
        yield Fetched(
            parts, named, refused, digests, None if asked.issuperset(package.detections) else frozenset(asked)
        )


@contextmanager
def open_mirror(folder: Path) -> Iterator[Mirror]:
    """Give a `Mirror` to add to, which no other run adds to meanwhile.

    Raises
    ------
    StoreError
        If it cannot be written.
    OutputError
        If another run adds to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    with hold(folder, folder):
        yield Mirror(folder)


class Mirror:
    """A mirror that is being made, by one run at a time: see `open_mirror`.

    Parameters
    ----------
    folder : Path
        Made if it is not there; one that is there is added to.

    Raises
    ------
    StoreError
        If it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        try:
            (folder / "packages").mkdir(parents=True, exist_ok=True)
            index = folder / INDEX_FILE
            index.touch()
            self._held: set[str] = set()
            self._shared: dict[tuple[str, ...], set[str]] = {}
            for line in self._mend(index):
                self._hold(line)
        except OSError as error:
            raise StoreError(f"cannot write {error.filename or folder}: {error.strerror}") from error

    def _mend(self, index: Path) -> list[dict[str, Any]]:
        """Drop lines that were cut short or whose tar is not what they say; give the others."""
        whole = [line for line in read_index(self.folder) if has_tar(self.folder, line)]
        text = "".join(json.dumps(_brief(line)) + "\n" for line in whole)
        if text != index.read_text(encoding="utf-8"):
            with write_whole(index, StoreError) as partial:
                partial.write_text(text, encoding="utf-8")
        return whole

    def _hold(self, line: dict[str, Any]) -> None:
        ids, rmfs = line["detections"], {*line["rmfs"]}
        if rmfs.issuperset(ids):
            self._held.update({*ids} - _refused(line).keys())
        elif not _refused(line):
            self._shared.setdefault(tuple(ids), set()).update(rmfs)

    def __contains__(self, package: Package) -> bool:
        ids = tuple(map(str, package.detections))
        return self._held.issuperset(ids) or self._shared.get(ids, set()).issuperset(map(str, package.first_rmfs))

    def holds(self, detection: DetectionId) -> bool:
        """Tell whether the mirror has all files of a detection."""
        return str(detection) in self._held

    def write_catalog(self, planned: Plan) -> None:
        """Add the selection's rows to the mirror's catalog."""
        catalog, path = planned.catalog, self.folder / CATALOG_FILE
        with write_whole(path, StoreError) as partial:
            if path.exists():
                held = normalise(read_columns(path, str(path))[0], str(path), file=CATALOG_FILE)
                catalog = plan(pa.concat_tables([catalog, held], promote_options="default")).catalog
            partial.write_bytes(write_votable(catalog.to_pylist(), own_columns(catalog.schema)))

    def add(self, package: Package, fetched: Fetched) -> None:
        """Keep the files of a package, as `keep` does."""
        files = (product for part in fetched.parts for product in members(part))
        self.keep(package.detections, files, fetched.unserved, fetched.rmfs)

    def keep(
        self,
        detections: Sequence[DetectionId],
        files: Iterable[ProductFile],
        unserved: Mapping[DetectionId, str] = MappingProxyType({}),
        rmfs: frozenset[DetectionId] | None = None,
    ) -> None:
        """Keep the files of some detections: one tar, flushed and renamed, then its line in the index.

        Parameters
        ----------
        rmfs : frozenset of DetectionId, optional
            Detections whose RMF was asked for; None for all.

        Raises
        ------
        StoreError
            If it cannot be written; what was there before stays.
        """
        ids = [str(detection) for detection in detections]
        asked = ids if rmfs is None else sorted(map(str, rmfs))
        words = ids if rmfs is None else [*ids, "rmf", *asked]
        name = f"packages/{hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]}.tar"
        path = self.folder / name
        with write_whole(path, StoreError, advice="; what was finished is kept") as partial:
            with partial.open("wb") as file:
                write_tar(file, files)
            size, digest = partial.stat().st_size, file_sha256(partial)
        line: dict[str, Any] = {"file": name, "bytes": size, "sha256": digest, "detections": ids, "rmfs": asked}
        if unserved:
            line["unserved"] = {str(detection): words for detection, words in unserved.items()}
        path = self.folder / INDEX_FILE
        try:
            with self._lock, path.open("a", encoding="utf-8") as index:
                index.write(json.dumps(_brief(line)) + "\n")
                index.flush()
                os.fsync(index.fileno())
                self._hold(line)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}; what was finished is kept") from error


def has_tar(folder: Path, line: dict[str, Any]) -> bool:
    """Tell whether the tar of an index line is there, in its full size."""
    path = folder / line["file"]
    return path.is_file() and bool(path.stat().st_size == line["bytes"])


def _brief(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out of an index line what goes without saying: that the RMF of each detection was asked for."""
    return {key: value for key, value in line.items() if key != "rmfs" or value != line["detections"]}


def _refused(line: dict[str, Any]) -> dict[str, str]:
    """Return the detections of an index line that the archive refused, to be asked for again, and its words."""
    return dict(line.get("unserved", {}))
