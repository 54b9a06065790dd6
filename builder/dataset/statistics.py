"""Mean, spread and quantiles of the rows to train on, by column and, of lists over energy, by energy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder.dataset.layout import Manifest
from builder.dataset.slices import flat_tables
from builder.model.column import ROW_CONFIGS
from builder.model.columns import COLUMNS
from builder.model.records import N_CHANNELS
from builder.model.splits import SPLITS

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the quantiles: the least value and the greatest are the ends."""

_LISTS = {"counts": ("counts", "background_counts"), "binned": ("counts", "background_counts", "effective_area")}
"""Columns over energy by config."""

_SCALARS = tuple(
    column.name
    for column in COLUMNS
    if column.configs == ROW_CONFIGS
    and (column.dtype.startswith("float") or column.unit == "count" or column.name == "n_bins")
    and column.name not in ("ra", "dec")
)


def train_statistics(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Describe the rows whose column ``split`` is train, from the shards of a folder.

    Each column is read by itself, and the channels row by row, so that no more is in memory. Values that are null are
    left out, and a column without any other.

    Returns
    -------
    dict
        ``rows``, the ``levels`` of the quantiles, and by config and column ``mean``, ``std`` (over all rows, not one
        less) and, but for the channels, ``quantiles`` (one a level): numbers, or lists of them, one an energy.
        ``spectra`` has the scalars, which all configs share. All with six digits.
    """
    train = SPLITS[0]
    paths = {
        config: [folder / path for split in manifest.splits.names for path in manifest.shards(config, split)]
        for config, _ in manifest.parts
    }
    with contextlib.ExitStack() as stack:
        files = {
            config: [stack.enter_context(pq.ParquetFile(path)) for path in paths.get(config, ())]
            for config in ("spectra", "binned")
        }
        chosen = _column(files["spectra"], "split") == train
        said: dict[str, Any] = {"rows": int(chosen.sum()), "levels": list(LEVELS), "spectra": {}}
        for name in _SCALARS:
            values = _column(files["spectra"], name)[chosen].astype(np.float64)
            if (values := values[np.isfinite(values)]).size:
                said["spectra"][name] = _described(values)
        if not said["rows"]:
            return said
        said["counts"] = _channels(flat_tables(paths["counts"]), train)
        if files["binned"]:
            said["binned"] = {name: _described(_column(files["binned"], name)[chosen]) for name in _LISTS["binned"]}
    return said


def _column(files: list[pq.ParquetFile], name: str) -> NDArray[Any]:
    """Read a column of all rows: of lists of one length, (rows, length)."""
    parts = [file.read([name])[name].combine_chunks() for file in files]
    arrays = [
        part.flatten().to_numpy(zero_copy_only=False).reshape(len(part), -1)
        if hasattr(part.type, "list_size")
        else part.to_numpy(zero_copy_only=False)
        for part in parts
    ]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=object)


def _channels(tables: Iterator[Any], train: str) -> dict[str, Any]:
    """Describe counts by channel; by sums of whole numbers, which do not depend on an order."""
    rows, sums = 0, {name: np.zeros((2, N_CHANNELS), dtype=object) for name in _LISTS["counts"]}
    for table in tables:
        chosen = table["split"].combine_chunks().to_numpy(zero_copy_only=False) == train
        rows += int(chosen.sum())
        for name, total in sums.items():
            values = table[name].combine_chunks().flatten().to_numpy().reshape(-1, N_CHANNELS)[chosen].astype(np.int64)
            total[0] += values.sum(axis=0)
            total[1] += (values**2).sum(axis=0)
    said = {}
    for name, (once, squared) in sums.items():
        variance = (rows * squared - once**2).astype(np.float64) / rows**2
        said[name] = {"mean": _short(once.astype(np.float64) / rows), "std": _short(np.sqrt(variance))}
    return said


def _described(values: NDArray[Any]) -> dict[str, Any]:
    """Describe a column, or each energy of one over energy, one after the other."""
    if values.ndim == 1:
        numbers = np.ascontiguousarray(values, dtype=np.float64)
        scale = np.abs(numbers).max() or 1.0  # squares of what a catalog may hold overflow
        numbers = numbers / scale
        said = {"mean": numbers.mean(), "std": numbers.std(), "quantiles": np.quantile(numbers, LEVELS)}
        return {name: _short(value * scale) for name, value in said.items()}
    each = [_described(values[:, energy]) for energy in range(values.shape[1])]
    said = {name: [one[name] for one in each] for name in ("mean", "std", "quantiles")}
    return said | {"quantiles": [list(level) for level in zip(*said["quantiles"], strict=True)]}


def _short(numbers: Any) -> Any:
    """Write with six digits: sums of the same values in another order give the same."""
    short = [float(f"{number:.6g}") for number in np.atleast_1d(numbers).tolist()]
    return short if np.ndim(numbers) else short[0]
