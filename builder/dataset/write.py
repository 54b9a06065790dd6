"""The writing of a prepared folder: from finished packages to all of its files, and from here to a URL."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import __version__
from builder.archive.packages import Package, Plan
from builder.dataset.binned import binned
from builder.dataset.card import write_card
from builder.dataset.describe import parquet_schema
from builder.dataset.hdf5 import HDF5Writer
from builder.dataset.layout import (
    DATA_FILES,
    HDF5_FILE,
    MANIFEST_FILE,
    POSITIONS_FILE,
    REJECTIONS_FILE,
    UPLOADING_FILE,
    Counts,
    Entry,
    Manifest,
    named_files,
    parts,
)
from builder.dataset.positions import write_matches
from builder.dataset.rows import join, public
from builder.dataset.shards import ShardWriter
from builder.dataset.slices import flat_tables
from builder.dataset.sources import sum_sources
from builder.dataset.statistics import train_statistics
from builder.files import Folder, reported
from builder.model.columns import columns_when
from builder.model.errors import OutputError
from builder.model.own import own_columns, own_dicts
from builder.model.settings import EMBEDDED, EMBEDDED_REMARK, Settings
from builder.model.splits import SPLITS
from builder.model.text import Progress
from builder.store.packages import EBOUNDS_SCHEMA, PackageResult, rejections_table

_PACKAGES = ("astropy", "datasets", "h5py", "healpix", "numpy", "pyarrow", "sherpa")


def write_folder(
    folder: Path,
    settings: Settings,
    described: dict[str, Any],
    planned: Plan,
    results: Iterable[tuple[Package, PackageResult]],
    progress: Progress,
) -> Manifest:
    """Write everything but the manifest, one package at a time.

    Parameters
    ----------
    folder : Path
        An empty folder.
    described : dict
        The settings as the manifest has them.
    results : iterable of (Package, PackageResult)
        All packages of the plan, finished, in its order.

    Returns
    -------
    Manifest
        Without its times.

    Raises
    ------
    OutputError
        If a detection is neither a row nor a rejection.
    OSError
        If the file system refuses.
    """
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}
    attributes = {**described, "dataset": "chandra_spectra", "builder": __version__, "versions": versions}
    rejections = [rejections_table(planned.rejections)]
    grids = EBOUNDS_SCHEMA.empty_table()
    own_rmfs: set[str] = set()
    rows, selected = 0, len(planned.rejections)
    own = own_columns(planned.catalog.schema)
    shards = {
        (config, split): ShardWriter(folder / DATA_FILES[config], parquet_schema(config, settings.bins, own), split)
        for config, split in parts(settings.splits, settings.responses, settings.bins, settings.sources)
    }
    known: set[str] = set()  # responses that are written
    with contextlib.ExitStack() as stack:
        for (config, _), writer in shards.items():
            if config != "sources":  # made of what the others have written
                stack.enter_context(writer)
        columns = (*columns_when(settings.recipe.subtract), *own)
        hdf5 = stack.enter_context(HDF5Writer(folder / HDF5_FILE, attributes, columns))
        for package, result in results:
            selected += _complete(package, result)
            own_rmfs.update(package.own)
            table = join(planned.catalog, package, result, settings.splits)
            rows_of = {"spectra": table, "counts": table}
            if settings.bins:
                rows_of["binned"] = binned(table, result, settings.recipe, settings.bins)
            for config, whole in rows_of.items():
                for split in settings.splits.names:
                    part = whole.filter(pc.equal(whole["split"], split)) if settings.splits.divided else whole
                    shards[config, split].append(public(part, config, settings.bins, own))
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
    for split in settings.splits.names if settings.sources else ():
        progress("sum sources", 0, rows)
        with shards["sources", split] as writer:
            for sums in sum_sources(partial(flat_tables, shards["counts", split].paths), own):
                writer.append(public(sums, "sources", own=own))
        progress("sum sources", rows, rows)
    for (_, split), writer in shards.items():
        if settings.splits.divided and not sum(writer.rows) and (rows or split != SPLITS[0]):
            for path in writer.paths:  # `load_dataset` refuses a split without rows
                path.unlink()
            writer.paths, writer.rows = [], []
    rejected = pa.concat_tables(rejections)
    pq.write_table(rejected, folder / REJECTIONS_FILE)
    if selected != rows + len(rejected):
        raise OutputError(f"{selected} spectra selected, but {rows} rows and {len(rejected)} rejections")
    detections = len(planned.catalog) + len(planned.rejections)
    reasons = dict(sorted(Counter(rejected["reason"].to_pylist()).items()))
    files = [
        Entry.of(path, folder, number)
        for writer in shards.values()
        for path, number in zip(writer.paths, writer.rows, strict=True)
    ]
    manifest = Manifest(
        __version__,
        described,
        versions,
        {"detections": detections, "sha256": _sha256_of_table(planned.catalog)}
        | _origin(planned, settings)
        | _matched(planned)
        | ({"labels": planned.labels} if planned.labels else {}),
        Counts(detections, planned.duplicates, selected, rows, len(rejected), reasons),
        tuple(files),
        tuple(sorted(own_rmfs)),
        tuple(own_dicts(own)),
    )
    manifest = dataclasses.replace(manifest, statistics=train_statistics(folder, manifest))
    files += [Entry.of(folder / HDF5_FILE, folder, rows), Entry.of(folder / REJECTIONS_FILE, folder, len(rejected))]
    if planned.matches:
        write_matches(folder / POSITIONS_FILE, planned.matches)
        files.append(Entry.of(folder / POSITIONS_FILE, folder))
    files += [Entry.of(path, folder) for path in write_card(folder, settings, manifest)]
    return dataclasses.replace(manifest, files=tuple(files))


def _complete(package: Package, result: PackageResult) -> int:
    """Return the number of spectra that the package's detections came to; OutputError if one is unaccounted for."""
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


def _origin(planned: Plan, settings: Settings) -> dict[str, Any]:
    """Say where the catalog was asked for, where it was, or what the embedded sample is."""
    if settings.archive == EMBEDDED:
        return {"remark": EMBEDDED_REMARK}
    said = dataclasses.asdict(planned.origin) if planned.origin is not None else {}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}


def _matched(planned: Plan) -> dict[str, Any]:
    """Count the positions that were asked for, where there are any."""
    matches = planned.matches
    counts = {
        "number": len(matches),
        "matched": sum(match.source is not None for match in matches),
        "selected": sum(match.detections > 0 for match in matches),
    }
    return {"positions": counts} if matches else {}


def _sha256_of_table(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for batch in table.to_batches(max_chunksize=1000):  # all rows as dicts at once would take gigabytes
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def upload_folder(folder: Path, manifest: Manifest, there: Folder, progress: Progress) -> None:
    """Put a prepared folder in the place of what is at a URL.

    No object store puts a whole folder in place at once, so the manifest tells: it is removed before anything else is
    touched, and written last. A folder that has a manifest is whole; one that has a list of files being uploaded in
    its place was cut off half way. Only files that a manifest or such a list names are ever removed.

    Raises
    ------
    OutputError
        If the file system refuses; the next upload completes it.
    """
    before = there.sizes()
    new = {file.path for file in manifest.files}
    old = {path for name in (MANIFEST_FILE, UPLOADING_FILE) if name in before for path in named_files(there, name)}
    uploading = {"dataset": "chandra_spectra", "files": [{"path": path} for path in sorted(old | new)]}
    with reported(OutputError, f"cannot write {folder / UPLOADING_FILE}"):
        (folder / UPLOADING_FILE).write_text(json.dumps(uploading, indent=2) + "\n", encoding="utf-8")
    there.put(UPLOADING_FILE, folder / UPLOADING_FILE)
    if MANIFEST_FILE in before:
        there.remove(MANIFEST_FILE)
    for number, file in enumerate(manifest.files):
        progress("upload", number, len(new))
        there.put(file.path, folder / file.path)
    for path in sorted((old - new) & before.keys()):
        there.remove(path)
    there.put(MANIFEST_FILE, folder / MANIFEST_FILE)
    there.remove(UPLOADING_FILE)
    progress("upload", len(new), len(new))
