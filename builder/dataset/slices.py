"""The rows of a prepared folder, read a slice at a time in the catalog's order, whatever their files and splits."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder.dataset.layout import HDF5_FILE, Manifest
from builder.model.column import ROW_CONFIGS, Column
from builder.model.splits import SPLITS

SLICE_ROWS = 500
"""Rows in hand at once, about 20 MB."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A slice of the rows of all configs that have them, and where they stand.

    Attributes
    ----------
    start : int
        Number of the first row in the whole dataset.
    spectra, counts : pyarrow.Table
        The same rows of either config, structs flattened to ``struct.field``.
    binned : pyarrow.Table, optional
        The same of config ``binned``, where the folder has it.
    split : list of str
        The split in whose files each row stands.
    position : ndarray of int64
        Number of each row in its split.
    files : dict of (str, str) to list of (int, str)
        For each config and split the first row and the name of every shard; for ``hdf5`` the one file.
    own : tuple of Column
        Columns besides those of every dataset.
    """

    start: int
    spectra: pa.Table
    counts: pa.Table
    binned: pa.Table | None
    split: list[str]
    position: NDArray[np.int64]
    files: dict[tuple[str, str], list[tuple[int, str]]]
    own: tuple[Column, ...] = ()

    def __len__(self) -> int:
        return len(self.spectra)

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The same rows of each config that the folder has."""
        found = {config: getattr(self, config) for config in ROW_CONFIGS}
        return {config: table for config, table in found.items() if table is not None}

    def place(self, config: str, index: int) -> tuple[str, str]:
        """Return the file that holds a row of the slice, and what the row is called."""
        whole = config == "hdf5"
        files = self.files[config, "" if whole else self.split[index]]
        number = self.start + index if whole else int(self.position[index])
        file = files[bisect.bisect_right(files, number, key=lambda item: item[0]) - 1][1]
        table = getattr(self, config, self.spectra)
        return file, f"{table['detection_id'][index].as_py()} (row {number})"


def flat_tables(paths: Iterable[Path], size: int = SLICE_ROWS) -> Iterator[pa.Table]:
    """Read shards, so many rows at a time, with structs flattened to ``struct.field``."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(size):
                yield pa.Table.from_batches([batch]).flatten()


class RowReader:
    """Reads the rows of one split of a config, so many at a time whatever the shards' bounds."""

    def __init__(self, folder: Path, shards: dict[str, int], size: int = SLICE_ROWS) -> None:
        self._tables = flat_tables((folder / path for path in shards), size)
        self._waiting: list[pa.Table] = []

    def take(self, number: int) -> pa.Table:
        """Return the next rows."""
        while sum(map(len, self._waiting)) < number:
            self._waiting.append(next(self._tables))
        table = pa.concat_tables(self._waiting)
        self._waiting = [table.slice(number)]
        return table.slice(0, number)


def slices(folder: Path, manifest: Manifest, order: NDArray[np.int64], size: int = SLICE_ROWS) -> Iterator[Rows]:
    """Return the rows of all configs that have them, `size` at a time, in the catalog's order.

    Parameters
    ----------
    order : ndarray of int64
        For each row the number of the split in whose files it stands.
    """
    begins: dict[tuple[str, str], list[tuple[int, str]]] = {("hdf5", ""): [(0, HDF5_FILE)]}
    readers: dict[tuple[str, str], RowReader] = {}
    for config, split in manifest.parts:
        shards = manifest.shards(config, split)
        starts = np.cumsum([0, *shards.values()]).tolist()
        begins[config, split] = list(zip(starts, shards, strict=False))
        readers[config, split] = RowReader(folder, shards, size)
    done = dict.fromkeys(SPLITS, 0)
    for start in range(0, len(order), size):
        codes = order[start : start + size]
        sorted_rows = np.argsort(codes, kind="stable")  # as they come from the files, one split after the other
        tables: dict[str, list[pa.Table]] = {config: [] for config in ROW_CONFIGS if (config, SPLITS[0]) in begins}
        position = np.empty(len(codes), dtype=np.int64)
        for code in np.unique(codes):
            split, number = SPLITS[code], int(np.count_nonzero(codes == code))
            for config, found in tables.items():
                found.append(readers[config, split].take(number))
            position[codes == code] = np.arange(done[split], done[split] + number)
            done[split] += number
        place = pa.array(np.argsort(sorted_rows))
        rows = {config: pa.concat_tables(found).take(place) for config, found in tables.items()}
        spectra, counts, binned = (rows.get(config) for config in ROW_CONFIGS)
        yield Rows(start, spectra, counts, binned, [SPLITS[code] for code in codes], position, begins, manifest.own)


def order_of(folder: Path, manifest: Manifest) -> NDArray[np.int64]:
    """Find the number of the split in whose files each row stands, in the catalog's order: by its object_id."""
    ids, codes = [], []
    for code, split in enumerate(SPLITS):
        for path in manifest.shards("spectra", split):
            column = pq.read_table(folder / path, columns=["object_id"])["object_id"].fill_null(0)
            ids.append(column.to_numpy())
            codes.append(np.full(len(column), code))
    order: NDArray[np.int64] = np.concatenate([np.empty(0, np.int64), *codes])
    return order[np.argsort(np.concatenate([np.empty(0, np.int64), *ids]), kind="stable")] if len(codes) > 1 else order
