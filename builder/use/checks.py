"""Rules for the rows of a prepared folder, checked a slice at a time.

Each function takes a `Check`, which collects failures, and the `Rows` of one slice. The statements on bins are those
that hold for every recipe: Sherpa's bins cover the kept channels without a gap, from the edge of a channel to the
edge of a channel, and only the last may have fewer counts than were asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.archive.products import KINDS, ProductName
from builder.dataset.rows import examples, healpix
from builder.dataset.slices import Rows
from builder.model.columns import COLUMNS, Column
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.records import N_CHANNELS, Response
from builder.model.settings import Recipe
from builder.model.splits import Splits

LIMIT = 20
"""Failures that a check lists; the rest are counted."""

Grids = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Low and high channel energies by ebounds_id, keV."""

_EDGE = 1e-6
"""keV within which an edge of the kept range counts as the edge of a channel: Sherpa compares with a tolerance."""

_HALF_ROUNDING = 1e-6
"""Relative; the centre and the edges of a bin are each rounded to float32."""

_MAY_BE_NULL = {column.name for column in COLUMNS if column.nullable}
_SCALARS = tuple(column.name for column in COLUMNS if column.configs == ("spectra", "counts"))
_BINS = tuple(column.name for column in COLUMNS if column.name.startswith("spectrum."))


@dataclass(slots=True)
class Check:
    """One claim, and what contradicts it.

    Attributes
    ----------
    scope : str
        What was looked at; empty where nothing was.
    failures : list of str
        The first `LIMIT` of them, each ``file: row: value``.
    failed : int
        The number of all.
    """

    claim: str
    scope: str = ""
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    def fail(self, *words: str) -> None:
        """Note one failure: the file, the row where there is one, and what is wrong."""
        self.failed += 1
        if len(self.failures) < LIMIT:
            self.failures.append(": ".join(" ".join(word.split()) for word in words if word))

    def fail_rows(self, rows: Rows, config: str, bad: NDArray[np.bool_], text: str, *values: Any) -> None:
        """Note every row of `bad`; `text` is formatted with the row's element of each of `values`."""
        found = np.flatnonzero(bad)
        for index in found[:LIMIT]:
            self.fail(*rows.place(config, int(index)), text.format(*(value[index] for value in values)))
        self.failed += max(0, found.size - LIMIT)

    def fail_values(
        self, rows: Rows, config: str, row: NDArray[np.intp], bad: NDArray[np.bool_], text: str, *values: Any
    ) -> None:
        """Note the first bad value of every row; `row` is the row of each value."""
        found = np.flatnonzero(bad)
        of, first = np.unique(row[found], return_index=True)
        for index, value in zip(of[:LIMIT], found[first], strict=False):
            self.fail(*rows.place(config, int(index)), text.format(*(array[value] for array in values)))
        self.failed += max(0, of.size - LIMIT)


def _flat(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = pc.list_flatten(table[name]).to_numpy()
    return values


def _lengths(table: pa.Table, name: str) -> NDArray[np.int32]:
    lengths: NDArray[np.int32] = pc.list_value_length(table[name]).to_numpy()
    return lengths


def _matrix(table: pa.Table, name: str) -> NDArray[np.int64]:
    return _flat(table, name).astype(np.int64).reshape(len(table), N_CHANNELS)


def _differ(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    same = pc.or_kleene(pc.equal(one, other), pc.and_(pc.is_null(one), pc.is_null(other)))
    differ: NDArray[np.bool_] = ~pc.fill_null(same, False).to_numpy()
    return differ


def check_nulls(check: Check, rows: Rows) -> bool:
    """Check that only values of the catalog are null; return whether that holds: else the rest means nothing."""
    before = check.failed
    for config, table in (("spectra", rows.spectra), ("counts", rows.counts)):
        for name in table.column_names:
            if name not in _MAY_BE_NULL and table[name].null_count:
                check.fail_rows(rows, config, pc.is_null(table[name]).to_numpy(), f"{name} is null")
            if pa.types.is_list(table[name].type) or pa.types.is_fixed_size_list(table[name].type):
                values = pc.list_flatten(table[name])
                if values.null_count:
                    parents = pc.list_parent_indices(table[name]).to_numpy()
                    check.fail_values(rows, config, parents, pc.is_null(values).to_numpy(), f"{name} holds a null")
    return check.failed == before


def check_ids(check: Check, rows: Rows, previous: int, rejected: set[str], splits: Splits) -> int:
    """Check that ids agree with each other, rise from row to row, name the files, and stand in both configs alike.

    Parameters
    ----------
    previous : int
        object_id of the row before the slice.
    rejected : set of str
        Detections that must not be rows.

    Returns
    -------
    int
        object_id of the last row.
    """
    table = rows.spectra
    numbers = table["object_id"].to_numpy()
    names = table["detection_id"].to_pylist()
    columns = [table[name].to_pylist() for name in ("obsid", "obi", "region_id", "cycle")]
    files = {kind: table[f"{kind}_file"].to_pylist() for kind in KINDS}
    for index, values in enumerate(zip(*columns, strict=True)):
        place = rows.place("spectra", index)
        try:
            detection = DetectionId(*values)
        except SettingError as error:
            check.fail(*place, str(error))
            continue
        if (names[index], numbers[index]) != (str(detection), detection.object_id):
            check.fail(
                *place,
                f"detection_id {names[index]} and object_id {numbers[index]} must be {detection} and "
                f"{detection.object_id}",
            )
        for kind, found in files.items():
            product = ProductName.parse(found[index])
            owners = (detection,) if kind == "pha" else (detection, detection.catalog)  # cycles may share a response
            if product is None or product.kind != kind or product.detection not in owners:
                check.fail(*place, f"{kind}_file {found[index]} is not the {kind} file of {detection}")
        if names[index] in rejected:
            check.fail(*place, "is in rejections.parquet, too")
    before = np.concatenate([[previous], numbers[:-1]])
    check.fail_rows(rows, "spectra", numbers <= before, "object_id {} does not come after {}", numbers, before)
    for kind in KINDS:
        digests = table[f"{kind}_sha256"]
        wrong = ~pc.match_substring_regex(digests, "^[0-9a-f]{64}$").to_numpy()
        check.fail_rows(rows, "spectra", wrong, f"{kind}_sha256 {{}} is no SHA-256", digests)
    cells = healpix(table["ra"], table["dec"])
    wrong = _differ(table["healpix"], pa.chunked_array([cells]))
    check.fail_rows(rows, "spectra", wrong, "healpix is {}, its place on the sky is in {}", table["healpix"], cells)
    proposed = pa.array(map(splits.of, cells.to_pylist()), pa.string())
    wrong = _differ(table["split"], pa.chunked_array([proposed]))
    check.fail_rows(rows, "spectra", wrong, "split is {}, its cell is in {}", table["split"], proposed)
    if splits.divided:
        wrong = _differ(table["split"], pa.chunked_array([pa.array(rows.split, pa.string())]))
        check.fail_rows(rows, "spectra", wrong, "split is {}, its file is of another", table["split"])
    for name in _SCALARS:
        one, other = rows.counts[name], table[name]
        check.fail_rows(rows, "counts", _differ(one, other), f"{name} is {{}}, in config spectra {{}}", one, other)
    return int(numbers[-1])


def check_grids(check: Check, table: pa.Table, file: str) -> Grids:
    """Check that every channel energy grid has the id of its numbers, once, and rises; return the grids."""
    grids: Grids = {}
    for index in range(len(table)):
        key = table["ebounds_id"][index].as_py()
        low, high = (table[name][index].values.to_numpy() for name in ("energy_lo", "energy_hi"))
        digest = hashlib.sha256(low.astype("<f8").tobytes() + high.astype("<f8").tobytes()).hexdigest()[:16]
        if key != digest:
            check.fail(file, f"{key} (row {index})", f"the energies have the ebounds_id {digest}")
        if key in grids:
            check.fail(file, f"{key} (row {index})", "is there twice")
        if not (np.all(low < high) and np.all(np.diff(low) > 0)):
            check.fail(file, f"{key} (row {index})", "the energies do not rise")
        grids[key] = (low, high)
    return grids


def check_responses(check: Check, rows: pa.RecordBatch, file: str, used: dict[str, str], found: set[str]) -> None:
    """Check that every response agrees with itself and has the grid of its rows; add its key to `found`."""
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if column.null_count or (pa.types.is_list(column.type) and column.flatten().null_count):
            check.fail(file, f"{name} holds a null")
            return
    for row in examples(pa.Table.from_batches([rows])):
        key, grid = row["rmf_sha256"], row["ebounds_id"]
        if key in found:
            check.fail(file, key, "is there twice")
        if grid != used.get(key, grid):
            check.fail(file, key, f"ebounds_id is {grid}, that of its rows is {used[key]}")
        found.add(key)
        try:
            Response(**{name: row[name] for name in Response.__slots__})
        except (ValueError, TypeError) as error:
            check.fail(file, key, str(error))


def check_channels(check: Check, rows: Rows, grids: Grids) -> None:
    """Check that scales are positive, counts not negative, the effective area well-formed, and the grid known."""
    for name in ("exposure", "background_scale"):
        values = rows.spectra[name].to_numpy()
        wrong = ~((values > 0) & np.isfinite(values))
        check.fail_rows(rows, "spectra", wrong, f"{name} is {{}}, not a positive number", values)
    table = rows.counts
    for name in ("counts", "background_counts"):
        matrix = _matrix(table, name)
        lowest = matrix.min(axis=1)
        check.fail_rows(rows, "counts", lowest < 0, f"{name} has {{}}", lowest)
    keys = table["ebounds_id"].to_pylist()
    unknown = np.array([key not in grids for key in keys])
    check.fail_rows(rows, "counts", unknown, "ebounds_id {} is not in config ebounds", keys)
    lengths = [_lengths(table, f"arf.{name}") for name in ("energy_lo", "energy_hi", "specresp")]
    uneven = (lengths[0] != lengths[1]) | (lengths[0] != lengths[2]) | (lengths[0] < 1)
    check.fail_rows(rows, "counts", uneven, "arf.energy_lo, energy_hi and specresp have {}, {} and {} values", *lengths)
    chosen = np.flatnonzero(~uneven)
    table = table.take(pa.array(chosen))
    low, high, area = (_flat(table, f"arf.{name}") for name in ("energy_lo", "energy_hi", "specresp"))
    row = np.repeat(chosen, lengths[0][chosen])
    wrong = ~(np.isfinite(low) & np.isfinite(high) & (low < high))
    check.fail_values(rows, "counts", row, wrong, "arf has a bin {}-{} keV", low, high)
    falls = np.concatenate([[False], (np.diff(low) <= 0) & (np.diff(row) == 0)])
    check.fail_values(rows, "counts", row, falls, "arf.energy_lo does not rise at {} keV", low)
    wrong = ~(np.isfinite(area) & (area >= 0))
    check.fail_values(rows, "counts", row, wrong, "arf.specresp is {} cm2 at {} keV", area, low)


def check_spectra(check: Check, rows: Rows, recipe: Recipe, grids: Grids) -> None:
    """Check that the bins cover the kept channels, are as long as n_bins, finite, and hold the counts that are said."""
    n_bins = rows.spectra["n_bins"].to_numpy()
    whole = np.ones(len(rows), dtype=bool)
    for name in _BINS:
        lengths = _lengths(rows.spectra, name)
        wrong = (lengths != n_bins) | (lengths < 1)
        check.fail_rows(rows, "spectra", wrong, f"{name} has {{}} values, n_bins is {{}}", lengths, n_bins)
        whole &= ~wrong
    keys = np.array(rows.counts["ebounds_id"].to_pylist(), dtype=object)
    for key, grid in grids.items():
        chosen = np.flatnonzero(whole & (keys == key))
        if chosen.size:
            _check_bins(check, rows, chosen, recipe, grid)


def _check_bins(
    check: Check,
    rows: Rows,
    chosen: NDArray[np.intp],
    recipe: Recipe,
    grid: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    table = rows.spectra.take(pa.array(chosen))
    centre, low, high, flux, error = (_flat(table, name) for name in _BINS)
    n_bins = table["n_bins"].to_numpy()
    ends = np.cumsum(n_bins)
    starts, place = ends - n_bins, np.repeat(np.arange(chosen.size), n_bins)
    row = chosen[place]

    def fail(bad: NDArray[np.bool_], text: str, *values: Any) -> None:
        check.fail_values(rows, "spectra", row, bad, text, *values)

    for name, values in zip(_BINS, (centre, low, high, flux, error), strict=True):
        fail(~np.isfinite(values), f"{name} is {{}}", values)
    fail(error <= 0, "spectrum.flux_error is {} at {} keV", error, centre)
    middle = (low.astype(np.float64) + high) / 2
    fail(
        ~np.isclose(centre, middle, rtol=_HALF_ROUNDING, atol=0),
        "the centre {} of the bin {}-{} keV",
        centre,
        low,
        high,
    )

    grid_lo, grid_hi = (edges.astype(np.float32) for edges in grid)
    first, last = (
        np.minimum(np.searchsorted(edges, values), N_CHANNELS - 1)
        for edges, values in ((grid_lo, low), (grid_hi, high))
    )
    whole = (grid_lo[first] == low) & (grid_hi[last] == high) & (first <= last)
    fail(~whole, "the bin {}-{} keV does not reach from the edge of a channel to that of another", low, high)
    gap = np.ones(row.size, dtype=bool)
    gap[1:] = first[1:] != last[:-1] + 1
    gap[starts] = False
    fail(gap, "the bin {}-{} keV does not begin where the one before ends, {} keV", low, high, np.roll(high, 1))

    def fail_row(bad: NDArray[np.bool_], text: str, *values: Any) -> None:
        every = np.zeros(len(rows), dtype=bool)
        every[chosen[bad]] = True
        spread = [dict(zip(chosen.tolist(), value, strict=True)) for value in values]
        check.fail_rows(rows, "spectra", every, text, *spread)

    begin, end = first[starts], last[ends - 1]
    low_wrong = grid[0][begin] < recipe.energy_min - _EDGE
    low_wrong |= (begin > 0) & (grid[0][begin - 1] > recipe.energy_min + _EDGE)
    high_wrong = grid[1][end] > recipe.energy_max + _EDGE
    high_wrong |= (end < N_CHANNELS - 1) & (grid[1][np.minimum(end + 1, N_CHANNELS - 1)] < recipe.energy_max - _EDGE)
    fail_row(
        low_wrong | high_wrong,
        f"the bins cover {{}}-{{}} keV of the {recipe.energy_min:g}-{recipe.energy_max:g} keV that are kept",
        grid_lo[begin],
        grid_hi[end],
    )

    channels = rows.counts.take(pa.array(chosen))
    for name, total in (("counts", "source_counts"), ("background_counts", "background_counts_total")):
        sums = np.pad(np.cumsum(_matrix(channels, name), axis=1), ((0, 0), (1, 0)))
        each = np.arange(chosen.size)
        said, found = table[total].to_numpy(), sums[each, end + 1] - sums[each, begin]
        fail_row(said != found, f"{total} is {{}}, the kept channels have {{}}", said, found)
        if name == "counts":
            grouped = sums[place, last + 1] - sums[place, first]
    if recipe.group:
        few = grouped < recipe.min_counts
        few[ends - 1] = False
        fail(few, f"the bin {{}}-{{}} keV has {{}} counts, not {recipe.min_counts} or more", low, high, grouped)
    else:
        fail(first != last, "the bin {}-{} keV is more than one channel", low, high)


def hdf5_columns(check: Check, file: h5py.File, name: str, rows: int) -> bool:
    """Check that the HDF5 file has every column with its unit, and as many rows; return whether it has."""
    before = check.failed
    expected = {column.hdf5_name for column in COLUMNS} | {"ebounds"}
    for missing in sorted(expected - set(file)):
        check.fail(name, missing, "is missing")
    for unknown in sorted(set(file) - expected):
        check.fail(name, unknown, "is no column")
    for column in COLUMNS:
        if isinstance(dataset := file.get(column.hdf5_name), h5py.Dataset):
            if len(dataset) != rows:
                check.fail(name, column.hdf5_name, f"has {len(dataset)} rows, not {rows}")
            if (unit := dataset.attrs.get("unit", "")) != column.unit:
                check.fail(name, column.hdf5_name, f"its unit is {unit!r}, not {column.unit!r}")
    return check.failed == before


def check_hdf5(check: Check, rows: Rows, file: h5py.File) -> None:
    """Check that the HDF5 file holds the numbers and words of Parquet; doubles where Parquet has them rounded."""
    for column in COLUMNS:
        table = rows.spectra if "spectra" in column.configs else rows.counts
        dataset = file[column.hdf5_name]
        where = slice(rows.start, rows.start + len(rows))
        if column.length is not None:
            _check_lists(check, rows, column, table, list(dataset[where]))
            continue
        array = table[column.name]
        if pa.types.is_string(array.type):
            found, expected = (
                np.array([repr(text) for text in texts], dtype=object)
                for texts in (dataset.asstr()[where], array.fill_null("").to_pylist())
            )
        elif pa.types.is_floating(array.type):
            expected = array.to_numpy()
            found = dataset[where].astype(expected.dtype)
        else:
            found, expected = dataset[where], array.cast(pa.int64()).fill_null(-1).to_numpy()
        wrong = (found != expected) & ~((found != found) & (expected != expected))
        check.fail_rows(rows, "hdf5", wrong, f"{column.hdf5_name} is {{}}, in Parquet {{}}", found, expected)


def _check_lists(check: Check, rows: Rows, column: Column, table: pa.Table, lists: list[NDArray[Any]]) -> None:
    found_lengths, lengths = np.array([len(values) for values in lists]), _lengths(table, column.name)
    wrong = found_lengths != lengths
    text = f"{column.hdf5_name} has {{}} values, in Parquet {{}}"
    check.fail_rows(rows, "hdf5", wrong, text, found_lengths, lengths)
    chosen = np.flatnonzero(~wrong)
    if not chosen.size:
        return
    expected = _flat(table.take(pa.array(chosen)), column.name)
    found = np.concatenate([lists[index] for index in chosen]).astype(expected.dtype)
    row = np.repeat(chosen, lengths[chosen])
    differ = (found != expected) & ~((found != found) & (expected != expected))
    number = np.arange(row.size) - np.repeat(np.cumsum(lengths[chosen]) - lengths[chosen], lengths[chosen])
    check.fail_values(
        rows, "hdf5", row, differ, f"{column.hdf5_name}[{{}}] is {{}}, in Parquet {{}}", number, found, expected
    )
