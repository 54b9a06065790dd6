"""The format of a prepared folder: its files, its manifest, and the settings that it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from builder.dataset.catalog_file import read_detections
from builder.model.columns import CONFIGS, configs_with
from builder.model.errors import OutputError, SettingError
from builder.model.selection import Cone, Selection
from builder.model.settings import Recipe, Settings
from builder.model.splits import SPLITS, Splits

__all__ = [
    "CARD_FILE",
    "DATA_FILES",
    "DETECTIONS_FILE",
    "HDF5_FILE",
    "MANIFEST_FILE",
    "REJECTIONS_FILE",
    "archive_of",
    "check_settings",
    "manifest_digest",
    "parts",
    "parts_of",
    "read_manifest",
    "read_settings",
    "rows_of",
    "unreadable",
]

HDF5_FILE = "chandra_spectra.hdf5"
MANIFEST_FILE = "manifest.json"
REJECTIONS_FILE = "rejections.parquet"
CARD_FILE = "README.md"
DETECTIONS_FILE = "detections.txt"
"""The list of detections of a selection by list, so that the folder can be made again."""

DATA_FILES = {config: ("data" if config == "spectra" else config) for config in CONFIGS}
"""Folder of each config's shards."""


def unreadable(path: Path, error: Exception) -> OutputError:
    """Say that a file of a prepared folder cannot be read: the system's reason, or that it is damaged."""
    if isinstance(error, OSError) and error.strerror:
        return OutputError(f"cannot read {path}: {error.strerror}")
    reason = str(error).partition("\n")[0]
    return OutputError(f"cannot read {path}: {reason}; prepare the folder again with --force")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder; OutputError if it is none."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = f"{path.name}: {error.strerror}" if folder.is_dir() else "there is no such folder"
        raise OutputError(f"{folder} is not a prepared folder: {why}") from error
    except ValueError as error:
        raise OutputError(f"{path} is damaged: {error}; prepare the folder again with --force") from error
    if not isinstance(manifest, dict) or manifest.get("dataset") != "chandra_spectra":
        raise OutputError(f"{path} is not the manifest of a prepared folder")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says but for its times, so that the same data have the same digest."""
    rest = {key: value for key, value in manifest.items() if key not in ("created", "seconds", "sha256")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_settings(manifest: dict[str, Any], said: dict[str, Any], where: Path | str) -> None:
    """OutputError where the folder of a manifest was made with other settings than are said now."""
    there = manifest.get("settings", {})
    if differ := [name for name in {**said, **there} if said.get(name) != there.get(name)]:
        raise OutputError(
            f"{where} was prepared with other settings, or from another catalog (see {', '.join(differ)} in its "
            "manifest.json): choose another name, or --force to replace it"
        )


def parts(splits: Splits, responses: bool) -> list[tuple[str, str]]:
    """Config and split of every set of shards: only rows of a source are divided."""
    return [
        (config, split)
        for config in configs_with(responses)
        for split in (splits.names if config in ("spectra", "counts") else SPLITS[:1])
    ]


def parts_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The configs and splits that a folder has."""
    said = manifest["settings"]
    return parts(Splits.parse(said["splits"]), bool(said["responses"]))


def rows_of(manifest: dict[str, Any], config: str, split: str) -> dict[str, int]:
    """Rows by file of one split of a config, in the order of the rows."""
    prefix = f"{DATA_FILES[config]}/{split}-"
    return {file["path"]: file["rows"] for file in manifest["files"] if file["path"].startswith(prefix)}


def archive_of(manifest: dict[str, Any], archive: str = "") -> str:
    """The archive that a prepared folder was made from, unless another is given; SettingError if it must be."""
    said: str = manifest["settings"]["archive"]
    if not archive and Settings(said).from_mirror and not Path(said).is_dir():
        raise SettingError(f"the folder was made from a mirror named {said!r}, which is not here: give it as --archive")
    return archive or said


def read_settings(folder: Path, manifest: dict[str, Any]) -> Settings:
    """The settings that a folder was prepared with.

    Parameters
    ----------
    folder : Path
        Holds the list of detections, where they were selected by a list.
    manifest : dict

    Raises
    ------
    SettingError
        If the list is not there, or the manifest says what cannot be.
    """
    try:
        said = manifest["settings"]
        cuts = dict(said["selection"])
        for name in ("names", "obsids"):
            cuts[name] = tuple(cuts.get(name, ()))
        if "cone" in cuts:
            cuts["cone"] = Cone(**cuts["cone"])
        if "detections" in cuts:
            cuts["detections"] = read_detections(folder / DETECTIONS_FILE)
        recipe = Recipe.from_dict(said["recipe"])
        return Settings(
            said["archive"],
            said["release"],
            said.get("catalog", ""),
            Selection(**cuts),
            recipe,
            Splits.parse(said["splits"]),
            said["responses"],
        )
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"the manifest of {folder} has not the settings of this version ({error}): prepare it again with --force"
        ) from error
