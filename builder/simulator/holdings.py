"""Holdings of a local archive server: a catalog and the files of its detections."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from builder.archive.catalog import read_votable
from builder.archive.mirror import CATALOG_FILE, read_index
from builder.archive.products import ProductName
from builder.model.errors import ArchiveError
from builder.model.ids import DetectionId
from builder.model.records import File


class Holdings(Protocol):
    """A catalog and its files, to be asked from several threads at once."""

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The catalog, one row a detection, by bare column name; None is null."""

    def files(self, detection: DetectionId) -> list[File]:
        """Return the product files of a catalog row: three, six for an interleaved observation, none for HRC."""


class MirrorHoldings:
    """The content of a mirror folder, see `builder.archive.mirror`.

    Parameters
    ----------
    folder : Path

    Raises
    ------
    ArchiveError
        If the folder is no mirror, or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            table, _ = read_votable(folder / CATALOG_FILE, str(folder / CATALOG_FILE))
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
