"""The rows of config ``sources`` against the detections that they are the sums of."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from builder.dataset.layout import DATA_FILES, Manifest
from builder.dataset.rows import public
from builder.dataset.slices import RowReader, flat_tables
from builder.dataset.sources import sum_sources
from builder.use.checks import Check
from builder.use.reading import reading


def check_sources(check: Check, folder: Path, manifest: Manifest) -> None:
    """Check that each source is there once, and holds what its detections in config ``counts`` add up to."""
    total = 0
    for split in manifest.splits.names:
        shards = manifest.shards("sources", split)
        with reading(check, next(iter(shards), DATA_FILES["sources"])):
            files = np.repeat(list(shards), list(shards.values())) if shards else np.empty(0, str)
            reader, number = RowReader(folder, shards), 0
            paths = [folder / path for path in manifest.shards("counts", split)]
            for sums in sum_sources(partial(flat_tables, paths), manifest.own):
                made = public(sums, "sources", own=manifest.own).flatten()
                there = min(len(made), files.size - number)
                if there:
                    _compare(check, made.slice(0, there), reader.take(there), files, number)
                for name in made["detection_ids"][there:].to_pylist():
                    check.fail(DATA_FILES["sources"], name[0], "is in no row")
                number += len(made)
            if number < files.size:
                check.fail(files[number], f"row {number}", "is of no source")
            total += number
    check.scope += f", {total:,} sources"


def _compare(check: Check, made: pa.Table, found: pa.Table, files: np.ndarray, start: int) -> None:
    """Note each row with the first column in which it is not as it is made."""
    wrong: set[int] = set()
    for name in made.column_names:
        one, other = made[name].combine_chunks(), found[name].combine_chunks()
        for row in range(0 if one.equals(other) else len(made)):
            if row not in wrong and not one.slice(row, 1).equals(other.slice(row, 1)):
                wrong.add(row)
                place = f"{made['detection_ids'][row][0].as_py()} (row {start + row})"
                check.fail(files[start + row], place, name + _difference(other[row].as_py(), one[row].as_py()))


def _difference(found: object, made: object) -> str:
    if isinstance(found, list) and isinstance(made, list) and len(found) == len(made):
        first = next(number for number, pair in enumerate(zip(found, made, strict=True)) if pair[0] != pair[1])
        return f"[{first}] is {found[first]}, the detections give {made[first]}"
    if isinstance(found, list) and isinstance(made, list):
        return f" has {len(found)} values, the detections give {len(made)}"
    return f" is {found}, the detections give {made}"
