"""Verification of a prepared folder: its files, their content, and on demand the reduction itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq

from builder.dataset.layout import CARD_FILE, DATA_FILES, HDF5_FILE, MANIFEST_FILE, REJECTIONS_FILE, Manifest, is_loaded
from builder.dataset.slices import SLICE_ROWS, order_of, slices
from builder.dataset.statistics import train_statistics
from builder.files import file_sha256
from builder.model.column import DIVIDED_CONFIGS, ROW_CONFIGS
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.records import REASONS
from builder.model.schema import features
from builder.model.text import Progress, several, silent
from builder.store.packages import REJECTIONS_SCHEMA
from builder.use.check_sources import check_sources
from builder.use.checks import (
    Check,
    Grids,
    check_binned,
    check_channels,
    check_grids,
    check_hdf5,
    check_ids,
    check_nulls,
    check_responses,
    check_rmfs,
    check_spectra,
    hdf5_columns,
)
from builder.use.reading import hindrance, reading, temporary
from builder.use.recheck import check_again
from builder.workspace import open_workspace


@dataclass(frozen=True, slots=True)
class Report:
    """Checks of a folder, and what they found.

    Attributes
    ----------
    checks : tuple of Check
        Each with its claim, what it looked at and its failures.
    """

    folder: Path
    checks: tuple[Check, ...]

    @property
    def failed(self) -> int:
        """Number of failures."""
        return sum(check.failed for check in self.checks)

    @property
    def unseen(self) -> list[str]:
        """The reasons why something could not be looked at."""
        return [check.unseen for check in self.checks if check.unseen]

    @property
    def failures(self) -> list[str]:
        """The failures that the checks list, one line each: file, row and value."""
        return [line for check in self.checks for line in check.failures]


def verify(
    folder: Path,
    *,
    content: bool = True,
    load: bool = True,
    recheck: int = 0,
    archive: str = "",
    seed: int = 0,
    cache: Path | None = None,
    slice_rows: int = SLICE_ROWS,
    edited_card: bool = False,
    progress: Progress = silent,
    done: Callable[[Check], None] = lambda check: None,
) -> Report:
    """Check a prepared folder.

    Parameters
    ----------
    content : bool
        Check the rows, too, and not only sizes, checksums and numbers.
    load : bool
        Load each config with `datasets` into an empty cache.
    recheck : int
        Reduce so many rows again from the archive and compare all measured values.
    archive : str
        Archive to reduce from; that of the manifest by default.
    seed : int
        Of the choice of rows to reduce again.
    cache : Path, optional
        Folder for what is downloaded, see `builder.workspace.default_cache`.
    slice_rows : int
        Rows in hand at once; 500 are about 20 MB.
    edited_card : bool
        Let the card be another than the manifest says.
    done : callable
        Called with each check when it is done.

    Returns
    -------
    Report
        Also where something could not be looked at, as a disk was full or the archive did not answer.

    Raises
    ------
    OutputError
        If the folder has no readable manifest.
    SettingError
        If there is no such archive to reduce from.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    shown, folder = folder, folder.resolve()  # pyarrow takes a relative path with a colon for a URI
    files = Check("files are those of the manifest")
    numbers = Check("rows, rejections and files add up")
    ids = Check("ids are unique, in order and consistent")
    grids = Check("grids and responses match their ids")
    channels = Check("counts and areas are well-formed")
    spectra = Check("spectra are well-formed")
    hdf5 = Check("HDF5 and Parquet hold the same")
    loads = Check("load_dataset reads every config, cold")
    again = Check("reduced again, the numbers are the same")

    if recheck:
        settings = replace(manifest.read_settings(folder), archive=manifest.archive(archive))
        source = open_workspace(settings, cache).archive
    rows = (ids, grids, channels, spectra, hdf5)

    readable = _check_files(files, folder, manifest, edited_card, progress)
    done(files)
    if readable:
        with reading(numbers, MANIFEST_FILE):
            _check_numbers(numbers, folder, manifest)
        readable = not numbers.failed and not numbers.unseen
    done(numbers)
    if readable and content:
        with reading(ids, "Parquet"):
            _check_content(folder, manifest, rows, slice_rows, progress)
    for check in rows:
        done(check)
    if readable and load:
        with reading(loads, "load_dataset"):
            _check_loads(loads, folder, manifest)
    done(loads)
    if readable and recheck:
        with reading(again, "the archive's files"):
            check_again(again, folder, manifest, settings, source, recheck, seed, progress)
    done(again)
    return Report(shown, (files, numbers, *rows, loads, again))


def _check_files(check: Check, folder: Path, manifest: Manifest, edited_card: bool, progress: Progress) -> bool:
    """Compare size and SHA-256 of every file; returns whether the data can be read on.

    Other files fail only where `load_dataset` would read them: tools such as `hf download` leave some of their own.
    """
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if (folder / MANIFEST_FILE).read_bytes() != manifest.text.encode():
        check.fail(MANIFEST_FILE, "is not laid out as it was written")
    if manifest.sha256 != manifest.digest:
        check.fail(MANIFEST_FILE, f"has the SHA-256 {manifest.digest}, it says {manifest.sha256}")
    with reading(check, MANIFEST_FILE):
        named = {file.path for file in manifest.files}
        check.scope = f"{len(named)} files, {manifest.size / 1e6:,.1f} MB"
        damaged = len(named) != len(manifest.files)
        for number, file in enumerate(manifest.files, 1):
            path, before = file.path, check.failed
            if path not in found:
                check.fail(path, "is missing")
            elif edited_card and path == CARD_FILE:
                continue
            elif (length := (folder / path).stat().st_size) != file.bytes:
                check.fail(path, f"has {length} bytes, the manifest says {file.bytes}")
            elif (actual := file_sha256(folder / path)) != file.sha256:
                check.fail(path, f"has the SHA-256 {actual}, the manifest says {file.sha256}")
            damaged |= check.failed > before and path != CARD_FILE
            progress("files", number, len(manifest.files))
        others = sorted(found - named - {MANIFEST_FILE})
        for path in others:
            if is_loaded(path, folder):
                check.fail(path, "is not in the manifest, but load_dataset would read it")
        if others:
            check.scope += f"; {several(len(others), 'other file')} beside them"
        return not damaged
    return False


def _check_numbers(check: Check, folder: Path, manifest: Manifest) -> None:
    from datasets import Features

    counts = manifest.counts
    check.scope = f"{counts.selected:,} selected, {counts.rows:,} rows, {counts.rejected:,} rejected"

    def equal(what: str, found: object, expected: object, file: str = MANIFEST_FILE) -> None:
        if found != expected:
            check.fail(file, f"{what} is {found}, not {expected}")

    known = {MANIFEST_FILE, HDF5_FILE, REJECTIONS_FILE}
    totals = dict.fromkeys((config for config, _ in manifest.parts if config in ROW_CONFIGS), 0)
    for config, split in manifest.parts:
        shards = manifest.shards(config, split)
        known |= set(shards)
        for number, (path, rows) in enumerate(shards.items()):
            equal("name", path, f"{DATA_FILES[config]}/{split}-{number:05d}-of-{len(shards):05d}.parquet")
            with reading(check, path):
                parquet = pq.ParquetFile(folder / path)
                equal("number of rows", parquet.metadata.num_rows, rows, path)
                if Features.from_arrow_schema(parquet.schema_arrow) != features(config, manifest.bins, manifest.own):
                    check.fail(path, f"has not the columns of config {config}")
        if not shards and counts.rows and config not in DIVIDED_CONFIGS:
            check.fail(MANIFEST_FILE, f"names no file of config {config}")
        if config in totals:
            totals[config] += sum(shards.values())
            equal(
                f"rows of config {config}, split {split}",
                sum(shards.values()),
                sum(manifest.shards("spectra", split).values()),
            )
    for config, rows in totals.items():
        equal(f"number of rows of config {config}", rows, counts.rows)
    for file in manifest.files:
        if file.path.endswith(".parquet") and file.path not in known:
            check.fail(MANIFEST_FILE, f"{file.path} is of no config and split")
        others = {HDF5_FILE: counts.rows, REJECTIONS_FILE: counts.rejected, CARD_FILE: None}
        equal(f"rows of {file.path}", file.rows, others.get(file.path, file.rows))

    rejections = pq.read_table(folder / REJECTIONS_FILE)
    if not rejections.schema.equals(REJECTIONS_SCHEMA):
        check.fail(REJECTIONS_FILE, "has not the columns of a table of rejections")
    reasons = Counter(rejections["reason"].to_pylist())
    equal("number of rows", len(rejections), counts.rejected, REJECTIONS_FILE)
    equal("reasons", counts.reasons, dict(sorted(reasons.items())))
    equal("selected", counts.selected, counts.rows + counts.rejected)
    equal("catalog.detections", manifest.catalog["detections"], counts.detections)
    repeated = Counter(rejections["detection_id"].to_pylist())
    for row, (name, reason) in enumerate(
        zip(rejections["detection_id"].to_pylist(), rejections["reason"].to_pylist(), strict=True)
    ):
        place = f"{name} (row {row})"
        if reason not in REASONS:
            check.fail(REJECTIONS_FILE, place, f"the reason {reason!r} is not known")
        if repeated[name] > 1:
            check.fail(REJECTIONS_FILE, place, "is there twice")
        try:
            if reason != "no_detection":
                DetectionId.parse(name)
        except SettingError as error:
            check.fail(REJECTIONS_FILE, place, str(error))

    settings = {**manifest.settings, "dataset": "chandra_spectra"}
    settings |= {"builder": manifest.builder, "versions": manifest.versions}
    with h5py.File(folder / HDF5_FILE) as hdf5:
        for name in sorted(settings | dict(hdf5.attrs)):
            value = hdf5.attrs.get(name)
            found = json.loads(value) if isinstance(settings.get(name), dict) and value is not None else value
            equal(f"attribute {name}", found, settings.get(name), HDF5_FILE)


def _check_content(
    folder: Path, manifest: Manifest, checks: tuple[Check, ...], slice_rows: int, progress: Progress
) -> None:
    ids, grids, channels, spectra, hdf5 = checks
    counts = manifest.counts
    rejections = pq.read_table(folder / REJECTIONS_FILE, columns=["detection_id", "reason"]).to_pylist()
    rejected = {row["detection_id"] for row in rejections}
    nameless = sum(row["reason"] == "no_detection" for row in rejections)
    named = {row["detection_id"] for row in rejections if row["reason"] != "no_detection"}
    detections = {DetectionId.parse(name).catalog.object_id for name in named}
    previous, distinct, used, responses = -1, 0, set[str](), dict[str, str]()
    with h5py.File(folder / HDF5_FILE) as file, reading(ids, "Parquet"):
        known = _check_ebounds(grids, hdf5, folder, manifest.shards("ebounds", "train"), file)
        comparable = hdf5_columns(hdf5, file, HDF5_FILE, counts.rows, manifest.own)
        for rows in slices(folder, manifest, order_of(folder, manifest), slice_rows):
            if check_nulls(ids, rows):
                numbers = rows.spectra["object_id"].to_numpy() // 10 * 10  # without the cycle
                detections.difference_update(numbers.tolist())
                distinct += int(np.count_nonzero(np.diff(numbers, prepend=previous // 10 * 10)))
                previous = check_ids(ids, rows, previous, rejected, manifest.splits)
                check_rmfs(ids, rows, manifest.settings.get("rmf") == "observation")
                before = channels.failed
                check_channels(channels, rows, known)
                if channels.failed == before:
                    check_binned(channels, rows, manifest.recipe, manifest.bins, known)
                check_spectra(spectra, rows, manifest.recipe, known)
                if comparable:
                    with reading(hdf5, HDF5_FILE):
                        check_hdf5(hdf5, rows, file)
                used.update(rows.counts["ebounds_id"].to_pylist())
                responses.update(
                    zip(rows.counts["rmf_sha256"].to_pylist(), rows.counts["ebounds_id"].to_pylist(), strict=True)
                )
            done = rows.start + len(rows)
            for check in (ids, channels, spectra, hdf5):
                check.scope = f"{done:,} rows"
            progress("rows", done, counts.rows)
        if not ids.failed and (found := distinct + len(detections) + nameless) != counts.detections:
            ids.fail(MANIFEST_FILE, f"{counts.detections} detections, but rows and rejections are of {found}")
        for key in sorted(set(known) - used):
            grids.fail(next(iter(manifest.shards("ebounds", "train"))), key, "no row has this grid")
        if manifest.settings["responses"]:
            _check_responses(grids, folder, manifest.shards("responses", "train"), responses)
    if not (ids.failed or channels.failed) and manifest.statistics != train_statistics(folder, manifest):
        ids.fail(MANIFEST_FILE, "statistics are not those of the rows")
    if manifest.sources and not (ids.failed or channels.failed):
        check_sources(channels, folder, manifest)


def _check_ebounds(check: Check, hdf5: Check, folder: Path, files: dict[str, int], file: h5py.File) -> Grids:
    known: Grids = {}
    with reading(check, DATA_FILES["ebounds"]):
        for path in files:
            known |= check_grids(check, pq.read_table(folder / path), path)
    check.scope = several(len(known), "grid")
    with reading(hdf5, f"{HDF5_FILE}: ebounds"):
        group = file["ebounds"]
        stored = zip(group["ebounds_id"].asstr()[:], group["energy_lo"][:], group["energy_hi"][:], strict=True)
        if [(key, low.tolist(), high.tolist()) for key, low, high in stored] != [
            (key, low.tolist(), high.tolist()) for key, (low, high) in known.items()
        ]:
            hdf5.fail(HDF5_FILE, "ebounds", "the grids are not those of config ebounds")
    return known


def _check_responses(check: Check, folder: Path, files: dict[str, int], used: dict[str, str]) -> None:
    """Check that every response is well-formed, there once, and that of a row with its grid; every row has one."""
    found = set[str]()
    with reading(check, DATA_FILES["responses"]):
        for path in files:
            with pq.ParquetFile(folder / path) as file:
                for batch in file.iter_batches(10):
                    check_responses(check, batch, path, used, found)
    check.scope += f", {len(found):,} responses"
    for key in sorted(used.keys() ^ found):
        why = "a row's response is missing" if key in used else "no row has this response"
        check.fail(next(iter(files)), key, why)


def _check_loads(check: Check, folder: Path, manifest: Manifest) -> None:
    """Load each config with an empty cache and compare the number of rows and the features."""
    from datasets import load_dataset

    wanted: dict[str, dict[str, int]] = {}
    for config, split in manifest.parts:
        if rows := sum(manifest.shards(config, split).values()):  # datasets loads no split without rows
            wanted.setdefault(config, {})[split] = rows
    for config, expected in wanted.items():
        with temporary() as cache, reading(check, f"config {config}"):
            try:
                loaded = load_dataset(str(folder), config, cache_dir=str(cache))
            except Exception as error:
                if hindrance(error):
                    raise
                check.fail(f"config {config}", f"load_dataset: {error.__cause__ or error}")
                continue
            found = {split: len(dataset) for split, dataset in loaded.items()}
            if found != expected:
                check.fail(f"config {config}", f"load_dataset gives {found} rows, not {expected}")
            if any(dataset.features != features(config, manifest.bins, manifest.own) for dataset in loaded.values()):
                check.fail(f"config {config}", "load_dataset gives other features")
    check.scope = ", ".join(wanted) or "no rows"
