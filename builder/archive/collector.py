"""The files of one package as they come: asked for together, then in parts, then one by one."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import requests

from builder.archive.answers import Contents, Product, ProductCheck
from builder.archive.csccli import BANDS, FILETYPES, PackageService
from builder.archive.http import Request
from builder.archive.interface import Record
from builder.archive.packages import PACKAGE_PRODUCTS
from builder.archive.products import ProductName
from builder.model.errors import ArchiveError, RefusedError, StoreError, UnavailableError, WrongAnswerError
from builder.model.ids import DetectionId

_VERBS = ("GET", "POST")
_OTHER_VERB = (405, 414, 501)  # RFC 9110: not this verb, not so long an address, no such verb
_WITNESSES = 3
"""Detections that are asked for to see whether the service serves anything."""

_BELIEVED = 3
"""Detections that may be all that is refused where there are no others to ask for."""


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
            if again and (error := self._failure(again)):
                self.refusals |= dict.fromkeys((detection for detection, _ in again), str(error))
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
        if error := self._failure(products):
            self._alive = self._alive or (len(detections) > 1 and self._serves_packages(detections))
            if len(detections) > 1 and self._alive:
                self._halve(detections)
            else:
                self.refusals |= dict.fromkeys(detections, str(error))

    def _halve(self, detections: tuple[DetectionId, ...]) -> None:
        self._divide(detections[: len(detections) // 2])
        self._divide(detections[len(detections) // 2 :])

    def _failure(self, products: list[Product]) -> ArchiveError | None:
        """Ask for one package, and return what the archive says where it does not serve it."""
        try:
            self._retrieve(products)
        except UnavailableError as error:
            self._down = error
            return error
        except (RefusedError, WrongAnswerError) as error:
            return error
        return None

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
