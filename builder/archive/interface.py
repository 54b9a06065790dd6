"""Interface of every archive: the catalog and the product files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from builder.archive.packages import Origin, Package
from builder.files import file_sha256
from builder.model.errors import ArchiveError
from builder.model.ids import DetectionId
from builder.model.selection import Selection

Record = Callable[[str, Path], None]
"""A function that is called with the address and the file of each answer, while the file is there."""


Choose = Callable[[Sequence[Path] | None], frozenset[DetectionId]]
"""A function that chooses the detections whose RMF is asked for next: given None at first, and then all parts of the
package that are there, until it chooses none."""


def forget(address: str, path: Path) -> None:
    """Record nothing."""


def choose_all(package: Package) -> Choose:
    """Choose all detections of a package at first."""
    return lambda parts: frozenset(package.detections) if parts is None else frozenset()


class Answer(NamedTuple):
    """The catalog's rows, and where they come from; None for files of this machine."""

    rows: pa.Table
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """The files of one package on this machine.

    Attributes
    ----------
    parts : tuple of Path
        Tars, or single product files.
    urls : dict of DetectionId to str
        Where those of each detection can be asked for; for a mirror the tars that have them.
    unserved : dict of DetectionId to str
        Detections that the archive refuses to serve, and its words.
    sha256 : tuple of str
        What the parts were when they were kept; empty where no one knows.
    rmfs : frozenset of DetectionId, optional
        Detections whose RMF was asked for; None for all.
    """

    parts: tuple[Path, ...]
    urls: dict[DetectionId, str]
    unserved: dict[DetectionId, str] = field(default_factory=dict)
    sha256: tuple[str, ...] = ()
    rmfs: frozenset[DetectionId] | None = None

    def check(self) -> None:
        """Raise ArchiveError if a part is not what was kept."""
        for path, expected in zip(self.parts, self.sha256, strict=False):
            try:
                found = file_sha256(path)
            except OSError as error:
                raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
            if found != expected:
                raise ArchiveError(f"{path} is damaged: its checksum is wrong; remove it and download the mirror again")


class Archive(ABC):
    """A source of the catalog and of packages."""

    release: str
    remote: bool = False
    """Whether packages come over connections, of which there are few."""
    nulls: bool = False
    """Let a detection pass a cut on a quantity that the catalog does not give."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What finished packages of this archive are kept under: other files under the same ids, another identity."""

    @abstractmethod
    def catalog(self, selection: Selection, columns: Sequence[str] = (), record: Record = forget) -> Answer:
        """Ask for at least the selected detections, columns of `builder.model.columns.CATALOG`, in any order.

        Parameters
        ----------
        columns : sequence of str
            Others to ask for, such as ``m.gal_l``. A catalog that is a file gives all of its own where none is named.

        Raises
        ------
        ArchiveError
            If the catalog cannot be had whole.
        """

    @abstractmethod
    def fetch(
        self, package: Package, record: Record = forget, choose: Choose | None = None
    ) -> AbstractContextManager[Fetched]:
        """Get the files of a package, which are there until the context ends; ArchiveError if it fails.

        PHA and ARF of every detection, and the RMF of those that `choose` chooses, all by default.
        """

    def expect(self, detections: Sequence[DetectionId]) -> None:  # noqa: B027  not all archives can be out of order
        """Hear of some detections of the plan, so that an outage can be told from what one of them lacks."""
