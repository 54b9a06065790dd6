"""What decides the content of a dataset: the archive, the release, the cuts and the recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from builder.errors import SettingError
from builder.records import Recipe
from builder.selection import RELEASES, Selection

__all__ = ["DEFAULT_ARCHIVE", "EMBEDDED", "Settings"]

DEFAULT_ARCHIVE = "https://cda.cfa.harvard.edu"
"""Base URL of the Chandra Data Archive's services."""

EMBEDDED = "embedded"
"""The archive that is made on this machine: two real detections and simulated ones."""


_WHOLE = Selection(min_cnts=0, min_sig=0, max_theta=60)


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the content of a dataset depends on, besides what the archive answers.

    Attributes
    ----------
    archive : str
        ``embedded``, a mirror folder, or the base URL of the services.
    release : str
        Version word of the catalog.
    selection : Selection
        The default cuts are the largest recommended set; the embedded sample is taken whole unless others are given.
    recipe : Recipe

    Raises
    ------
    SettingError
        If the archive is empty or the release unknown.
    """

    archive: str = DEFAULT_ARCHIVE
    release: str = "rel2.1"
    selection: Selection = dataclasses.field(default_factory=Selection)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if not isinstance(self.archive, str) or not self.archive:
            raise SettingError(f"archive must be 'embedded', a mirror folder or an http(s) URL, not {self.archive!r}")
        if self.release not in RELEASES:
            raise SettingError(f"unknown release {self.release!r}: choose one of {', '.join(RELEASES)}")
        if self.archive == EMBEDDED and self.selection == Selection():
            object.__setattr__(self, "selection", _WHOLE)

    def as_dict(self) -> dict[str, Any]:
        """The settings as they are written into the manifest and the HDF5 file."""
        return {
            "archive": self.archive,
            "release": self.release,
            "selection": dataclasses.asdict(self.selection),
            "recipe": self.recipe.as_dict(),
        }
