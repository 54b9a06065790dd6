"""The format of a prepared folder: its files, its manifest, and the settings that it was made with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from builder.dataset.catalog_file import read_detections
from builder.dataset.positions import read_positions
from builder.files import Folder, file_sha256
from builder.model.column import CONFIGS, DIVIDED_CONFIGS, Column
from builder.model.columns import configs_with
from builder.model.errors import OutputError, SettingError
from builder.model.own import own_of_dicts
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_LABEL_RADIUS, Recipe, Settings
from builder.model.sky import Cone
from builder.model.splits import SPLITS, Splits

HDF5_FILE = "chandra_spectra.hdf5"
MANIFEST_FILE = "manifest.json"
REJECTIONS_FILE = "rejections.parquet"
CARD_FILE = "README.md"
DETECTIONS_FILE = "detections.txt"
"""The list of detections of a selection by list, so that the folder can be made again."""

POSITIONS_FILE = "positions.csv"
"""The positions of a selection by positions, and the source of each."""

UPLOADING_FILE = "uploading.json"
"""At a URL while files are uploaded: names all that may be there, of the old folder and the new one."""

DATA_FILES = {config: ("data" if config == "spectra" else config) for config in CONFIGS}
"""Folder of each config's shards."""


_READ_TOO = frozenset({"state.json", "dataset_infos.json", ".huggingface.yaml"})
"""Files that `load_dataset` reads, or refuses the folder for, where they are there."""


_NUMBERS = re.compile(r"\[\s+-?\d[-+\d.e,\s]*\]")
"""A list of numbers in JSON."""


def check_name(place: Path | str) -> None:
    """Raise SettingError where `load_dataset` would not find a folder of this path, or a URL, under its name."""
    pattern = r"[*?[]" if isinstance(place, str) else r"[*?[]|::"  # a URL may be a chain of file systems
    if sign := re.search(pattern, str(place)):
        raise SettingError(f"{place}: load_dataset takes {sign[0]!r} in a path for a pattern: give another name")
    if str(place).endswith(".py"):
        raise SettingError(f"{place}: load_dataset takes what ends in .py for a script: give another name")


def is_shard(path: str) -> bool:
    """Tell whether the card's patterns take a file, by its path in the folder, for a shard."""
    return any(fnmatchcase(path, f"{name}/{split}-*.parquet") for name in DATA_FILES.values() for split in SPLITS)


def is_loaded(path: str, folder: Path) -> bool:
    """Tell whether a file that the manifest does not name would change what `load_dataset` does with the folder."""
    return is_shard(path) or path in _READ_TOO or path == f"{folder.name}.py"


def unreadable(path: Path, error: Exception) -> OutputError:
    """Say that a file of a prepared folder cannot be read: the system's reason, or that it is damaged."""
    if isinstance(error, OSError) and error.strerror:
        return OutputError(f"cannot read {path}: {error.strerror}")
    reason = str(error).partition("\n")[0]
    return OutputError(f"cannot read {path}: {reason}; prepare the folder again with --force")


def parts(splits: Splits, responses: bool, bins: int, sources: bool) -> list[tuple[str, str]]:
    """Return the config and split of every set of shards: only rows of a source are divided."""
    return [
        (config, split)
        for config in configs_with(responses, bins, sources)
        for split in (splits.names if config in DIVIDED_CONFIGS else SPLITS[:1])
    ]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the folder: its path within it, its rows where it holds any, its bytes and their SHA-256."""

    path: str
    rows: int | None
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, folder: Path, rows: int | None = None) -> Entry:
        """Describe a file that is there."""
        return cls(str(path.relative_to(folder)), rows, path.stat().st_size, file_sha256(path))


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of a folder.

    Attributes
    ----------
    detections : int
        Rows of the catalog that were selected.
    duplicates : int
        Rows that repeat a detection, and were passed over.
    selected, rows, rejected : int
        Spectra of the detections, and how many of them are rows or rejections.
    reasons : dict of str to int
        Rejections by reason.
    """

    detections: int
    duplicates: int
    selected: int
    rows: int
    rejected: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of what a folder is, made of and made with; all but its times follows from the data.

    Attributes
    ----------
    builder : str
        Version of this project.
    settings : dict
        As `builder.model.settings.Settings.as_dict` gives them.
    versions : dict of str to str
        Versions of Python and of the packages that the content depends on.
    catalog : dict
        Number of the ``detections``, and ``sha256`` of their rows; of a catalog over HTTP also its ``service``,
        ``schema`` and ``version``, the date when it was ``retrieved``, and the columns that are ``missing``; of a
        selection by ``positions`` their number, and how many have a source (``matched``) and rows (``selected``); of
        the embedded sample a ``remark``.
    files : tuple of Entry
        All files but the manifest.
    own_rmfs : tuple of str
        With ``rmf`` of the settings ``observation``, the observations of which an RMF was read that has other channel
        energies than all known ACIS products: there each detection's own RMF was asked for.
    columns : tuple of dict
        Columns besides those of every dataset, as `builder.model.own.own_dicts` gives them.
    statistics : dict
        Of the rows to train on, see `builder.dataset.statistics.train_statistics`.
    created : str
        When, in ISO 8601, UTC.
    seconds : float
        How long it took.
    sha256 : str
        The `digest` when it was written.
    """

    builder: str
    settings: dict[str, Any]
    versions: dict[str, str]
    catalog: dict[str, Any]
    counts: Counts
    files: tuple[Entry, ...]
    own_rmfs: tuple[str, ...] = ()
    columns: tuple[dict[str, str], ...] = ()
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    sha256: str = ""

    @classmethod
    def read(cls, folder: Path | Folder) -> Manifest:
        """Read the manifest of a prepared folder; OutputError if it is none, or not of this version."""
        there = folder if isinstance(folder, Folder) else Folder(folder)
        path = f"{there.place}/{MANIFEST_FILE}"
        if MANIFEST_FILE not in there:
            raise OutputError(f"{there.place} is not a prepared folder: there is no {path}")
        try:
            content = json.loads(there.read(MANIFEST_FILE))
            if content.get("dataset") != "chandra_spectra":
                raise OutputError(f"{path} is not the manifest of a prepared folder")
            content["counts"] = _pick(Counts, content["counts"])
            content["files"] = tuple(_pick(Entry, file) for file in content["files"])
            content["own_rmfs"] = tuple(content.get("own_rmfs", ()))
            content["columns"] = tuple(content.get("columns", ()))
            manifest: Manifest = _pick(cls, content)
            _ = manifest.parts, manifest.recipe, manifest.own  # refuses wrong values now rather than when they are used
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else error
            raise OutputError(
                f"{path} is damaged or of another version: {reason}; prepare the folder again with --force"
            ) from error
        return manifest

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        (folder / MANIFEST_FILE).write_text(self.text, encoding="utf-8")

    def _as_dict(self) -> dict[str, Any]:
        """Give what JSON has of it; the statistics, most of it, are not copied."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["counts"], fields["files"] = dataclasses.asdict(self.counts), [*map(dataclasses.asdict, self.files)]
        return {"dataset": "chandra_spectra", **fields}

    @property
    def text(self) -> str:
        """The content of its file."""
        text = json.dumps(self._as_dict(), indent=2, ensure_ascii=False) + "\n"
        return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text)  # a line a list, not a line a number

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says but for its times, so that the same data have the same digest."""
        rest = {key: value for key, value in self._as_dict().items() if key not in ("created", "seconds", "sha256")}
        rest["catalog"] = {key: value for key, value in self.catalog.items() if key != "retrieved"}
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.bytes for file in self.files)

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The configs and splits that the folder has."""
        return parts(self.splits, bool(self.settings["responses"]), self.bins, self.sources)

    @property
    def bins(self) -> int:
        """Number of bins of config ``binned``, 0 where there is none."""
        return int(self.settings.get("bins", 0))

    @property
    def sources(self) -> bool:
        """Whether it has config ``sources``."""
        return bool(self.settings.get("sources", False))

    @property
    def splits(self) -> Splits:
        """How the rows are divided."""
        return Splits.parse(self.settings["splits"])

    @property
    def recipe(self) -> Recipe:
        """How the spectra were reduced."""
        return Recipe.from_dict(self.settings["recipe"])

    @property
    def own(self) -> tuple[Column, ...]:
        """Columns besides those of every dataset."""
        return own_of_dicts(self.columns)

    def file(self, path: str) -> Entry | None:
        """Find a file by its path in the folder."""
        return next((file for file in self.files if file.path == path), None)

    def shards(self, config: str, split: str) -> dict[str, int]:
        """Give the rows by file of one split of a config, in the order of the rows."""
        prefix = f"{DATA_FILES[config]}/{split}-"
        return {file.path: file.rows or 0 for file in self.files if file.path.startswith(prefix)}

    def archive(self, given: str = "") -> str:
        """Give the archive that it was made from, unless another is given; SettingError if it must be."""
        own: str = self.settings["archive"]
        if not given and Settings(own).from_mirror and not Path(own).is_dir():
            raise SettingError(
                f"the folder was made from a mirror named {own!r}, which is not here: give it as --archive"
            )
        return given or own

    def check_settings(self, settings: dict[str, Any], place: Path | str) -> None:
        """Raise OutputError where the folder was made with other settings."""
        if differ := [name for name in {**settings, **self.settings} if settings.get(name) != self.settings.get(name)]:
            raise OutputError(
                f"{place} was prepared with other settings, or from another catalog (see {', '.join(differ)} in its "
                "manifest.json): choose another name, or --force to replace it"
            )

    def read_settings(self, folder: Path) -> Settings:
        """Give the settings that the folder was prepared with.

        Parameters
        ----------
        folder : Path
            Holds the list of detections or positions, where they were selected by one.

        Raises
        ------
        SettingError
            If the list is not there, or the manifest says what cannot be.
        """
        try:
            own = self.settings
            cuts = dict(own["selection"])
            for name in ("names", "obsids"):
                cuts[name] = tuple(cuts.get(name, ()))
            if "cone" in cuts:
                cuts["cone"] = Cone(**cuts["cone"])
            if "detections" in cuts:
                cuts["detections"] = read_detections(folder / DETECTIONS_FILE)
            if "positions" in cuts:
                cuts["positions"] = read_positions(folder / POSITIONS_FILE)
            return Settings(
                own["archive"],
                own["release"],
                own.get("catalog", ""),
                Selection(**cuts),
                self.recipe,
                self.splits,
                own["responses"],
                self.bins,
                own["rmf"],
                tuple(filter(None, own.get("columns", "").split(","))),
                sources=self.sources,
                labels=own.get("labels", ""),
                label_radius=own.get("label_radius", DEFAULT_LABEL_RADIUS),
            )
        except (KeyError, TypeError) as error:
            raise SettingError(
                f"the manifest of {folder} has not the settings of this version ({error}): "
                "prepare it again with --force"
            ) from error


def _pick(kind: Any, content: dict[str, Any]) -> Any:
    """Make a record of its part of a dict; KeyError where one is missing that has no default."""
    unset = dataclasses.MISSING
    fields = {field.name: field.default is field.default_factory is unset for field in dataclasses.fields(kind)}
    return kind(**{name: content[name] for name, needed in fields.items() if needed or name in content})


def lacks(folder: Path | str, *configs: str) -> str:
    """Say, with the command that helps, which of these configs a prepared folder lacks; empty where it has them all."""
    if not Path(folder, MANIFEST_FILE).is_file():
        return (
            f"there is no prepared folder {folder}: make one with chandra-spectra prepare {folder} --archive embedded "
            "--with-responses --bins 64"
        )
    there = {config for config, _ in Manifest.read(Path(folder)).parts}
    options = {"responses": "--with-responses", "binned": "--bins 64"}
    missing = [options[config] for config in configs if config not in there]
    return f"{folder} was prepared without {' '.join(missing)}: prepare it again so, with --force" if missing else ""


def named_files(there: Folder, name: str) -> set[str]:
    """Give the paths that a manifest, or the list of an upload, names; none where it is of another program."""
    try:
        content = json.loads(there.read(name))
    except ValueError:
        return set()
    ours = isinstance(content, dict) and content.get("dataset") == "chandra_spectra"
    return {file["path"] for file in content["files"]} if ours else set()
