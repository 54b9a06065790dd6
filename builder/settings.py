"""What decides the content of a dataset: the archive, the release, the cuts and the recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from builder.digests import file_sha256
from builder.errors import SettingError
from builder.records import Recipe
from builder.selection import RELEASES, Selection
from builder.splits import Splits

__all__ = ["CATALOG_FILE", "DEFAULT_ARCHIVE", "DEFAULT_CUTS", "EMBEDDED", "Settings", "archive_of", "last_part"]

DEFAULT_ARCHIVE = "https://cda.cfa.harvard.edu"
"""Base URL of the Chandra Data Archive's services."""

EMBEDDED = "embedded"
"""The archive that is made on this machine: two real detections and simulated ones."""

DEFAULT_CUTS = {"min_cnts": 40.0, "min_sig": 4.0, "max_theta": 10.0}
"""Of net counts, of flux significance, and arcmin off axis: the largest recommended set."""

CATALOG_FILE = "catalog.vot"
"""The catalog's answer in a mirror folder."""


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
        A catalog file (VOTable, Parquet or HDF5) in place of the archive's own catalog.
    selection : Selection
        A cut that is not given is that of `DEFAULT_CUTS`, and none for the embedded sample and a catalog file.
    recipe : Recipe
    splits : Splits
    responses : bool
        Keep the response matrices, for config ``responses``.

    Raises
    ------
    SettingError
        If the archive is no folder's name and no address, or the release unknown.
    """

    archive: str = DEFAULT_ARCHIVE
    release: str = "rel2.1"
    catalog: str = ""
    selection: Selection = dataclasses.field(default_factory=Selection)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    splits: Splits = dataclasses.field(default_factory=Splits)
    responses: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.archive, str) or not self.archive:
            raise SettingError(f"archive must be 'embedded', a mirror folder or an http(s) URL, not {self.archive!r}")
        try:
            (self.archive + self.catalog).encode()
            Path(self.archive).expanduser()
        except UnicodeEncodeError:  # the manifest and the HDF5 file name both, in UTF-8
            raise SettingError(f"{self.archive + self.catalog!a} is not UTF-8: give a link of another name") from None
        except RuntimeError as error:
            raise SettingError(f"archive {self.archive!r}: {error}") from None
        if "://" in self.archive:
            object.__setattr__(self, "archive", _address(self.archive))
        if self.release not in RELEASES:
            raise SettingError(f"unknown release {self.release!r}: choose one of {', '.join(RELEASES)}")
        if self.archive != EMBEDDED and not self.catalog:
            left: dict[str, Any] = {
                name: cut for name, cut in DEFAULT_CUTS.items() if getattr(self.selection, name) is None
            }
            object.__setattr__(self, "selection", dataclasses.replace(self.selection, **left))

    @property
    def from_mirror(self) -> bool:
        """Whether the archive is a mirror folder."""
        return self.archive != EMBEDDED and not self.archive.startswith(("http://", "https://"))

    def as_dict(self) -> dict[str, Any]:
        """The settings as the manifest and the HDF5 file have them.

        A catalog on this machine has its checksum there as it is now. Local paths are given by their last part: the
        folder may be published.
        """
        held = Path(self.archive).expanduser() / CATALOG_FILE if self.from_mirror else ""
        return {
            "archive": last_part(self.archive) if self.from_mirror else self.archive,
            "release": self.release,
            **({"catalog": last_part(self.catalog)} if self.catalog else {}),
            **({"catalog_sha256": _sha256(self.catalog or held)} if self.catalog or held else {}),
            "selection": self.selection.as_dict(),
            "recipe": self.recipe.as_dict(),
            "splits": str(self.splits),
            "responses": self.responses,
        }


def _address(url: str) -> str:
    """A base URL, its scheme and host in lower case; SettingError if it is none."""
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
    """A local path without the folders that are no one's business."""
    return Path(path).name or path


def archive_of(manifest: dict[str, Any], archive: str = "") -> str:
    """The archive that a prepared folder was made from, unless another is given; SettingError if it must be."""
    said: str = manifest["settings"]["archive"]
    if not archive and Settings(said).from_mirror and not Path(said).is_dir():
        raise SettingError(f"the folder was made from a mirror named {said!r}, which is not here: give it as --archive")
    return archive or said


def _sha256(path: Path | str) -> str:
    """SHA-256 of a file, empty if it cannot be read; whoever reads it next says why."""
    try:
        return file_sha256(Path(path))
    except OSError:
        return ""
