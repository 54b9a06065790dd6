"""One RMF an observation: whose is asked for, and where each detection needs its own all the same.

The reduction uses nothing of an RMF but its channel energies, which are the same in all known ACIS products
(`builder.model.records.ACIS_GRID`). So those of one detection serve all others of its observation in the package: those
of the first, in the catalog's order, that has an RMF which can be read. Where an RMF that was read has other energies,
it proves nothing for the observation's other detections: there each one's own RMF is asked for.

What a package comes to depends on nothing but its detections and the archive's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from builder.archive.packages import Package
from builder.archive.products import group_products, members
from builder.model.errors import ProductError
from builder.model.ids import DetectionId
from builder.model.records import ACIS_GRID, Energies
from builder.reduce.energies import read_energies

Grids = Mapping[str, frozenset[str]]
"""The channel energy grids, by their ids, that were found in each observation of a package."""


class Choice:
    """A choice of the detections whose RMF is asked for, see `builder.archive.interface.Choose`.

    Attributes
    ----------
    energies : dict of str to Energies
        Of each observation, with its cycle, that one RMF serves; complete when nothing more is chosen.
    useless : set of DetectionId
        Whose RMF was tried, and cannot be read.
    """

    def __init__(self, package: Package) -> None:
        self.energies: dict[str, Energies] = {}
        self._package = package
        self._asked: set[DetectionId] = set()
        self.useless: set[DetectionId] = set()

    def __call__(self, parts: Sequence[Path] | None) -> frozenset[DetectionId]:
        """Choose the first of each observation, then others for as long as there are no energies."""
        if parts is None:
            self.energies.clear()
            self.useless.clear()
            self._asked = {*self._package.first_rmfs}
            return frozenset(self._asked)
        if not self._package.shares:
            return frozenset()
        lacking = self._read(parts)
        more: set[DetectionId] = set()
        for name, detections in self._package.observations.items():
            left = [detection for detection in detections if detection not in self._asked]
            if name in lacking:  # twice as many each time: few requests, even where the archive has none at all
                more.update(left[: len(detections) - len(left)])
        self._asked |= more
        return frozenset(more)

    def _read(self, parts: Sequence[Path]) -> set[str]:
        """Read the first RMF of each observation that can be read; give the observations without one."""
        lacking: dict[str, str] = {}
        files = (file for part in parts for file in members(part))
        for products in group_products(self._package.detections, files):
            key, detection = products.detection.observation, products.detection
            if key in self._package.own or key in self.energies:
                continue
            if products.rmf and detection.catalog in self._asked and detection not in self.useless:
                try:
                    self.energies[key] = read_energies(detection, products.rmf)
                    lacking.pop(key, None)
                    continue
                except ProductError:
                    self.useless.add(detection)
            if products.pha and products.arf:
                lacking[key] = detection.catalog.observation
        return {*lacking.values()}


class Agreement:
    """The observations of a plan whose detections need their own RMFs.

    Parameters
    ----------
    packages : iterable of Package
        All of the plan, since an observation may lie in several.
    grids : callable
        Gives the grids of a package.
    """

    def __init__(self, packages: Iterable[Package], grids: Callable[[Package], Grids]) -> None:
        self._grids = cache(grids)
        self._sharing: dict[str, list[Package]] = {}
        for package in packages:
            for name in package.observations if package.shares else ():
                self._sharing.setdefault(name, []).append(package)

    def settle(self, package: Package) -> Package:
        """Return the package as it is to be made: with its `own` observations."""
        if not package.shares or package.own:
            return package
        own = {
            key
            for name in package.observations
            for sharing in self._sharing.get(name, ())
            for key, ids in self._grids(sharing).items()
            if ids != {ACIS_GRID} and name == ".".join(key.split(".")[:2])
        }
        return replace(package, own=tuple(sorted(own)))
