"""Rows a second into torch tensors, by each way to load a prepared folder, beside numpy memmap and HDF5.

All take shuffled batches of the same rows and give the same tensors, turn by turn in one process; the rates are of CPU.
Run it with ``python benchmarks/loader.py [FOLDER] [--detections 5000] [--rounds 5]``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import h5py
import numpy as np
import torch
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from builder import ArchiveServer, Selection, Settings, Splits, prepare
from builder.simulator.products import SimulatedArchive
from builder.use.batches import arrays
from chandra_spectra import Buckets, Calibration, Stream, collate

COLUMNS = {
    "spectra": ["theta", "hard_hs", "spectrum"],
    "counts": ["theta", "hard_hs", "counts", "background_counts", "arf"],
}
SIZE = 64
SLOW = 1000  # rows that the slow ways are timed with

Batches = Iterator[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a prepared folder with responses and bins, else one is made"
    )
    parser.add_argument("--detections", type=int, default=5000, help="rows to be made (default: 5000)")
    parser.add_argument("--responses", type=int, default=100, help="rows to be made with responses (default: 100)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        plain = full = options.folder
        if plain is None:
            plain = prepared(Path(place) / "plain" / "chandra_spectra", options.detections, False)
            full = prepared(Path(place) / "full" / "chandra_spectra", options.responses, True)
        loading(plain, Path(place), options.rounds)
        calibrating(plain, full, options.rounds)


def prepared(folder: Path, number: int, responses: bool) -> Path:
    with ArchiveServer(SimulatedArchive(number)) as server:
        settings = Settings(
            server.url,
            selection=Selection(0, 0, 60),
            splits=Splits(divided=False),
            responses=responses,
            bins=64 if responses else 0,
        )
        prepare(folder, settings, cache=folder.parent / "cache", workers=2)
    return folder


# -- the ways to load


class Memmap:
    """Columns of a config as flat arrays on disk, and the beginning of each row in those that are ragged."""

    def __init__(self, folder: Path, config: str, place: Path) -> None:
        self.fields: dict[str, np.ndarray[Any, Any]] = {}
        self.starts: np.ndarray[Any, Any] = np.zeros(1, np.int64)
        self.struct = ""
        for name, column in arrays(load_dataset(str(folder), config, split="train").with_format("arrow")[:]).items():
            if name in COLUMNS[config] and isinstance(column, dict):
                self.struct, mask = name, column.pop("mask")
                self.starts = np.append(0, np.cumsum(column.pop("lengths")))
                for field, values in column.items():
                    self._write(place / f"{config}-{field}.npy", field, values[mask])
            elif name in COLUMNS[config]:
                self._write(place / f"{config}-{name}.npy", name, column)

    def _write(self, path: Path, name: str, values: np.ndarray[Any, Any]) -> None:
        np.save(path, values)
        self.fields[name] = np.load(path, mmap_mode="r")

    def batches(self) -> Batches:
        for chosen in BatchSampler(RandomSampler(range(len(self.starts) - 1)), SIZE, False):
            begin, end = self.starts[chosen], self.starts[np.array(chosen) + 1]
            lengths = end - begin
            struct = {
                "lengths": torch.from_numpy(lengths),
                "mask": torch.from_numpy(np.arange(lengths.max()) < lengths[:, np.newaxis]),
            }
            batch: dict[str, Any] = {self.struct: struct}
            for name, values in self.fields.items():
                if len(values) == len(self.starts) - 1:
                    kind = np.float32 if values.dtype.kind == "f" else np.int64
                    batch[name] = torch.from_numpy(values[chosen].astype(kind, copy=False))
                    continue
                padded = np.zeros((len(chosen), lengths.max()), np.float32)
                for row, first, last in zip(padded, begin.tolist(), end.tolist(), strict=True):
                    row[: last - first] = values[first:last]
                struct[name] = torch.from_numpy(padded)
            yield batch


def hdf5(folder: Path, config: str) -> Batches:
    """Row by row, as a reader of the canonical file does who knows of nothing else."""
    names = {
        "spectra": ["ene", "ene_lo", "ene_hi", "flux", "flux_err"],
        "counts": ["energy_lo", "energy_hi", "specresp"],
    }
    prefix, plain = ("spectrum", []) if config == "spectra" else ("arf", ["counts", "background_counts"])
    with h5py.File(folder / "chandra_spectra.hdf5") as file:
        order = torch.randperm(len(file["theta"])).tolist()
        for chosen in cut(order):
            rows = [
                {name: file[name][number] for name in ("theta", "hard_hs", *plain)}
                | {prefix: {name: file[f"{prefix}_{name}"][number] for name in names[config]}}
                for number in chosen
            ]
            yield collate(rows)


def cut(order: list[int]) -> list[list[int]]:
    return [order[begin : begin + SIZE] for begin in range(0, len(order), SIZE)]


def ways(folder: Path, config: str, place: Path) -> dict[str, Callable[[], Iterable[dict[str, Any]]]]:
    data = load_dataset(str(folder), config, split="train")
    lengths = data["n_bins"]
    data = data.select_columns(COLUMNS[config])
    memmap = Memmap(folder, config, place)

    def old_stream() -> Iterable[dict[str, Any]]:
        stream = load_dataset(str(folder), config, split="train", streaming=True, columns=COLUMNS[config])
        stream = stream.shuffle(seed=0, buffer_size=1000, max_buffer_input_shards=1).with_format("torch")
        return DataLoader(stream, batch_size=SIZE, collate_fn=collate)

    def mapped(sampler: Any) -> Iterable[dict[str, Any]]:
        return DataLoader(data.with_format("arrow"), sampler=sampler, batch_size=None, collate_fn=collate)

    stream = Stream(folder, config, columns=COLUMNS[config], batch_size=SIZE, shuffle=True)
    return {
        "numpy memmap": memmap.batches,
        "HDF5, row by row": lambda: hdf5(folder, config),
        "rows of torch tensors": lambda: DataLoader(
            data.with_format("torch"), batch_size=SIZE, shuffle=True, collate_fn=collate
        ),
        "tables": lambda: mapped(BatchSampler(RandomSampler(data), SIZE, False)),
        "tables, by length": lambda: mapped(Buckets(lengths, SIZE)),
        "stream of rows of torch tensors": old_stream,
        "Stream": lambda: DataLoader(stream, batch_size=None, collate_fn=collate),
    }


def rate(batches: Iterable[dict[str, Any]], most: int) -> float:
    rows, begun = 0, time.process_time()
    for batch in batches:
        rows += len(batch["theta"])
        if rows >= most:
            break
    return rows / (time.process_time() - begun)


def loading(folder: Path, place: Path, rounds: int) -> None:
    table = Table(title="rows a second of CPU", title_justify="left")
    for name in ("", *COLUMNS, *(f"{config} / memmap" for config in COLUMNS)):
        table.add_column(name, justify="right" if name else "left")
    rates: dict[str, dict[str, list[float]]] = {}
    for config in COLUMNS:
        there = ways(folder, config, place)
        for _ in range(rounds):
            for name, way in there.items():
                slow = "rows" in name or "row by" in name
                rates.setdefault(name, {}).setdefault(config, []).append(rate(way(), SLOW if slow else 10**9))
    for name, found in rates.items():
        ratios = [median(np.divide(found[each], rates["numpy memmap"][each])) for each in COLUMNS]
        cells = [f"{median(found[config]):,.0f}" for config in COLUMNS] + [f"{ratio:.2f}" for ratio in ratios]
        table.add_row(name, *cells)
    Console(highlight=False, width=110).print(table)


# -- what is done with the counts


def calibrating(folder: Path, full: Path, rounds: int) -> None:
    calibration, folding = Calibration.load(str(folder)), Calibration.load(str(full))
    counts = load_dataset(str(folder), "counts", split="train")
    responding = load_dataset(str(full), "counts", split="train").with_format("arrow")
    edges = np.geomspace(0.5, 8, 33)

    def rebin(form: str | None, most: int) -> int:
        for begin in range(0, most, SIZE):
            calibration.rebin(counts.with_format(form)[begin : begin + SIZE], edges)
        return most

    def fold() -> int:
        for begin in range(0, len(responding), SIZE):
            folding.fold(lambda low, high: high - low, responding[begin : begin + SIZE])
        return len(responding)

    binned = load_dataset(str(full), "binned", split="train").with_format("arrow")

    def compact(most: int) -> int:
        for begin in range(0, most, SIZE):
            batch = collate(binned[begin : begin + SIZE])
            photons = batch["photon_energy_hi"] - batch["photon_energy_lo"]
            batch["exposure"][:, None] * torch.einsum("re,reb->rb", photons, batch["response"])
        return most

    folding.fold(lambda low, high: high - low, responding[:1])  # opens the file
    rows = min(len(counts), SLOW)
    table = Table(title="rows a second of CPU", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, way in (
        ("rebin, tables", lambda: rebin("arrow", rows)),
        ("rebin, plain batches", lambda: rebin(None, rows)),
        ("fold, each row with a response of its own", fold),
        ("the same with compact responses, loading included", lambda: compact(len(binned))),
    ):
        found = []
        for _ in range(rounds):
            begun = time.process_time()
            number = way()
            found.append(number / (time.process_time() - begun))
        table.add_row(name, f"{median(found):,.0f}")
    Console(highlight=False, width=110).print(table)


if __name__ == "__main__":
    main()
