"""The package service: how the files of a package are asked for, and what one learns of the service on the way.

Public clients show one way that works; what the service takes beside it is not known. So the proven way comes first,
others where it fails, and whatever works is remembered for the run.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from builder.archive.answers import Contents, Product, ProductCheck, check_listing, judge_tar
from builder.archive.http import Client, Request
from builder.archive.products import KINDS, MAX_DETECTION_BYTES, MAX_MEMBER_BYTES
from builder.model.errors import WrongAnswerError
from builder.model.ids import DetectionId

logger = logging.getLogger(__name__)

FILETYPES = {"pha": "spectrum", "rmf": "rmf", "arf": "arf"}
"""The service's words for the products, in the order that is proven."""

BANDS = ("", "b")
"""Bands in the request for a listing: without one is proven."""

_PROCESS: dict[str, Facts] = {}


@dataclass
class Facts:
    """What is known of the service in this run: one for all threads, and in each worker process.

    Attributes
    ----------
    run : str
        Names the run.
    verb : str
        The verb that packages are asked for with; '' before one worked.
    band : str or None
        The band in requests for listings; None before one listed anything.
    packages : bool
        Whether packages are worth asking for.
    proof : Request or None
        Something small that was served.
    """

    run: str
    verb: str = ""
    band: str | None = None
    packages: bool = True
    proof: Request | None = None
    learning: threading.Lock = field(default_factory=threading.Lock)
    _told: set[str] = field(default_factory=set)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _facts_of, (self.run, self.verb, self.band, self.packages)

    def tell(self, words: str) -> None:
        """Log something once."""
        if words not in self._told:
            self._told.add(words)
            logger.info("%s", words)


def _facts_of(run: str, *known: object) -> Facts:
    """Find the facts of a run in this process: a worker gets those of its first task, and adds to them."""
    return _PROCESS.setdefault(run, Facts(run, *known))  # type: ignore[arg-type]


@dataclass
class PackageService:
    """``/csccli`` of one archive.

    Attributes
    ----------
    base, version : str
        Base URL, and the release's word.
    others : tuple of DetectionId
        Detections of the plan, to ask for where it must be known whether the service serves at all.
    """

    client: Client
    base: str
    version: str
    facts: Facts
    others: tuple[DetectionId, ...] = ()

    def package_url(self, products: Iterable[Product], safe: str = "/,") -> str:
        """Give the address of a package."""
        return self._url("retrieve", products, "b", safe)

    def detection_url(self, detection: DetectionId) -> str:
        """Give the address of the package of one detection, for people."""
        return self.package_url((detection, kind) for kind in FILETYPES)

    def _url(self, service: str, products: Iterable[Product], band: str, safe: str = "") -> str:
        wanted = ",".join(f"{one.catalog}/{FILETYPES[kind]}/{band}" for one, kind in products)
        # Percent-encoded, slashes and commas, too: the form that is proven.
        form = {"version": self.version, "packageset": wanted}
        return f"{self.base}/csccli/{service}?" + urlencode(form, safe=safe)

    def package(self, products: Sequence[Product], verb: str, contents: list[Contents]) -> Request:
        """Ask for a package; what it holds is appended to `contents` when it is there."""
        wanted = {detection.catalog for detection, _ in products}
        # A detection of an interleaved observation has two files of each kind.
        limit = 2 * len(KINDS) * len(wanted)
        largest = MAX_DETECTION_BYTES * len(wanted)

        def check(path: Path, framed: bool) -> None:
            contents[:] = [judge_tar(path, framed, wanted, limit, largest)]

        return Request(self.package_url(products, safe=""), check, largest, verb)

    def witness(self, detection: DetectionId, verb: str) -> Request:
        """Ask for the smallest thing that tells whether packages are served."""
        check = functools.partial(
            _check_witness, wanted={detection.catalog}, limit=2 * len(KINDS), max_bytes=MAX_MEMBER_BYTES
        )
        return Request(self.package_url([(detection, "pha")], safe=""), check, MAX_MEMBER_BYTES, verb)

    def listing(self, product: Product, band: str) -> Request:
        """Ask which files there are of one kind."""
        return Request(self._url("browse", [product], band), check_listing, MAX_MEMBER_BYTES)

    def single(self, filename: str, kind: str, check: ProductCheck) -> Request:
        """Ask for one file."""
        form = {"filename": filename, "filetype": FILETYPES[kind], "version": self.version}
        query = urlencode(form, errors="replace")  # JSON may hold characters that no address can
        return Request(f"{self.base}/csccli/retrieveFile?{query}", check, MAX_MEMBER_BYTES)


def _check_witness(path: Path, framed: bool, wanted: set[DetectionId], limit: int, max_bytes: int) -> None:
    if not judge_tar(path, framed, wanted, limit, max_bytes).good:
        raise WrongAnswerError("the package service answered an empty package")
