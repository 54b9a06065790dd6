"""Rows of a prepared folder reduced again, and compared with what it holds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.archive.interface import Archive
from builder.archive.packages import PACKAGE_SIZE, Package
from builder.dataset.layout import HDF5_FILE, Manifest
from builder.dataset.rows import examples
from builder.model.columns import COLUMNS
from builder.model.ids import DetectionId
from builder.model.settings import RMFS, Settings
from builder.model.splits import SPLITS
from builder.model.text import Progress
from builder.store.fill import make
from builder.store.packages import SPECTRA_SCHEMA, Store
from builder.use.checks import Check
from builder.use.reading import temporary

_ABOUT_THE_RMF = ("rmf_file", "rmf_sha256", "ebounds_from")


def check_again(
    check: Check,
    folder: Path,
    manifest: Manifest,
    settings: Settings,
    source: Archive,
    number: int,
    seed: int,
    progress: Progress,
) -> None:
    """Reduce some rows again, each with its own RMF, and compare with the doubles of the HDF5 file.

    A row that took its channel energies from another detection's RMF must have those of its own; one whose own RMF is
    of no use is passed over.
    """
    total = manifest.counts.rows
    chosen = sorted(random.Random(seed).sample(range(total), min(number, total)))
    shared, lacking = settings.rmf != RMFS[0], 0
    columns = [
        column
        for column in COLUMNS
        if column.name in SPECTRA_SCHEMA.names and not (shared and column.name in _ABOUT_THE_RMF)
    ]
    with h5py.File(folder / HDF5_FILE) as file, temporary() as root:
        store = Store(root, settings.release, settings.recipe, settings.responses, settings.bins)
        for start in range(0, len(chosen), PACKAGE_SIZE):
            rows = {row: DetectionId.parse(file["detection_id"].asstr()[row]) for row in chosen[start:][:PACKAGE_SIZE]}
            package = Package(0, tuple(dict.fromkeys(detection.catalog for detection in rows.values())))
            make(package, source, store)
            result = store.read(package)
            reasons = {row["detection_id"]: row for row in result.rejections.to_pylist()}
            measured = {row["object_id"]: row for row in result.spectra.to_pylist()}
            for row, detection in rows.items():
                place = (HDF5_FILE, f"{detection} (row {row})")
                if (expected := measured.get(detection.object_id)) is None:
                    why = reasons.get(str(detection), {"message": "no files"})["message"]
                    if shared and ("_rmf3.fits" in why or "no RMF file" in why):
                        lacking += 1
                        continue
                    check.fail(*place, f"is now rejected: {why}")
                    continue
                for column in columns:
                    difference = _difference(file[column.hdf5_name][row], expected[column.name])
                    if difference:
                        check.fail(*place, column.hdf5_name + difference)
            if settings.responses:
                _check_responses_again(check, folder, list(manifest.shards("responses", "train")), result.responses)
            if settings.bins:
                numbers = {detection.object_id for detection in rows.values()}
                _check_compact_again(
                    check, folder, manifest, {number: measured[number] for number in numbers & measured.keys()}
                )
            progress("recheck", start + len(rows), len(chosen))
    check.scope = f"{len(chosen) - lacking:,} of {total:,} rows, from {settings.archive}"
    if lacking:
        check.scope += f"; {lacking:,} more without an RMF of use"


def _check_responses_again(check: Check, folder: Path, files: list[str], again: pa.Table) -> None:
    """Compare responses that were read again, by their keys, with those of the folder."""
    wanted = {row["rmf_sha256"]: row for row in examples(again)}
    for path in files:
        with pq.ParquetFile(folder / path) as file:
            for batch in file.iter_batches(10):
                for stored in examples(pa.Table.from_batches([batch])):
                    for name, value in wanted.get(stored["rmf_sha256"], {}).items():
                        if difference := _difference(stored[name], value):
                            check.fail(path, stored["rmf_sha256"], name + difference)


def _check_compact_again(check: Check, folder: Path, manifest: Manifest, again: dict[int, dict[str, Any]]) -> None:
    """Compare compact responses that were made again, by object_id, with those of the folder."""
    names = ["object_id", "response", "response_fault"]
    for split in SPLITS:
        for path in manifest.shards("binned", split):
            found = pq.read_table(folder / path, columns=names, filters=[("object_id", "in", list(again))])
            for stored in found.to_pylist():
                number = stored["object_id"]
                for name in names[1:]:
                    one, other = (np.ravel(each[name]) for each in (stored, again[number]))
                    if difference := _difference(*(each if each.size > 1 else each.item() for each in (one, other))):
                        check.fail(path, f"object_id {number}", name + difference)


def _difference(stored: Any, again: Any) -> str:
    """Describe how a stored value differs from the one that came out again; empty where it does not."""
    if isinstance(stored, bytes):
        stored = stored.decode()
    if again is None:  # in HDF5 a text or a list that is null is empty
        return (
            ""
            if stored is None or not np.size(stored) or np.array_equal(stored, "")
            else f" is {stored}, the archive's files give none"
        )
    if np.array_equal(stored, again):
        return ""
    if np.shape(stored) != np.shape(again):
        return f" has {np.size(stored)} values, the archive's files give {np.size(again)}"
    if not np.shape(stored):
        return f" is {stored}, the archive's files give {again}"
    first = np.flatnonzero(stored != np.asarray(again))[0]
    return f"[{first}] is {stored[first]}, the archive's files give {again[first]}"
