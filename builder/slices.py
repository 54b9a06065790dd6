"""The rows of a prepared folder, read a slice at a time in the catalog's order, whatever their files and splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder.card import DATA_FILES
from builder.checks import Rows
from builder.prepare import HDF5_FILE
from builder.shards import parts
from builder.splits import SPLITS, Splits

__all__ = ["SLICE_ROWS", "order_of", "parts_of", "rows_of", "slices"]

SLICE_ROWS = 500
"""Rows in hand at once, about 20 MB."""


def parts_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The configs and splits that a folder has."""
    said = manifest["settings"]
    return parts(Splits.parse(said["splits"]), bool(said["responses"]))


def rows_of(manifest: dict[str, Any], config: str, split: str) -> dict[str, int]:
    """Rows by file of one split of a config, in the order of the rows."""
    prefix = f"{DATA_FILES[config]}/{split}-"
    return {file["path"]: file["rows"] for file in manifest["files"] if file["path"].startswith(prefix)}


class _Reader:
    """Reads the rows of one split of a config, so many at a time whatever the shards' bounds."""

    def __init__(self, folder: Path, shards: dict[str, int], size: int) -> None:
        self._tables = self._read(folder, shards, size)
        self._waiting: list[pa.Table] = []

    @staticmethod
    def _read(folder: Path, shards: dict[str, int], size: int) -> Iterator[pa.Table]:
        for path in shards:
            with pq.ParquetFile(folder / path) as file:
                for batch in file.iter_batches(size):
                    yield pa.Table.from_batches([batch]).flatten()

    def take(self, number: int) -> pa.Table:
        """The next rows."""
        while sum(map(len, self._waiting)) < number:
            self._waiting.append(next(self._tables))
        table = pa.concat_tables(self._waiting)
        self._waiting = [table.slice(number)]
        return table.slice(0, number)


def slices(folder: Path, manifest: dict[str, Any], order: NDArray[np.int64], size: int = SLICE_ROWS) -> Iterator[Rows]:
    """The rows of both configs, `size` at a time, in the catalog's order.

    Parameters
    ----------
    folder : Path
    manifest : dict
    order : ndarray of int64
        For each row the number of the split in whose files it stands.
    size : int
    """
    begins: dict[tuple[str, str], list[tuple[int, str]]] = {("hdf5", ""): [(0, HDF5_FILE)]}
    readers: dict[tuple[str, str], _Reader] = {}
    for config, split in parts_of(manifest):
        shards = rows_of(manifest, config, split)
        starts = np.cumsum([0, *shards.values()]).tolist()
        begins[config, split] = list(zip(starts, shards, strict=False))
        readers[config, split] = _Reader(folder, shards, size)
    done = dict.fromkeys(SPLITS, 0)
    for start in range(0, len(order), size):
        codes = order[start : start + size]
        sorted_rows = np.argsort(codes, kind="stable")  # as they come from the files, one split after the other
        tables: dict[str, list[pa.Table]] = {"spectra": [], "counts": []}
        position = np.empty(len(codes), dtype=np.int64)
        for code in np.unique(codes):
            split, number = SPLITS[code], int(np.count_nonzero(codes == code))
            for config, found in tables.items():
                found.append(readers[config, split].take(number))
            position[codes == code] = np.arange(done[split], done[split] + number)
            done[split] += number
        place = pa.array(np.argsort(sorted_rows))
        spectra, counts = (pa.concat_tables(found).take(place) for found in tables.values())
        yield Rows(start, spectra, counts, [SPLITS[code] for code in codes], position, begins)


def order_of(folder: Path, manifest: dict[str, Any]) -> NDArray[np.int64]:
    """For each row, in the catalog's order, the number of the split in whose files it stands: by its object_id."""
    ids, codes = [], []
    for code, split in enumerate(SPLITS):
        for path in rows_of(manifest, "spectra", split):
            column = pq.read_table(folder / path, columns=["object_id"])["object_id"].fill_null(0)
            ids.append(column.to_numpy())
            codes.append(np.full(len(column), code))
    order: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *codes])
    return order[np.argsort(np.concatenate([np.empty(0, np.int64), *ids]), kind="stable")] if len(codes) > 1 else order
