"""Where the catalog and the product files come from: the services over HTTP, or a folder with the same content.

A mirror is a folder with ``catalog.vot`` (the catalog's answer), ``packages/*.tar`` (the archive's answers) and
``packages.jsonl``, which says for each tar its size, SHA-256 and detections, one line a tar. ``embedded`` is a mirror
that is made on this machine: two real detections that come with Sherpa, and simulated ones named ``SIM J…``.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder.catalog import Package, read_votable
from builder.errors import ArchiveError, CatalogError, SettingError
from builder.records import DetectionId
from builder.selection import Selection
from builder.settings import EMBEDDED

__all__ = ["CATALOG_FILE", "INDEX_FILE", "Archive", "Fetched", "MirrorArchive", "default_cache",
           "open_archive"]  # fmt: skip

CATALOG_FILE = "catalog.vot"
INDEX_FILE = "packages.jsonl"


def default_cache() -> Path:
    """Folder for the store and downloads: ``$CHANDRA_SPECTRA_CACHE``, else ``chandra_spectra`` in the user's cache."""
    if chosen := os.environ.get("CHANDRA_SPECTRA_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chandra_spectra"


@dataclass(frozen=True, slots=True)
class Fetched:
    """The files of one package on this machine.

    Attributes
    ----------
    parts : tuple of Path
        Tars, or single product files.
    url : str
        Where they were asked for; for a mirror the tars that have them.
    unserved : dict of DetectionId to str
        Detections that the archive refuses to serve, and its words.
    """

    parts: tuple[Path, ...]
    url: str
    unserved: dict[DetectionId, str] = field(default_factory=dict)


class Archive(ABC):
    """A source of the catalog and of packages."""

    release: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """What finished packages of this archive are kept under: other files under the same ids, another identity."""

    @abstractmethod
    def catalog(self, selection: Selection, dl_manager: Any) -> pa.Table:
        """The selected detections, columns of `builder.columns.CATALOG`, in any order; ArchiveError if it fails."""

    @abstractmethod
    def fetch(self, package: Package) -> AbstractContextManager[Fetched]:
        """Get the files of a package, which are there until the context ends; ArchiveError if it fails."""


@dataclass(frozen=True)
class MirrorArchive(Archive):
    """A mirror folder.

    Attributes
    ----------
    folder : Path
    release : str
    nulls : bool
        Let detections pass a cut on a quantity that the catalog does not give.
    """

    folder: Path
    release: str
    nulls: bool = False
    _index: dict[str, tuple[str, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def identity(self) -> str:
        """See `Archive.identity`; the path of the folder."""
        return str(self.folder.resolve())

    def catalog(self, selection: Selection, dl_manager: Any) -> pa.Table:
        """See `Archive.catalog`."""
        path = Path(dl_manager.download(str(self.folder / CATALOG_FILE)))
        try:
            table, overflow = read_votable(path.read_bytes(), str(path))
        except OSError as error:
            raise CatalogError(f"cannot read {path}: {error.strerror}") from error
        if overflow:
            raise CatalogError(f"{path} was cut at the service's row limit; download the mirror again")
        keep = [selection.keeps(row, nulls=self.nulls) for row in table.to_pylist()]
        return table.filter(pa.array(keep, pa.bool_()))

    @contextmanager
    def fetch(self, package: Package) -> Iterator[Fetched]:
        """See `Archive.fetch`."""
        if not self._index:
            self._read_index()
        entries = dict.fromkeys(self._index[str(d)] for d in package.detections if str(d) in self._index)
        for name, size in entries:
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                what = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ArchiveError(f"{path} {what}; download the mirror again")
        # Relative, so that the same mirror in another place gives the same rejections.
        yield Fetched(tuple(self.folder / name for name, _ in entries), " ".join(name for name, _ in entries))

    def _read_index(self) -> None:
        path = self.folder / INDEX_FILE
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                self._index.update(dict.fromkeys(line["detections"], (line["file"], line["bytes"])))
        except OSError as error:
            raise ArchiveError(f"cannot read {path}: {error.strerror}; is {self.folder} a mirror?") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ArchiveError(f"{path} is damaged: {error}; download the mirror again") from error


def open_archive(archive: str, release: str, cache: Path, connections: int = 4) -> Archive:
    """The archive that a setting names.

    Parameters
    ----------
    archive : str
        ``embedded``, a mirror folder, or the base URL of the services.
    release : str
        Version word of the catalog.
    cache : Path
        Folder for what is downloaded or made.
    connections : int
        Connections at once, of all runs that share `cache`.

    Raises
    ------
    SettingError
        If it is none of them.
    """
    if archive == EMBEDDED:
        from builder.embedded import EMBEDDED_VERSION, make_embedded_mirror

        folder = cache / f"embedded-{EMBEDDED_VERSION}"
        if not (folder / INDEX_FILE).exists():
            make_embedded_mirror(folder)
        return MirrorArchive(folder, release, nulls=True)
    if archive.startswith(("http://", "https://")):
        from builder.remote import HttpArchive

        return HttpArchive(archive.rstrip("/"), release, cache / "downloads", connections)
    folder = Path(archive).expanduser()
    if (folder / CATALOG_FILE).is_file():
        return MirrorArchive(folder, release)
    what = f"the folder holds no {CATALOG_FILE}" if folder.is_dir() else "no such folder"
    raise SettingError(f"archive {archive!r} ({what}): give 'embedded', a mirror folder or an http(s) URL")
