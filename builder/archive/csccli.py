"""The package service: how the files of a package are asked for, and what one learns of the service on the way.

Public clients show one way that works; what the service takes beside it is not known. So the proven way comes first,
others where it fails, and whatever works is remembered for the run.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import requests

from builder.archive.answers import Contents, Product, ProductCheck, check_listing, judge_tar
from builder.archive.http import Client, Request
from builder.archive.interface import Record
from builder.archive.packages import PACKAGE_PRODUCTS
from builder.archive.products import KINDS, MAX_DETECTION_BYTES, MAX_MEMBER_BYTES, ProductName
from builder.model.errors import ArchiveError, RefusedError, StoreError, UnavailableError, WrongAnswerError
from builder.model.ids import DetectionId

logger = logging.getLogger(__name__)

FILETYPES = {"pha": "spectrum", "rmf": "rmf", "arf": "arf"}
"""The service's words for the products, in the order that is proven."""

BANDS = ("", "b")
"""Bands in the request for a listing: without one is proven."""

_VERBS = ("GET", "POST")
_OTHER_VERB = (405, 414, 501)  # RFC 9110: not this verb, not so long an address, no such verb
_WITNESSES = 3
"""Detections that are asked for to see whether the service serves anything."""

_BELIEVED = 3
"""Detections that may be all that is refused where there are no others to ask for."""

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


@dataclass
class Collector:
    """The files of one package as they come.

    Attributes
    ----------
    folder : Path
        Where the files go.
    parts : list of Path
        Tars and single files; of two files of one name the later is the better.
    rmfs : set of DetectionId
        Detections whose RMF is asked for; more may be added before each `collect`.
    refusals : dict of DetectionId to str
        Detections that the service did not serve, and its words.
    doubtful : set of DetectionId
        Detections that an outage would leave as they are.
    """

    service: PackageService
    session: requests.Session
    folder: Path
    detections: tuple[DetectionId, ...]
    record: Record
    parts: list[Path] = field(default_factory=list)
    rmfs: set[DetectionId] = field(default_factory=set)
    refusals: dict[DetectionId, str] = field(default_factory=dict)
    doubtful: set[DetectionId] = field(default_factory=set)
    _have: set[Product] = field(default_factory=set)
    _damaged: set[Product] = field(default_factory=set)
    _settled: set[Product] = field(default_factory=set)
    _down: UnavailableError | None = None
    _alive: bool = False
    _turn: int = 0

    def collect(self) -> bool:
        """Ask for all in a package, then for what it lacks, then file by file.

        What an earlier call could not get is not asked for again.

        Returns
        -------
        bool
            Whether it may be believed: the service is seen to serve something, or all came.

        Raises
        ------
        ArchiveError
            The archive refuses this client, or answers nothing.
        """
        facts, earlier = self.service.facts, self.refusals
        if not self._lacking():
            return True
        self.refusals = {}
        if facts.packages:
            self._divide(tuple(dict.fromkeys(detection for detection, _ in self._lacking())))
            again = [product for product in self._lacking() if product[0] not in self.refusals]
            if again:
                self._once_more(again)
        else:
            self.refusals = dict.fromkeys((one for one, _ in self._lacking()), "packages are not served")
        if self._down is not None and not self._lists_anything():
            raise self._down
        for number, detection in enumerate(dict.fromkeys(detection for detection, _ in self._lacking())):
            if number == _BELIEVED and not self._have and not self.alive():
                self.doubtful = {*self.detections}
                return False
            self._one_by_one(detection)
        lacking = {detection for detection, _ in self._lacking()}
        if facts.packages and len(self._have) and not facts.verb:
            facts.packages = False
            facts.tell(f"{self.service.client.host} serves no packages: files are asked for one by one")
        self.refusals = {d: words for d, words in self.refusals.items() if d in lacking and not self._reducible(d)}
        self.doubtful = {*self.refusals} or ({*self.detections} if not self._have | self._damaged else set())
        self.refusals = earlier | self.refusals
        self._settled |= {*self._lacking()}
        return not self.doubtful or self.alive()

    def _divide(self, detections: tuple[DetectionId, ...]) -> None:
        """Ask for detections in one package; where that is refused though others are served, in halves."""
        products = [product for product in self._lacking() if product[0] in detections]
        if len(products) > PACKAGE_PRODUCTS and len(detections) > 1:
            self._halve(detections)
            return
        try:
            self._retrieve(products)
        except (RefusedError, WrongAnswerError, UnavailableError) as error:
            if isinstance(error, UnavailableError):
                self._down = error
            self._alive = self._alive or (len(detections) > 1 and self._serves_packages(detections))
            if len(detections) > 1 and self._alive:
                self._halve(detections)
            else:
                self.refusals |= dict.fromkeys(detections, str(error))

    def _halve(self, detections: tuple[DetectionId, ...]) -> None:
        self._divide(detections[: len(detections) // 2])
        self._divide(detections[len(detections) // 2 :])

    def _once_more(self, products: list[Product]) -> None:
        """Ask for what a package lacked."""
        try:
            self._retrieve(products)
        except (RefusedError, WrongAnswerError, UnavailableError) as error:
            if isinstance(error, UnavailableError):
                self._down = error
            self.refusals |= dict.fromkeys((detection for detection, _ in products), str(error))

    def _retrieve(self, products: list[Product]) -> None:
        """Ask for one package, with the verb that works."""
        service, facts = self.service, self.service.facts
        path = self.folder / f"{len(self.parts)}.tar"
        found: list[Contents] = []
        ask = functools.partial(service.package, products, contents=found)
        if not facts.verb:
            with facts.learning:  # so that other threads need not learn the same
                self._learn_verb(ask, path)
        if not found:
            alive = functools.partial(self.alive, {detection for detection, _ in products})
            verb = facts.verb or _VERBS[0]
            try:
                service.client.download(self.session, ask(verb=verb), path, alive)
            except RefusedError as error:
                if error.status not in _OTHER_VERB:
                    raise
                other = _VERBS[1 - _VERBS.index(verb)]
                service.client.download(self.session, ask(verb=other), path, alive)
                if error.status != 414:
                    facts.verb = other
            facts.verb = facts.verb or verb
        (contents,) = found
        self.record(service.package_url(products), path)
        self.parts.append(path)
        self._have |= contents.good
        self._damaged |= contents.damaged
        if contents.form:
            facts.tell(f"{service.client.host}: packages are tars with {contents.form}")
        if contents.good and facts.proof is None:
            facts.proof = service.witness(min(detection for detection, _ in contents.good), facts.verb)

    def _learn_verb(self, ask: functools.partial[Request], path: Path) -> None:
        """Ask once with either verb; the one that works is kept."""
        service, facts = self.service, self.service.facts
        for verb in () if facts.verb else _VERBS:
            try:
                service.client.ask(self.session, ask(verb=verb), path)
            except WrongAnswerError:
                continue
            except RefusedError as error:
                if error.status not in _OTHER_VERB:
                    raise
                continue
            except StoreError:
                raise
            except ArchiveError:  # which says nothing of the verb
                return
            facts.verb = verb
            facts.tell(f"{service.client.host} serves packages by {verb}")
            return

    def _one_by_one(self, detection: DetectionId) -> None:
        """List the files of a detection, one kind after the other, and fetch what no package held."""
        for lacking, kind in [product for product in self._lacking() if product[0].catalog == detection]:
            try:
                listed = self._listed((lacking, kind))
                for product, filename in listed.items():
                    if product not in self._have:
                        self._fetch_file(product, filename)
            except (RefusedError, WrongAnswerError, UnavailableError) as error:
                said = [words for words in (self.refusals.get(detection), str(error)) if words]
                self.refusals[detection] = "; ".join(dict.fromkeys(said))
                return
            if not listed and (kind != "rmf" or self.rmfs.issuperset(self.detections)):
                break  # without this file there is no row, whatever else there is
        self.refusals.pop(detection, None)

    def _lists_anything(self) -> bool:
        """Ask whether at least listings are served, where packages are not."""
        for band in BANDS:
            request = self.service.listing((self.detections[0], "pha"), band)
            if self._comes(request):
                self.service.facts.proof = request
                return True
        return False

    def _listed(self, product: Product) -> dict[Product, str]:
        """List the files of a kind, in whichever way the service lists any."""
        service, facts = self.service, self.service.facts
        path = self.folder / "browse.json"
        failure: ArchiveError | None = None
        alive = functools.partial(self.alive, {product[0].catalog})
        for band in BANDS if facts.band is None else (facts.band,):
            request = service.listing(product, band)
            try:
                service.client.download(self.session, request, path, alive)
            except StoreError:
                raise
            except ArchiveError as error:
                failure = failure or error
                continue
            found = parsed_listing(path, product)
            if found:
                if facts.band is None:
                    facts.band = band
                    facts.tell(f"{service.client.host} lists files {'of a band' if band else 'without a band'}")
                facts.proof = facts.proof or request
                return found
        if failure is not None:
            raise failure
        return {}

    def _fetch_file(self, product: Product, filename: str) -> None:
        service = self.service
        name = filename.replace("\\", "/").rpartition("/")[2]  # parsed as a product's, so no path hides in it
        path = self.folder / name
        check, held = ProductCheck(), self._have
        request = service.single(filename, product[1], check)
        alive = functools.partial(self.alive, {product[0].catalog})
        try:
            service.client.download(self.session, request, path, alive)
        except (RefusedError, WrongAnswerError):
            if product in self._damaged:  # as it came in the package: the reduction says what is wrong with it
                return
            if not check.damaged:
                raise
            path.write_bytes(check.damaged)
            held = self._damaged
        self.record(request.url, path)
        self.parts.append(path)
        held.add(product)
        service.facts.proof = service.facts.proof or request

    def alive(self, asked: Iterable[DetectionId] = ()) -> bool:
        """Ask whether the service serves something else now: what it served before or, if it never did, any other."""
        facts = self.service.facts
        if facts.proof is not None:
            return self._comes(facts.proof)
        return self._serves_packages({*asked} or self.doubtful)

    def _serves_packages(self, asked: Iterable[DetectionId]) -> bool:
        facts, known = self.service.facts, {*asked}
        if facts.verb and facts.proof is not None:
            return self._comes(facts.proof)
        others = [one for one in (*self.service.others, *self.detections) if one not in known]
        others = list(dict.fromkeys(others)) or (list(self.detections) if len(known) > 1 else [])
        for number in range(min(_WITNESSES, len(others))):
            witness = others[(self._turn + number) % len(others)]
            for verb in (facts.verb,) if facts.verb else _VERBS:
                request = self.service.witness(witness, verb)
                if self._comes(request):
                    facts.verb, facts.proof = verb, request
                    return True
        self._turn += _WITNESSES
        return False

    def _comes(self, request: Request) -> bool:
        path = self.folder / "witness"
        try:
            self.service.client.ask(self.session, request, path)
        except StoreError:
            raise
        except ArchiveError:
            return False
        path.unlink()
        return True

    @property
    def alone(self) -> bool:
        """Whether few are in doubt, and there is nothing else to ask for: they may be all that is refused."""
        others = {*self.service.others, *self.detections} - self.doubtful
        return self.service.facts.proof is None and len(self.doubtful) <= _BELIEVED and not others

    def _lacking(self) -> list[Product]:
        """List products that are missing, of any cycle that has one."""
        cycles: dict[DetectionId, set[DetectionId]] = {}
        for detection, _ in self._have:
            cycles.setdefault(detection.catalog, set()).add(detection)
        return [
            (detection, kind)
            for detection in self.detections
            for kind in self._kinds(detection)
            if (detection, kind) not in self._settled
            and any((key, kind) not in self._have for key in cycles.get(detection, {detection}))
        ]

    def _kinds(self, detection: DetectionId) -> list[str]:
        """List the kinds of file that are asked for, in the service's order."""
        return [kind for kind in FILETYPES if kind != "rmf" or detection in self.rmfs]

    def _reducible(self, detection: DetectionId) -> bool:
        """Tell whether all files of a spectrum of the detection are there, be they damaged."""
        there = self._have | self._damaged
        keys = {key for key, _ in there if key.catalog == detection}
        return any(all((key, kind) in there for kind in self._kinds(detection)) for key in keys)


def parsed_listing(path: Path, product: Product) -> dict[Product, str]:
    """Read the files of a detection and a kind in a listing."""
    found = {}
    for entry in json.loads(path.read_bytes()):
        filename = str(entry.get("filename", ""))
        name = ProductName.parse(filename)
        if name is not None and (name.detection.catalog, name.kind) == (product[0].catalog, product[1]):
            found[name.detection, name.kind] = filename
    return found
