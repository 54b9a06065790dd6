"""From settings to a finished folder: plan, fill the store, assemble, swap into place."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import __version__
from builder.archive.mirror import open_mirror
from builder.archive.packages import Package, Plan
from builder.dataset.card import write_card
from builder.dataset.hdf5 import HDF5Writer
from builder.dataset.layout import (
    CARD_FILE,
    DATA_FILES,
    DETECTIONS_FILE,
    HDF5_FILE,
    MANIFEST_FILE,
    REJECTIONS_FILE,
    check_settings,
    manifest_digest,
    parts,
    read_manifest,
)
from builder.dataset.rows import join, public
from builder.dataset.shards import ShardWriter
from builder.files import beside, file_sha256, recover_folder, staging_folder, workplace
from builder.model.columns import columns_when, features
from builder.model.errors import OutputError, SettingError, StoreError
from builder.model.settings import DEFAULT_CONNECTIONS, Settings
from builder.model.splits import SPLITS
from builder.model.text import Progress, silent
from builder.store.fill import counter, dask_executor, fill, fill_by, results
from builder.store.packages import EBOUNDS_SCHEMA, PackageResult, rejections_table
from builder.workspace import Workspace, describe, make_plan, open_workspace

if TYPE_CHECKING:
    from builder.archive.http import Patience

__all__ = [
    "Prepared",
    "copy_hdf5",
    "prepare",
    "prepare_share",
]


class Prepared(NamedTuple):
    """A finished folder: its manifest, and whether it was made just now (`fresh`) or was finished before."""

    manifest: dict[str, Any]
    fresh: bool


_PACKAGES = ("astropy", "astropy-healpix", "datasets", "h5py", "numpy", "pyarrow", "sherpa")

_LASTING = frozenset({"no_background", "no_counts"})
"""Reasons of rejections that come of good files, which the archive would serve as they were."""


def prepare(
    output: Path,
    settings: Settings,
    *,
    cache: Path | None = None,
    workers: int = 1,
    connections: int = DEFAULT_CONNECTIONS,
    force: bool = False,
    retry_rejected: bool = False,
    keep_downloads: Path | None = None,
    store: str | None = None,
    dask: str | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Build a folder that `load_dataset` reads.

    Parameters
    ----------
    output : Path
        The folder. It is swapped into place when it is complete; until then an older one stays whole.
    settings : Settings
    cache : Path, optional
        Folder for the store and downloads, `builder.workspace.default_cache` by default.
    workers, connections : int
        See `builder.store.fill.fill`.
    force : bool
        Replace a prepared folder that has other settings.
    retry_rejected : bool
        Make again the packages with rejections that other files may change: all but ``no_background`` and
        ``no_counts``.
    keep_downloads : Path, optional
        A mirror folder in which to keep what is downloaded; not with `dask`.
    store : str, optional
        Folder or fsspec URL for finished packages, in place of one in the cache.
    dask : str, optional
        Address of a Dask scheduler whose workers make the packages, in place of `workers` processes.
    patience : Patience, optional
        How long to wait for an archive over HTTP.
    progress : callable, optional
        Called with a step, what is done and the total; by default a bar for each step is shown, in a notebook as well,
        unless ``datasets.disable_progress_bars`` was called.

    Returns
    -------
    Prepared
        The manifest, and ``fresh``: False where the folder was finished before, and nothing was done.

    Raises
    ------
    ChandraSpectraError
        See the stages. Nothing is left behind but finished packages in the store.
    """
    if dask and keep_downloads:
        raise SettingError("downloads are kept by one machine: no keep_downloads with dask")
    started = time.monotonic()
    progress = progress or _bars()
    output = Path(output).resolve()  # where a link points to is what is replaced, not the link
    recover_folder(output)
    said = describe(settings)  # before the catalog is read: one that changes meanwhile is not what the folder is of
    if (finished := _finished(output, said, force)) is not None and not retry_rejected:
        return Prepared(finished, False)
    _check_own(output)
    workspace = open_workspace(settings, cache, connections, store, patience)
    with workplace(output) as place:
        planned = make_plan(workspace, settings)
        done = counter(progress, "reduce", len(planned.catalog))
        again = _rejected(planned, workspace) if retry_rejected else frozenset()
        if dask:
            with dask_executor(dask) as executor:
                fill_by(executor, planned.packages, workspace.archive, workspace.store, again=again, done=done)
        else:
            with open_mirror(keep_downloads) if keep_downloads else contextlib.nullcontext() as mirror:
                if mirror:
                    mirror.write_catalog(planned)
                fill(
                    planned.packages,
                    workspace.archive,
                    workspace.store,
                    workers=workers,
                    connections=connections,
                    mirror=mirror,
                    again=again,
                    done=done,
                )
        with staging_folder(output, place) as staging:
            manifest = _assemble(staging, settings, said, planned, workspace, progress)
            manifest["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            manifest["seconds"] = round(time.monotonic() - started, 1)
            manifest["sha256"] = manifest_digest(manifest)
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (staging / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return Prepared(manifest, True)


def _bars() -> Progress:
    """Show a bar for each step, as `datasets` shows its own."""
    from datasets.utils import tqdm

    bars: dict[str, Any] = {}

    def progress(step: str, done: int, total: int) -> None:
        bar = bars.get(step) or bars.setdefault(step, tqdm(desc=step, total=total, unit=" detections"))
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return progress


def prepare_share(
    settings: Settings,
    share: tuple[int, int],
    *,
    cache: Path | None = None,
    workers: int = 1,
    connections: int = DEFAULT_CONNECTIONS,
    store: str | None = None,
    patience: Patience | None = None,
    progress: Progress = silent,
) -> int:
    """Fill the store with one share of the packages, for a `prepare` that follows; returns their number.

    Parameters
    ----------
    settings : Settings
    share : (int, int)
        Which share, from 0 up, of how many.
    cache, workers, connections, store, patience, progress
        As for `prepare`; all shares must have the same cache and store.
    """
    workspace = open_workspace(settings, cache, connections, store, patience)
    packages = make_plan(workspace, settings).packages[share[0] :: share[1]]
    done = counter(progress, "reduce", sum(len(package.detections) for package in packages))
    fill(packages, workspace.archive, workspace.store, workers=workers, connections=connections, done=done)
    return len(packages)


def copy_hdf5(folder: Path, path: Path) -> None:
    """Give the canonical HDF5 file of a prepared folder under another name; OutputError if it cannot be written."""
    with beside(path) as partial:
        shutil.copyfile(folder / HDF5_FILE, partial)


def _rejected(planned: Plan, workspace: Workspace) -> frozenset[Package]:
    """The finished packages that hold rejections which other files may change."""
    found = set()
    for package in workspace.store.finished(planned.packages):
        with contextlib.suppress(StoreError):  # one that is damaged is made anyway
            if {*workspace.store.read(package).rejections["reason"].to_pylist()} - _LASTING:
                found.add(package)
    return frozenset(found)


def _finished(output: Path, said: dict[str, Any], force: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is what is asked for, None where there is work to do."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise OutputError(f"{output} is a file: give the name of a folder")
    if not any(output.iterdir()):
        return None
    if not (output / MANIFEST_FILE).exists():
        raise OutputError(f"{output} holds something else than a prepared folder: choose another name")
    try:
        manifest = read_manifest(output)
    except OutputError:
        if force and (output / HDF5_FILE).is_file():  # damaged, but plainly one of ours
            return None
        raise
    if force:
        return None
    check_settings(manifest, said, output)
    for file in manifest["files"]:
        path = output / file["path"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            raise OutputError(f"{path} is not what the manifest says: prepare the folder again with --force")
    return manifest


def _check_own(output: Path) -> None:
    """OutputError where a folder that will be replaced holds a file that is not its own."""
    try:
        own = {MANIFEST_FILE, *(file["path"] for file in read_manifest(output)["files"])}
    except OutputError:  # damaged: what has the places of its own files is taken for them
        own = {MANIFEST_FILE, HDF5_FILE, REJECTIONS_FILE, CARD_FILE, DETECTIONS_FILE, "images", *DATA_FILES.values()}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if (path.is_symlink() or not path.is_dir()) and not own & {str(name), name.parts[0]}:
            raise OutputError(f"{path} would be lost with the old folder: move it away, or choose another name")


def _assemble(
    staging: Path, settings: Settings, said: dict[str, Any], planned: Plan, workspace: Workspace, progress: Progress
) -> dict[str, Any]:
    """Write everything but the manifest, one package at a time, and return the manifest."""
    attributes = {**said, "dataset": "chandra_spectra", "builder": __version__, "versions": _versions()}
    rejections = [rejections_table(planned.rejections)]
    grids = EBOUNDS_SCHEMA.empty_table()
    rows, detections = 0, len(planned.catalog) + len(planned.rejections)
    selected = len(planned.rejections)
    shards = {
        (config, split): ShardWriter(staging / DATA_FILES[config], features(config).arrow_schema, split)
        for config, split in parts(settings.splits, settings.responses)
    }
    known: set[str] = set()  # responses that are written
    with contextlib.ExitStack() as stack:
        for writer in shards.values():
            stack.enter_context(writer)
        hdf5 = stack.enter_context(HDF5Writer(staging / HDF5_FILE, attributes, columns_when(settings.recipe.subtract)))
        for package, result in results(planned.packages, workspace.archive, workspace.store):
            selected += _complete(package, result)
            table = join(planned.catalog, package, result, settings.splits)
            for split in settings.splits.names:
                part = table.filter(pc.equal(table["split"], split)) if settings.splits.divided else table
                for config in ("spectra", "counts"):
                    shards[config, split].append(public(part, config))
            hdf5.append(table)
            for number, key in enumerate(result.responses["rmf_sha256"].to_pylist()):
                if key not in known:  # one by one: a package's together take 70 MB, and as much again
                    known.add(key)
                    shards["responses", "train"].append(public(result.responses.slice(number, 1), "responses"))
            rows += len(table)
            rejections.append(result.rejections)
            grids = _distinct(pa.concat_tables([grids, result.ebounds]))
            progress("write", package.start + len(package.detections), len(planned.catalog))
        shards["ebounds", "train"].append(public(grids, "ebounds"))
        hdf5.append_ebounds(grids)
    for (_, split), writer in shards.items():
        if settings.splits.divided and not sum(writer.rows) and (rows or split != SPLITS[0]):
            for path in writer.paths:  # `load_dataset` refuses a split without rows
                path.unlink()
            writer.paths, writer.rows = [], []
    rejected = pa.concat_tables(rejections)
    pq.write_table(rejected, staging / REJECTIONS_FILE)
    if selected != rows + len(rejected):
        raise OutputError(f"{selected} spectra selected, but {rows} rows and {len(rejected)} rejections")
    counts = {
        "detections": detections,
        "duplicates": planned.duplicates,
        "selected": selected,
        "rows": rows,
        "rejected": len(rejected),
        "reasons": dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
    }
    files = [
        _entry(path, staging, number)
        for writer in shards.values()
        for path, number in zip(writer.paths, writer.rows, strict=True)
    ]
    written = write_card(staging, settings, counts, files)
    files += [_entry(staging / HDF5_FILE, staging, rows), _entry(staging / REJECTIONS_FILE, staging, len(rejected))]
    files += [_entry(path, staging, None) for path in written]
    return {
        "dataset": "chandra_spectra",
        "builder": __version__,
        "settings": said,
        "versions": _versions(),
        "catalog": {"detections": detections, "sha256": _sha256_of_table(planned.catalog)},
        "counts": counts,
        "files": files,
    }


def _complete(package: Package, result: PackageResult) -> int:
    """Number of spectra that the package's detections came to; OutputError if one is unaccounted for."""
    known = {str(package.detections[row]) for row in result.spectra["row"].to_pylist()}
    known.update(".".join(name.split(".")[:3]) for name in result.rejections["detection_id"].to_pylist())
    if lost := [str(detection) for detection in package.detections if str(detection) not in known]:
        raise OutputError(f"detection {lost[0]} is neither a row nor a rejection; please report this")
    return len(result.spectra) + len(result.rejections)


def _distinct(grids: pa.Table) -> pa.Table:
    first: dict[str, int] = {}
    for index, name in enumerate(grids["ebounds_id"].to_pylist()):
        first.setdefault(name, index)
    return grids.take(pa.array([first[name] for name in sorted(first)], pa.int64()))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def _sha256_of_table(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=1000):  # all rows as dicts at once would take gigabytes
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def _entry(path: Path, folder: Path, rows: int | None) -> dict[str, Any]:
    return {
        "path": str(path.relative_to(folder)),
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }
