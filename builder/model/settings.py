"""Settings that decide the content of a dataset: the archive, the release, the cuts and the recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from builder.model.errors import SettingError
from builder.model.ids import designation
from builder.model.releases import release_of
from builder.model.selection import Selection
from builder.model.splits import Splits

DEFAULT_ARCHIVE = "https://cda.cfa.harvard.edu"
"""Base URL of the Chandra Data Archive's services."""

DEFAULT_RELEASE = "rel2.1"
"""Version word of the catalog's current release."""

EMBEDDED = "embedded"
EMBEDDED_REMARK = (
    "Two of its rows are real: 4938.0.43 and 7867.0.2, products of release 1 that come with Sherpa, each named after "
    "its position and without what only the catalog gives, such as `src_cnts_aper_b`. The others, named `SIM J…`, are "
    "simulated; some are damaged on purpose, and rejected."
)
"""Origin of the embedded sample's rows, in Markdown."""

"""The archive that is made on this machine: two real detections and simulated ones."""

DEFAULT_LABEL_RADIUS = 1 / 3600
"""deg: about the error of a position on the axis (Evans et al. 2010, ApJS 189, 37)."""

DEFAULT_CONNECTIONS = 4
"""Connections to the archive at once: its own limit is not published, so few."""

RMFS = ("each", "observation")
"""Detections whose RMF is asked for: each, or one of each observation, whose channel energies then serve the others."""

DEFAULT_CUTS = {"min_cnts": 40.0, "min_sig": 4.0, "max_theta": 10.0}
"""Of net counts, of flux significance, and arcmin off axis: the largest recommended set."""


_CHANNEL = 0.0146
"""keV in a PI channel of ACIS: each of fewer and wider bins holds the centre of one."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of the reduction.

    Attributes
    ----------
    energy_min, energy_max : float
        Kept energy range in keV; channels that reach outside are dropped as Sherpa's ``ignore`` drops them.
    min_counts : int
        Smallest number of source counts in a group (Sherpa's ``group_counts``).
    subtract : bool
        Subtract the scaled background.
    group : bool
        Group the channels; if not, every kept channel is a bin.

    Raises
    ------
    SettingError
        If the range is empty, not finite or outside 0–20 keV, `min_counts` is not a positive integer, or a
        switch is not a bool.
    """

    energy_min: float = 0.5
    energy_max: float = 8.0
    min_counts: int = 5
    subtract: bool = True
    group: bool = True

    VERSION = 1
    """Raised whenever the same files would give other numbers; part of every key in the store."""

    def __post_init__(self) -> None:
        for name in ("energy_min", "energy_max"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SettingError(f"{name} must be a number of keV, not {value!r}")
            object.__setattr__(self, name, float(value))
        if not 0 <= self.energy_min < self.energy_max <= 20:
            raise SettingError(
                f"the energy range {self.energy_min:g}-{self.energy_max:g} keV must rise and lie within 0-20 keV"
            )
        if isinstance(self.min_counts, bool) or not isinstance(self.min_counts, int) or self.min_counts < 1:
            raise SettingError(
                f"the counts of a group (min_counts) must be a whole number of at least 1, not {self.min_counts!r}"
            )
        for name in ("subtract", "group"):
            if not isinstance(getattr(self, name), bool):
                raise SettingError(f"{name} must be True or False, not {getattr(self, name)!r}")

    def as_dict(self) -> dict[str, float | int | bool]:
        """Return the settings and the version, as they are written beside the data."""
        return {**dataclasses.asdict(self), "version": self.VERSION}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Recipe:
        """Return the inverse of `as_dict`, whatever the version; SettingError for a setting that is not known."""
        known = {name: value for name, value in said.items() if name != "version"}
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in known if name not in names]:
            raise SettingError(f"recipe has no setting {unknown[0]!r}: it has {', '.join(names)}")
        return cls(**known)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that change with any setting or the version."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the content of a dataset depends on, besides what the archive answers.

    Attributes
    ----------
    archive : str
        ``embedded``, a mirror folder, or the base URL of the services.
    release : str
        Version word of the catalog.
    catalog : str
        A catalog file (any table that astropy reads) in place of the archive's own catalog.
    selection : Selection
        A cut that is not given is that of `DEFAULT_CUTS`, and none for the embedded sample and a catalog file.
    responses : bool
        Keep the response matrices, for config ``responses``.
    bins : int
        Number of logarithmic bins of the kept energies, for config ``binned``; 0 for none.
    rmf : str
        One of `RMFS`.
    columns : tuple of str
        Columns of the catalog besides those of the dataset, such as ``m.gal_l`` (of its sources) and ``o.apec_z`` (of
        its detections).
    sources : bool
        Sum the detections of each source, for config ``sources``.
    labels : str
        A file with labels of sources, see `builder.dataset.labels.add_labels`.
    label_radius : float
        Greatest distance of a label's position from its source, deg.

    Raises
    ------
    SettingError
        If the archive is no folder's name and no address, the release unknown, a bin narrower than a channel, or
        responses are to be kept of RMFs that are not asked for.
    """

    archive: str = DEFAULT_ARCHIVE
    release: str = DEFAULT_RELEASE
    catalog: str = ""
    selection: Selection = dataclasses.field(default_factory=Selection)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    splits: Splits = dataclasses.field(default_factory=Splits)
    responses: bool = False
    bins: int = 0
    rmf: str = RMFS[0]
    columns: tuple[str, ...] = ()
    sources: bool = False
    labels: str = ""
    label_radius: float = DEFAULT_LABEL_RADIUS

    def __post_init__(self) -> None:
        if not isinstance(self.archive, str) or not self.archive:
            raise SettingError(f"archive must be 'embedded', a mirror folder or an http(s) URL, not {self.archive!r}")
        for name in ("catalog", "labels"):
            if not isinstance(value := getattr(self, name), str):
                raise SettingError(f"{name} must be the name of a file, not {value!r}")
        if not 0 < self.label_radius <= 1:
            raise SettingError(f"the radius within which labels are joined is {self.label_radius} deg, not 0 to 1")
        try:
            (self.archive + self.catalog + self.labels).encode()
            Path(self.archive).expanduser()
        except UnicodeEncodeError:  # the manifest and the HDF5 file name both, in UTF-8
            raise SettingError(f"{self.archive + self.catalog!a} is not UTF-8: give a link of another name") from None
        except RuntimeError as error:
            raise SettingError(f"archive {self.archive!r}: {error}") from None
        for name, kind in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise SettingError(f"{name} must be a {kind.__name__}, not {value!r}")
        _check_bins(self.bins, self.recipe)
        if self.rmf not in RMFS:
            raise SettingError(f"rmf must be {' or '.join(RMFS)}, not {self.rmf!r}")
        if (self.responses or self.bins) and self.rmf != RMFS[0]:
            raise SettingError("responses, whole or compact, need the RMF of each detection: not with rmf observation")
        if "://" in self.archive:
            object.__setattr__(self, "archive", _address(self.archive))
        release_of(self.release)  # refuses one that cannot be
        object.__setattr__(self, "columns", tuple(dict.fromkeys(self.columns)))
        if self.columns and (self.catalog or self.archive == EMBEDDED):
            raise SettingError("columns are asked of a service or taken from a mirror; a catalog file brings its own")
        asked = self.archive.startswith(("http://", "https://")) and not self.catalog
        if asked and not all(map(designation, self.selection.names)):  # a catalog of one's own may have any names
            raise SettingError(self.selection.name_hint())
        if self.archive != EMBEDDED and not self.catalog:
            left: dict[str, Any] = {
                name: cut for name, cut in DEFAULT_CUTS.items() if getattr(self.selection, name) is None
            }
            object.__setattr__(self, "selection", dataclasses.replace(self.selection, **left))

    @property
    def from_mirror(self) -> bool:
        """Whether the archive is a mirror folder."""
        return self.archive != EMBEDDED and not self.archive.startswith(("http://", "https://"))

    def as_dict(self, catalog_sha256: str | None = None, labels_sha256: str = "") -> dict[str, Any]:
        """Give the settings as the manifest and the HDF5 file have them.

        Local paths are given by their last part: the folder may be published.

        Parameters
        ----------
        catalog_sha256 : str, optional
            Checksum of the catalog, where it is a file of this machine.
        labels_sha256 : str
            Checksum of the file of labels, where there is one.
        """
        return {
            "archive": last_part(self.archive) if self.from_mirror else self.archive,
            "release": self.release,
            **({"catalog": last_part(self.catalog)} if self.catalog else {}),
            **({} if catalog_sha256 is None else {"catalog_sha256": catalog_sha256}),
            "selection": self.selection.as_dict(),
            "recipe": self.recipe.as_dict(),
            "splits": str(self.splits),
            "responses": self.responses,
            **({"columns": ",".join(self.columns)} if self.columns else {}),
            **({"bins": self.bins} if self.bins else {}),
            "rmf": self.rmf,
            **({"sources": True} if self.sources else {}),
            **({"labels": last_part(self.labels), "label_radius": self.label_radius} if self.labels else {}),
            **({"labels_sha256": labels_sha256} if labels_sha256 else {}),
        }


_KINDS = {"selection": Selection, "recipe": Recipe, "splits": Splits, "responses": bool, "sources": bool}


def _check_bins(bins: int, recipe: Recipe) -> None:
    """Raise SettingError unless it is a number of logarithmic bins of which each is as wide as a channel."""
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 0:
        raise SettingError(f"bins must be a whole number, 0 for none, not {bins!r}")
    if not bins:
        return
    if not recipe.energy_min:
        raise SettingError("logarithmic bins cannot begin at 0 keV: give a higher --energy-min, or no --bins")
    ratio = math.log(recipe.energy_max / recipe.energy_min)
    most = int(ratio / math.log1p(_CHANNEL / recipe.energy_min))
    if bins > most:
        width = 1000 * recipe.energy_min * math.expm1(ratio / bins)
        raise SettingError(
            f"the narrowest of {bins} bins of {recipe.energy_min:g}-{recipe.energy_max:g} keV has {width:.3g} eV, less "
            f"than a channel ({1000 * _CHANNEL:g} eV): give {f'at most {most} bins' if most else 'a wider range'}"
        )


def _address(url: str) -> str:
    """Give a base URL, its scheme and host in lower case; SettingError if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingError(f"archive {url.rpartition('@')[2]!r} is no address: {error}") from None
    if "@" in parts.netloc:
        raise SettingError("archive: a user and password in the address would be written into files: use ~/.netrc")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise SettingError(f"archive {url!r} is no address such as {DEFAULT_ARCHIVE}")
    return parts._replace(netloc=parts.netloc.lower()).geturl()


def last_part(path: str) -> str:
    """Give a local path without the folders that are no one's business."""
    return Path(path).name or path
