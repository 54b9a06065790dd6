"""From settings to a finished folder, here or at a URL: plan, fill the store, write, put into place."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from builder.archive.mirror import open_mirror
from builder.archive.packages import Package
from builder.dataset.layout import (
    CARD_FILE,
    DATA_FILES,
    DETECTIONS_FILE,
    HDF5_FILE,
    MANIFEST_FILE,
    POSITIONS_FILE,
    REJECTIONS_FILE,
    UPLOADING_FILE,
    Manifest,
    check_name,
    named_files,
)
from builder.dataset.write import upload_folder, write_folder
from builder.files import Folder, check_place, open_url, recover_folder, staging_folder, workplace
from builder.model.errors import OutputError, SettingError, StoreError
from builder.model.settings import DEFAULT_CONNECTIONS, Settings
from builder.model.text import Progress, several, silent, size_text
from builder.store.fill import agree, counter, dask_executor, fill, fill_by, results
from builder.workspace import Workspace, default_cache, describe, make_plan, open_workspace

if TYPE_CHECKING:
    from builder.archive.http import Patience


logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A finished folder: its manifest, and whether it was made just now (`fresh`) or was finished before."""

    manifest: Manifest
    fresh: bool


_LASTING = frozenset({"no_background", "no_counts", "not_acis"})
"""Reasons of rejections that come of good files, which the archive would serve as they were."""


_ROW_BYTES, _BIN_BYTES, _SOURCE_BYTES, _RESPONSE_BYTES = 20_000, 400, 6_000, 380_000
"""Bytes of a row in all files together, and what configs add that are made when asked for; of the embedded sample."""


def prepare(
    output: Path | str,
    settings: Settings,
    *,
    cache: Path | str | None = None,
    workers: int = 1,
    connections: int = DEFAULT_CONNECTIONS,
    force: bool = False,
    retry_rejected: bool = False,
    keep_downloads: Path | str | None = None,
    store: str | None = None,
    dask: str | None = None,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Build a folder that `load_dataset` reads.

    Parameters
    ----------
    output : Path or str
        The folder, which is swapped into place when it is complete; until then an older one stays whole. Or a URL of
        fsspec such as ``s3://bucket/chandra_spectra``, with the credentials that its back-end finds: the folder is
        then prepared below the cache and uploaded, its manifest last.
    cache : Path or str, optional
        Folder for the store and downloads, `builder.workspace.default_cache` by default.
    workers, connections : int
        See `builder.store.fill.fill`.
    force : bool
        Replace a prepared folder that has other settings.
    retry_rejected : bool
        Make again the packages with rejections that other files may change: all but ``no_background``,
        ``no_counts`` and ``not_acis``.
    keep_downloads : Path or str, optional
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
        See the stages. Nothing is left behind but finished packages in the store, and, where an upload was cut off,
        a folder without a manifest, which the same call completes.
    """
    if dask and keep_downloads:
        raise SettingError("downloads are kept by one machine: no keep_downloads with dask")
    started = time.monotonic()
    progress = progress or _bars()
    there, cache = _target(output), _cache(cache)
    keep_downloads = Path(keep_downloads) if keep_downloads else None
    _check_apart(there.place, cache, keep_downloads, store)
    described = describe(settings)  # before the catalog is read: the folder is not of one that changes meanwhile
    if isinstance(there.place, Path):
        recover_folder(there.place)
    sizes = there.sizes()
    finished = _finished(there, sizes, described, force)
    if finished is not None and not retry_rejected:
        if UPLOADING_FILE in sizes:  # of a run that was killed just before its end
            with _place(there, cache):
                there.remove(UPLOADING_FILE)
        return Prepared(finished, False)
    with _place(there, cache) as folder:
        _check_own(folder)
        workspace = open_workspace(settings, cache, connections, store, patience)
        with workplace(folder) as place:
            planned = make_plan(workspace, settings)
            _check_room(place, folder, len(planned.catalog), settings)
            with contextlib.ExitStack() as stack:
                if dask:
                    make_missing = functools.partial(fill_by, stack.enter_context(dask_executor(dask)))
                else:
                    mirror = stack.enter_context(open_mirror(keep_downloads)) if keep_downloads else None
                    if mirror:
                        mirror.write_catalog(planned)
                    make_missing = functools.partial(fill, workers=workers, connections=connections, mirror=mirror)

                def make_all(packages: Sequence[Package], step: str) -> None:
                    total = sum(len(package.detections) for package in packages)
                    again = _rejected(packages, workspace) if retry_rejected else frozenset[Package]()
                    done = counter(progress, step, total)
                    make_missing(packages, workspace.archive, workspace.store, again=again, done=done)

                make_all(planned.packages, "reduce")
                agreement = agree(planned.packages, workspace.archive, workspace.store)
                packages = [agreement.settle(package) for package in planned.packages]
                if left := [package for package in packages if package.own]:
                    number = len({name for package in left for name in package.own})
                    logger.warning(
                        "in %s an RMF has other channel energies than all known ACIS products: there each detection's "
                        "own RMF is fetched",
                        several(number, "observation"),
                    )
                    make_all(left, "fetch each RMF")
            with staging_folder(folder, place) as staging:
                made = results(packages, workspace.archive, workspace.store)
                manifest = write_folder(staging, settings, described, planned, made, progress)
                manifest = replace(
                    manifest,
                    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    seconds=round(time.monotonic() - started, 1),
                    sha256=manifest.digest,
                )
                manifest.write(staging)
        if folder != there.place:
            upload_folder(folder, manifest, there, progress)
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
    cache: Path | str | None = None,
    workers: int = 1,
    connections: int = DEFAULT_CONNECTIONS,
    store: str | None = None,
    patience: Patience | None = None,
    progress: Progress = silent,
) -> int:
    """Fill the store with one share of the packages, for a `prepare` that follows; returns their number.

    Parameters
    ----------
    share : (int, int)
        Which share, from 0 up, of how many.
    cache, workers, connections, store, patience, progress
        As for `prepare`; all shares must have the same cache and store.
    """
    workspace = open_workspace(settings, _cache(cache), connections, store, patience)
    packages = make_plan(workspace, settings).packages[share[0] :: share[1]]
    done = counter(progress, "reduce", sum(len(package.detections) for package in packages))
    fill(packages, workspace.archive, workspace.store, workers=workers, connections=connections, done=done)
    return len(packages)


def _cache(cache: Path | str | None) -> Path:
    check_place(str(cache or ""))
    return Path(cache) if cache else default_cache()


def _target(output: Path | str) -> Folder:
    """Give the folder that is meant; SettingError for a URL at which there can be none."""
    text = str(output)
    check_place(text)
    if "://" not in text:
        path = Path(output).resolve()  # where a link points to is what is replaced, not the link
        check_name(path)
        return Folder(path)
    if text.startswith(("file:", "local:")):
        raise SettingError(f"{text}: give a folder of this machine as a path")
    if text.startswith(("http:", "https:")):
        raise SettingError(f"{text}: nothing can be written there: give a folder, or a URL such as s3://bucket/folder")
    if not open_url(text, OutputError)[1].strip("/"):
        raise SettingError(f"{text} names no folder: give one such as s3://bucket/chandra_spectra")
    check_name(text.rstrip("/"))
    return Folder(text.rstrip("/"), advice="; the same command goes on from here")


def _check_apart(output: Path | str, *places: Path | str | None) -> None:
    """Raise SettingError for a place of the run's own below the output, with which it would be replaced."""
    for place in places:
        if place and "://" not in str(place) and Path(place).expanduser().resolve().is_relative_to(output):
            raise SettingError(f"{place} lies in the folder to be written, {output}: give a place outside of it")


def _check_room(place: Path, output: Path, detections: int, settings: Settings) -> None:
    """Raise OutputError where the disk has not the room for the rows to come."""
    row = _ROW_BYTES + settings.bins * _BIN_BYTES + settings.sources * _SOURCE_BYTES
    free, needed = shutil.disk_usage(place).free, detections * (row + settings.responses * _RESPONSE_BYTES)
    if free < needed:
        raise OutputError(
            f"no room for {output}: {detections:,} spectra take about {size_text(needed)}, and the disk has "
            f"{size_text(free)} left"
        )


@contextlib.contextmanager
def _place(there: Folder, cache: Path) -> Iterator[Path]:
    """Give the folder to prepare in: the output itself, or one to upload from, for as long as it is needed."""
    if isinstance(there.place, Path):
        yield there.place
    else:
        name = hashlib.sha256(there.place.encode()).hexdigest()[:16]
        with workplace(cache / "uploads" / name, there.place) as place:
            yield place / "chandra_spectra"


def _rejected(packages: Iterable[Package], workspace: Workspace) -> frozenset[Package]:
    """Return the finished packages that hold rejections which other files may change."""
    found = set()
    for package in workspace.store.finished(packages):
        with contextlib.suppress(StoreError):  # one that is damaged is made anyway
            if {*workspace.store.read(package).rejections["reason"].to_pylist()} - _LASTING:
                found.add(package)
    return frozenset(found)


def _finished(there: Folder, sizes: dict[str, int], described: dict[str, Any], force: bool) -> Manifest | None:
    """Return the manifest of a folder that is what is asked for, None where there is work to do."""
    if not sizes:
        return None
    if MANIFEST_FILE not in sizes:
        if UPLOADING_FILE in sizes and named_files(there, UPLOADING_FILE):  # cut off half way
            return None
        raise OutputError(f"{there.place} holds something else than a prepared folder: choose another name")
    try:
        manifest = Manifest.read(there)
    except OutputError:
        if force and HDF5_FILE in sizes:  # damaged, but plainly one of ours
            return None
        raise
    if force:
        return None
    manifest.check_settings(described, there.place)
    for file in manifest.files:
        if sizes.get(file.path) != file.bytes:
            path = f"{there.place}/{file.path}"
            raise OutputError(f"{path} is not what the manifest says: prepare the folder again with --force")
    return manifest


def _check_own(folder: Path) -> None:
    """Raise OutputError where a folder that will be replaced holds a file that is not its own."""
    try:
        own = {MANIFEST_FILE, *(file.path for file in Manifest.read(folder).files)}
    except OutputError:  # damaged: what has the places of its own files is taken for them
        own = {MANIFEST_FILE, HDF5_FILE, REJECTIONS_FILE, CARD_FILE, DETECTIONS_FILE, POSITIONS_FILE}
        own |= {"images", *DATA_FILES.values()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if (path.is_symlink() or not path.is_dir()) and not own & {str(name), name.parts[0]}:
            raise OutputError(f"{path} would be lost with the old folder: move it away, or choose another name")
