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
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import __version__
from builder.card import CARD_FILE, DATA_FILES, DETECTIONS_FILE, write_card
from builder.catalog import Package, Plan
from builder.columns import columns_when, features
from builder.digests import file_sha256
from builder.engine import fill, fill_by, results
from builder.errors import OutputError, SettingError, StoreError
from builder.hdf5 import HDF5Writer
from builder.mirror import open_mirror
from builder.rows import join, public
from builder.settings import Settings
from builder.shards import ShardWriter, parts
from builder.sources import Source, open_source, plan_for
from builder.splits import SPLITS
from builder.staging import beside, recover_folder, staging_folder, workplace
from builder.store import EBOUNDS_SCHEMA, PackageResult, rejections_table

if TYPE_CHECKING:
    from builder.client import Patience

__all__ = [
    "HDF5_FILE",
    "MANIFEST_FILE",
    "REJECTIONS_FILE",
    "check_settings",
    "copy_hdf5",
    "counter",
    "manifest_digest",
    "prepare",
    "prepare_share",
    "read_manifest",
]

HDF5_FILE = "chandra_spectra.hdf5"
MANIFEST_FILE = "manifest.json"
REJECTIONS_FILE = "rejections.parquet"

_PACKAGES = ("astropy", "astropy-healpix", "datasets", "h5py", "numpy", "pyarrow", "sherpa")

_LASTING = frozenset({"no_background", "no_counts"})
"""Reasons of rejections that come of good files, which the archive would serve as they were."""

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and the total."""


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


def prepare(
    output: Path,
    settings: Settings,
    *,
    cache: Path | None = None,
    workers: int = 1,
    connections: int = 4,
    force: bool = False,
    retry_rejected: bool = False,
    keep_downloads: Path | None = None,
    store: str | None = None,
    dask: str | None = None,
    patience: Patience | None = None,
    progress: Progress = lambda step, done, total: None,
) -> tuple[dict[str, Any], bool]:
    """Build a folder that `load_dataset` reads.

    Parameters
    ----------
    output : Path
        The folder. It is swapped into place when it is complete; until then an older one stays whole.
    settings : Settings
    cache : Path, optional
        Folder for the store and downloads, `builder.sources.default_cache` by default.
    workers, connections : int
        See `builder.engine.fill`.
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
    progress : callable

    Returns
    -------
    manifest : dict
    done : bool
        False where the folder was finished before, and nothing was done.

    Raises
    ------
    ChandraSpectraError
        See the stages. Nothing is left behind but finished packages in the store.
    """
    if dask and keep_downloads:
        raise SettingError("downloads are kept by one machine: no keep_downloads with dask")
    started = time.monotonic()
    output = Path(output).resolve()  # where a link points to is what is replaced, not the link
    recover_folder(output)
    said = settings.as_dict()  # before the catalog is read: one that changes meanwhile is not what the folder is of
    if (finished := _finished(output, said, force)) is not None and not retry_rejected:
        return finished, False
    _check_own(output)
    source = open_source(settings, cache, connections, store, patience)
    with workplace(output) as place:
        planned = plan_for(source, settings)
        done = counter(progress, "reduce", len(planned.catalog))
        again = _rejected(planned, source) if retry_rejected else frozenset()
        if dask:
            with _dask_executor(dask) as executor:
                fill_by(executor, planned.packages, source.archive, source.store, again=again, done=done)
        else:
            with open_mirror(keep_downloads) if keep_downloads else contextlib.nullcontext() as mirror:
                if mirror:
                    mirror.write_catalog(planned)
                fill(
                    planned.packages,
                    source.archive,
                    source.store,
                    workers=workers,
                    connections=connections,
                    mirror=mirror,
                    again=again,
                    done=done,
                )
        with staging_folder(output, place) as staging:
            manifest = _assemble(staging, settings, said, planned, source, progress)
            manifest["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            manifest["seconds"] = round(time.monotonic() - started, 1)
            manifest["sha256"] = manifest_digest(manifest)
            text = json.dumps(manifest, indent=2, ensure_ascii=False)
            (staging / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    return manifest, True


def prepare_share(
    settings: Settings,
    share: tuple[int, int],
    *,
    cache: Path | None = None,
    workers: int = 1,
    connections: int = 4,
    store: str | None = None,
    patience: Patience | None = None,
    progress: Progress = lambda step, done, total: None,
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
    source = open_source(settings, cache, connections, store, patience)
    packages = plan_for(source, settings).packages[share[0] :: share[1]]
    done = counter(progress, "reduce", sum(len(package.detections) for package in packages))
    fill(packages, source.archive, source.store, workers=workers, connections=connections, done=done)
    return len(packages)


def counter(progress: Progress, step: str, total: int) -> Callable[[Package], None]:
    """Turn finished packages into progress in detections."""
    count = 0

    def done(package: Package) -> None:
        nonlocal count
        count += len(package.detections)
        progress(step, count, total)

    progress(step, 0, total)
    return done


@contextlib.contextmanager
def _dask_executor(address: str) -> Iterator[Executor]:
    """The executor of a Dask cluster; SettingError where Dask is not installed or does not answer."""
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingError("--dask needs Dask: pip install 'chandra-spectra[dask]'") from error
    try:
        client = Client(address, timeout=30)
    except (OSError, TimeoutError, ValueError) as error:
        raise SettingError(f"no Dask scheduler at {address}: {error}") from error
    with client:
        yield client.get_executor()


def copy_hdf5(folder: Path, path: Path) -> None:
    """Give the canonical HDF5 file of a prepared folder under another name; OutputError if it cannot be written."""
    with beside(path) as partial:
        shutil.copyfile(folder / HDF5_FILE, partial)


def _rejected(planned: Plan, source: Source) -> frozenset[Package]:
    """The finished packages that hold rejections which other files may change."""
    found = set()
    for package in source.store.finished(planned.packages):
        with contextlib.suppress(StoreError):  # one that is damaged is made anyway
            if {*source.store.read(package).rejections["reason"].to_pylist()} - _LASTING:
                found.add(package)
    return frozenset(found)


def check_settings(manifest: dict[str, Any], said: dict[str, Any], where: Path | str) -> None:
    """OutputError where the folder of a manifest was made with other settings than are said now."""
    there = manifest.get("settings", {})
    if differ := [name for name in {**said, **there} if said.get(name) != there.get(name)]:
        raise OutputError(
            f"{where} was prepared with other settings, or from another catalog (see {', '.join(differ)} in its "
            "manifest.json): choose another name, or --force to replace it"
        )


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
    staging: Path, settings: Settings, said: dict[str, Any], planned: Plan, source: Source, progress: Progress
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
        for package, result in results(planned.packages, source.archive, source.store):
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
