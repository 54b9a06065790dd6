"""Rows of config ``sources``: the detections of each master source summed, as far as they are alike."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.model.column import Column
from builder.model.columns import SOURCES
from builder.model.records import N_CHANNELS

Tables = Callable[[], Iterator[pa.Table]]
"""Reads the detections in the catalog's order, each time from the first: flat tables with the columns of ``counts``."""

_AT_ONCE = 2000
"""Sources whose sums are in memory, 60 kB each with their rows; all detections are read once for so many sources."""

_NO_GRATING = "NONE"
_TYPES = {column.name: column.public_type for column in SOURCES}
_MASTER = tuple(
    column.name for column in SOURCES if column.query.startswith("m.") or column.name in ("healpix", "split")
)
_MEASURED = (
    "detection_id",
    "gti_mjd_obs",
    "grating",
    "exposure",
    "background_scale",
    "source_counts",
    "background_counts_total",
    "rmf_sha256",
    "ebounds_id",
)
_ENERGIES = ("arf.energy_lo", "arf.energy_hi")
_COUNTS = ("counts", "background_counts")


def sum_sources(detections: Tables, own: tuple[Column, ...] = (), at_once: int = _AT_ONCE) -> Iterator[pa.Table]:
    """Sum the detections of each source, see docs/recipe.md.

    No more than the scalars of all detections, and the sums of some sources, are in memory.

    Parameters
    ----------
    detections : callable
        Gives an iterator over the same tables each time.
    own : tuple of Column
        Columns besides those of every dataset; the ones of a source are kept.
    at_once : int
        Sources whose sums are made in one reading.

    Yields
    ------
    pyarrow.Table
        Columns of `builder.model.columns.SOURCES` and own ones, flat; sources in the order of their first detections.
    """
    master = (*_MASTER, *(column.name for column in own if "sources" in column.configs))
    scalars, grids = _read_scalars(detections(), master)
    found = _grouped(scalars, grids)
    for start in range(0, len(found), at_once):
        some = found[start : start + at_once]
        yield pa.table(_scalars_of(scalars, some, master) | _sums(detections(), scalars, some))


def _read_scalars(tables: Iterator[pa.Table], master: tuple[str, ...]) -> tuple[pa.Table, list[bytes]]:
    """Read the scalars of all detections, and what their areas' energies come to."""
    known, grids = [], []
    for table in tables:
        known.append(table.select((*master, *_MEASURED)))
        edges = [table[name].combine_chunks() for name in _ENERGIES]
        grids += [
            hashlib.sha256(b"".join(each[row].values.to_numpy().tobytes() for each in edges)).digest()
            for row in range(len(table))
        ]
    empty = pa.table({name: pa.array([], pa.string()) for name in (*master, *_MEASURED)})
    return pa.concat_tables(known) if known else empty, grids


def _grouped(scalars: pa.Table, grids: list[bytes]) -> list[tuple[list[int], list[int]]]:
    """Divide the detections of each source into the ones to sum and the others, by their numbers.

    Alike are detections with the same grating and the same energies of channels and area. Of several such groups the
    one without a grating is summed, then that with the longest exposure, then the first.
    """
    sources: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = {}
    names = ("name", "detection_id", "grating", "ebounds_id")
    columns = (scalars[name].to_pylist() for name in names)
    for number, (name, detection, *alike) in enumerate(zip(*columns, grids, strict=True)):
        key = (name,) if name is not None else ("", detection)  # a detection without a name is a source of its own
        sources.setdefault(key, {}).setdefault(tuple(alike), []).append(number)
    exposure = scalars["exposure"].to_pylist()

    def merit(group: tuple[tuple[Any, ...], list[int]]) -> tuple[bool, float, int]:
        (grating, *_), numbers = group
        return grating == _NO_GRATING, math.fsum(exposure[number] for number in numbers), -numbers[0]

    found = []
    for groups in sources.values():
        _, summed = max(groups.items(), key=merit)
        others = sorted(number for numbers in groups.values() if numbers is not summed for number in numbers)
        found.append((summed, others))
    return found


def _scalars_of(
    scalars: pa.Table, sources: list[tuple[list[int], list[int]]], master: tuple[str, ...]
) -> dict[str, pa.Array]:
    """Return the scalars and lists of ids of sources."""
    first = scalars.take(pa.array([min(summed + others) for summed, others in sources]))
    made: dict[str, list[Any]] = {name: [] for name in _TYPES if name not in (*_MASTER, *_COUNTS) and "." not in name}
    columns = {name: scalars[name].to_numpy(zero_copy_only=False) for name in _MEASURED}
    for summed, others in sources:
        of = {name: values[summed].tolist() for name, values in columns.items()}
        times = [time for time in of["gti_mjd_obs"] if time is not None and time == time]
        made["detection_ids"].append(of["detection_id"])
        made["other_detection_ids"].append(columns["detection_id"][others].tolist())
        made["first_mjd_obs"].append(min(times, default=None))
        made["last_mjd_obs"].append(max(times, default=None))
        made["exposure"].append(math.fsum(of["exposure"]))
        made["background_scale"].append(_mean(of["background_scale"], of["background_counts_total"], of["exposure"]))
        for name in ("source_counts", "background_counts_total"):
            made[name].append(sum(of[name]))
        for name in ("grating", "ebounds_id"):
            made[name].append(of[name][0])
        longest = sorted(zip(of["exposure"], of["rmf_sha256"], strict=True), key=lambda pair: -pair[0])
        made["rmf_sha256"].append(next((key for _, key in longest if key is not None), None))
    of_source = {name: first[name].combine_chunks() for name in master}
    return of_source | {name: pa.array(values, _TYPES[name]) for name, values in made.items()}


def _mean(values: list[float], weights: list[float], otherwise: list[float]) -> float:
    """Average values by weights, or by others where these are all 0; that of equal values is their value."""
    weights = weights if any(weights) else otherwise
    parts = (weight * (value - values[0]) for value, weight in zip(values, weights, strict=True))
    return values[0] + math.fsum(parts) / math.fsum(weights)


def _sums(
    tables: Iterator[pa.Table], scalars: pa.Table, sources: list[tuple[list[int], list[int]]]
) -> dict[str, pa.Array]:
    """Read the detections and sum the lists of the sources."""
    place = np.full(len(scalars), -1)
    for index, (summed, _) in enumerate(sources):
        place[summed] = index
    exposure = scalars["exposure"].to_numpy()
    counts = {name: np.zeros((len(sources), N_CHANNELS), np.int32) for name in _COUNTS}
    areas: list[Any] = [0.0] * len(sources)
    grids: dict[bytes, NDArray[Any]] = {}
    lists: dict[str, list[Any]] = {name: [None] * len(sources) for name in _ENERGIES}
    start = 0
    for table in tables:
        wanted = np.flatnonzero(place[start : start + len(table)] >= 0)
        numbers, start = start + wanted, start + len(table)
        if not wanted.size:
            continue
        rows = table.select([*_COUNTS, *_ENERGIES, "arf.specresp"]).take(pa.array(wanted)).combine_chunks()
        for name, total in counts.items():
            np.add.at(total, place[numbers], _matrix(rows[name]))
        for row, number in enumerate(numbers):
            index = place[number]
            areas[index] = areas[index] + exposure[number] * rows["arf.specresp"][row].values.to_numpy().astype(float)
            for name in _ENERGIES:
                energy = rows[name][row].values.to_numpy()  # nearly all have the same, and a view keeps all rows
                lists[name][index] = grids.setdefault(energy.tobytes(), energy.copy())
    total_exposure = (math.fsum(exposure[summed]) for summed, _ in sources)
    lists["arf.specresp"] = [area / seconds for area, seconds in zip(areas, total_exposure, strict=True)]
    made = {name: pa.FixedSizeListArray.from_arrays(pa.array(c.ravel()), N_CHANNELS) for name, c in counts.items()}
    return made | {name: _ragged(values, _TYPES[name]) for name, values in lists.items()}


def _matrix(lists: pa.ChunkedArray) -> NDArray[np.int32]:
    values: NDArray[np.int32] = lists.combine_chunks().flatten().to_numpy().reshape(-1, N_CHANNELS)
    return values


def _ragged(values: list[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.concatenate(values).astype(kind.value_type.to_pandas_dtype())
    return pa.ListArray.from_arrays(offsets, pa.array(flat))
