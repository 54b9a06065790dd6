"""The archive over HTTP: the catalog's TAP service and the package service."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests

from builder.archive.collector import Collector
from builder.archive.connections import Slots
from builder.archive.csccli import Facts, PackageService
from builder.archive.http import Client
from builder.archive.interface import Answer, Archive, Choose, Fetched, Record, choose_all, forget
from builder.archive.packages import Package
from builder.archive.tap import CatalogService
from builder.model.errors import TransientError
from builder.model.ids import DetectionId
from builder.model.releases import release_of
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CONNECTIONS

logger = logging.getLogger(__name__)


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
    remote: bool = True
    _facts: Facts = field(default_factory=lambda: Facts(uuid.uuid4().hex))
    _others: tuple[DetectionId, ...] = ()

    def __post_init__(self) -> None:
        if not release_of(self.release).known:
            logger.warning(
                "release %s is not known to this version: its service and tables are taken to be named as those of the "
                "releases before it",
                self.release,
            )

    @property
    def identity(self) -> str:
        """See `Archive.identity`; the base URL."""
        return self.base

    @contextlib.contextmanager
    def slot(self) -> Iterator[tuple[Path, requests.Session]]:
        """Give a folder and a session with one connection: they last as long as the place in the budget."""
        with Slots(self.folder, self.connections).take() as (folder, session):
            yield folder, session

    @property
    def service(self) -> CatalogService:
        """The catalog's service."""
        return CatalogService(self.client, self.base, release_of(self.release), self.slot, self.folder)

    @property
    def packages(self) -> PackageService:
        """The package service."""
        return PackageService(self.client, self.base, self.release, self._facts, self._others)

    def catalog(self, selection: Selection, columns: Sequence[str] = (), record: Record = forget) -> Answer:
        """See `Archive.catalog`."""
        return Answer(*self.service.rows(selection, record, columns))

    def expect(self, detections: Sequence[DetectionId]) -> None:
        """See `Archive.expect`."""
        self._others = tuple(detections)

    @contextlib.contextmanager
    def fetch(self, package: Package, record: Record = forget, choose: Choose | None = None) -> Iterator[Fetched]:
        """See `Archive.fetch`.

        Detections that the service serves in no way, though it serves others, are named in `Fetched.unserved`.

        Raises
        ------
        UnavailableError
            If it serves nothing else either, for as long as the client's patience says.
        """
        service, choose = self.packages, choose or choose_all(package)
        urls = {detection: service.detection_url(detection) for detection in package.detections}
        begun, tries = self.client.clock(), 0
        with self.slot() as (folder, session):
            while True:
                collector = Collector(service, session, folder, package.detections, record)
                if _collected(collector, choose):
                    break
                # To go on would turn an outage into rejections, which are not asked for again by themselves.
                words = next(iter(collector.refusals.values()), "it lists no files")
                error = TransientError(f"the service refuses whatever it is asked for: {words}")
                while True:
                    tries += 1
                    self.client.pause(error, tries, begun)
                    if collector.alive():
                        break
                for path in folder.iterdir():
                    path.unlink()
            rmfs = None if collector.rmfs.issuperset(package.detections) else frozenset(collector.rmfs)
            yield Fetched(tuple(collector.parts), urls, collector.refusals, rmfs=rmfs)


def _collected(collector: Collector, choose: Choose) -> bool:
    """Collect all files of a package, more RMFs for as long as any are chosen; whether it may be believed."""
    chosen = choose(None)
    while chosen:
        collector.rmfs |= chosen
        if not (collector.collect() or collector.alone):
            return False
        chosen = choose(collector.parts)
    return True
