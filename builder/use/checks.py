"""Rules for the rows of a prepared folder, checked a slice at a time.

Each function takes a `Check`, which collects failures, and the `Rows` of one slice. What the numbers of a row must be
is said in `builder.model.invariants`, as it is demanded of each row when it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.archive.products import KINDS, ProductName
from builder.dataset.binned import bin_channels
from builder.dataset.rows import examples, healpix
from builder.dataset.slices import Rows
from builder.model.column import ROW_CONFIGS, Column
from builder.model.columns import COLUMNS, compact_columns
from builder.model.errors import ProductError, SettingError
from builder.model.ids import DetectionId
from builder.model.invariants import (
    MAX_AREA,
    Fault,
    area_faults,
    bin_faults,
    channel_faults,
    count_faults,
    energy_faults,
    fraction_faults,
    scalar_faults,
)
from builder.model.records import N_CHANNELS, Response
from builder.model.settings import Recipe
from builder.model.splits import Splits

LIMIT = 20
"""Failures that a check lists; the rest are counted."""

Grids = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Low and high channel energies by ebounds_id, keV."""

_MAY_BE_NULL = {column.name for column in (*COLUMNS, *compact_columns(1)) if column.nullable}
_SCALARS = tuple(column.name for column in COLUMNS if column.configs == ROW_CONFIGS)
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
    unseen : str
        Reason why it could not be looked at, such as a full disk, or not to its end; that is no failure.
    """

    claim: str
    scope: str = ""
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    unseen: str = ""

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

    def fail_faults(
        self, rows: Rows, config: str, faults: Iterable[Fault], chosen: NDArray[np.intp] | None = None
    ) -> None:
        """Note the first value of every row that does not meet a demand; `chosen` are the rows that were looked at."""
        for fault in faults:
            row = np.arange(fault.bad.size) if fault.row is None else fault.row
            row = row if chosen is None else chosen[row]
            self.fail_values(rows, config, row, fault.bad, fault.text, *fault.values)


def _flat(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = pc.list_flatten(table[name]).to_numpy()
    return values


def _values(lists: pa.ChunkedArray) -> tuple[NDArray[np.intp], pa.ChunkedArray]:
    """Return the values of lists, or of lists of lists, and the row of each."""
    row, values = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    if pa.types.is_fixed_size_list(values.type):
        if values.null_count:  # a list that is null, whatever it would hold
            return row, values
        parents, values = _values(values)
        row = row[parents]
    return row, values


def _lengths(table: pa.Table, name: str) -> NDArray[np.int32]:
    lengths: NDArray[np.int32] = pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()
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
    may_be_null = _MAY_BE_NULL | {column.name for column in rows.own}
    for config, table in rows.tables.items():
        for name in table.column_names:
            if name not in may_be_null and table[name].null_count:
                check.fail_rows(rows, config, pc.is_null(table[name]).to_numpy(), f"{name} is null")
            if pa.types.is_floating(table[name].type):
                unknown = pc.fill_null(pc.invert(pc.is_finite(table[name])), False).to_numpy()
                check.fail_rows(rows, config, unknown, f"{name} is {{}}: what is not known is null", table[name])
            if pa.types.is_list(table[name].type) or pa.types.is_fixed_size_list(table[name].type):
                parents, values = _values(table[name])
                if values.null_count:
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
            if found[index] is None:  # an RMF that was not read
                continue
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
        wrong = ~pc.fill_null(pc.match_substring_regex(digests, "^[0-9a-f]{64}$"), True).to_numpy()
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
    scalars = (*_SCALARS, *(column.name for column in rows.own))
    for config, others in rows.tables.items():
        for name in scalars if config != "spectra" else ():
            one, other = others[name], table[name]
            check.fail_rows(rows, config, _differ(one, other), f"{name} is {{}}, in config spectra {{}}", one, other)
    return int(numbers[-1])


def check_rmfs(check: Check, rows: Rows, shared: bool) -> None:
    """Check that each row's channel energies are from its own RMF or, where one is `shared`, from its observation's."""
    table = rows.spectra
    names = ("detection_id", "ebounds_from", "rmf_file", "rmf_sha256")
    for index, (own, source, *rmf) in enumerate(zip(*(table[name].to_pylist() for name in names), strict=True)):
        place = rows.place("spectra", index)
        if source != own and (not shared or _observation(source) != _observation(own)):
            check.fail(*place, f"ebounds_from {source} is not of the row's observation, or not its own RMF")
        for name, value in zip(names[2:], rmf, strict=True):
            if (value is None) == (source == own):
                check.fail(*place, f"{name} is {value}, though ebounds_from is {source}")


def _observation(name: str) -> str:
    try:
        return DetectionId.parse(name).observation
    except SettingError as error:
        return str(error)


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
        for fault in energy_faults("ebounds", low, high):
            check.fail(file, f"{key} (row {index})", fault.words(int(fault.bad.argmax())))
        grids[key] = (low, high)
    return grids


def check_responses(check: Check, rows: pa.RecordBatch, file: str, used: dict[str, str], found: set[str]) -> None:
    """Check that every response agrees with itself or says why it is null, and has its rows' grid; add its key."""
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        key = name in ("rmf_sha256", "ebounds_id")
        if (key and column.null_count) or (pa.types.is_list(column.type) and column.flatten().null_count):
            check.fail(file, f"{name} holds a null")
            return
    for row in examples(pa.Table.from_batches([rows])):
        key, grid = row["rmf_sha256"], row["ebounds_id"]
        if key in found:
            check.fail(file, key, "is there twice")
        if grid != used.get(key, grid):
            check.fail(file, key, f"ebounds_id is {grid}, that of its rows is {used[key]}")
        found.add(key)
        values = {name: row[name] for name in Response.__slots__}
        nulls = [name for name, value in values.items() if value is None]
        if row["fault"] is not None:
            if len(nulls) < len(values):
                check.fail(file, key, "is not null, though it has a fault")
        elif nulls:
            check.fail(file, key, f"{nulls[0]} is null, without a fault")
        else:
            try:
                Response(**values)
            except (ProductError, ValueError) as error:
                check.fail(file, key, str(error))


def check_channels(check: Check, rows: Rows, grids: Grids) -> None:
    """Check that scalars, counts and the effective area are what they must be, and that the grid is known."""
    scalars = (rows.spectra[name].to_numpy() for name in ("exposure", "background_scale"))
    check.fail_faults(rows, "spectra", scalar_faults(*scalars))
    table = rows.counts
    for name in ("counts", "background_counts"):
        check.fail_faults(rows, "counts", count_faults(name, _matrix(table, name).min(axis=1)))
    keys = table["ebounds_id"].to_pylist()
    unknown = np.array([key not in grids for key in keys])
    check.fail_rows(rows, "counts", unknown, "ebounds_id {} is not in config ebounds", keys)
    lengths = [_lengths(table, f"arf.{name}") for name in ("energy_lo", "energy_hi", "specresp")]
    fractions = pc.list_value_length(table["arf.psf_frac"]).fill_null(-1).to_numpy()
    uneven = (lengths[0] != lengths[1]) | (lengths[0] != lengths[2]) | (lengths[0] < 1)
    uneven |= (fractions >= 0) & (fractions != lengths[0])
    text = "arf.energy_lo, energy_hi, specresp and psf_frac have {}, {}, {} and {} values"
    check.fail_rows(rows, "counts", uneven, text, *lengths, fractions)
    chosen = np.flatnonzero(~uneven)
    table = table.take(pa.array(chosen))
    low, high, area = (_flat(table, f"arf.{name}") for name in ("energy_lo", "energy_hi", "specresp"))
    row = np.repeat(np.arange(chosen.size), lengths[0][chosen])
    check.fail_faults(rows, "counts", area_faults(low, high, area, row), chosen)
    there = fractions[chosen][row] >= 0
    fraction = _flat(table, "arf.psf_frac")
    check.fail_faults(rows, "counts", fraction_faults(low[there], fraction, row[there]), chosen)


def check_binned(check: Check, rows: Rows, recipe: Recipe, bins: int, grids: Grids) -> None:
    """Check that the bins hold what their channels add up to, and that there is a response or the reason for none.

    The channels are those of config ``counts``, of which `check_channels` found nothing.
    """
    if (table := rows.binned) is None:
        return
    for name, expected in bin_channels(rows.counts, grids, recipe, bins).items():
        found, wanted = _flat(table, name), expected.flatten().to_numpy()
        size = wanted.size // len(rows)
        number = np.arange(wanted.size)
        text = f"{name}[{{}}] is {{}}, the channels give {{}}"
        check.fail_values(rows, "binned", number // size, found != wanted, text, number % size, found, wanted)
    missing = pc.is_null(table["response"]).to_numpy()
    reasons = table["response_fault"]
    check.fail_rows(rows, "binned", missing & pc.is_null(reasons).to_numpy(), "response is null, without a fault")
    unasked = ~missing & pc.is_valid(reasons).to_numpy()
    check.fail_rows(rows, "binned", unasked, "response is not null, though it has a fault")
    row, values = _values(table["response"])
    response = values.to_numpy()
    bad = ~((response >= 0) & (response <= MAX_AREA))
    check.fail_values(rows, "binned", row, bad, f"response has {{}}, not 0 to {MAX_AREA:g} cm2", response)


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
    table, channels = (rows.take(pa.array(chosen)) for rows in (rows.spectra, rows.counts))
    centre, low, high, flux, error = (_flat(table, name) for name in _BINS)
    row = np.repeat(np.arange(chosen.size), table["n_bins"].to_numpy())
    check.fail_faults(rows, "spectra", bin_faults(centre, low, high, flux, error, row), chosen)
    counts = _matrix(channels, "counts"), _matrix(channels, "background_counts")
    totals = table["source_counts"].to_numpy(), table["background_counts_total"].to_numpy()
    check.fail_faults(rows, "spectra", channel_faults(recipe, grid, (low, high), row, counts, totals), chosen)


def hdf5_columns(check: Check, file: h5py.File, name: str, rows: int, own: tuple[Column, ...]) -> bool:
    """Check that the HDF5 file has every column with its unit, and as many rows; return whether it has."""
    before = check.failed
    columns = (*COLUMNS, *own)
    expected = {column.hdf5_name for column in columns} | {"ebounds"}
    for missing in sorted(expected - set(file)):
        check.fail(name, missing, "is missing")
    for unknown in sorted(set(file) - expected):
        check.fail(name, unknown, "is no column")
    for column in columns:
        if isinstance(dataset := file.get(column.hdf5_name), h5py.Dataset):
            if len(dataset) != rows:
                check.fail(name, column.hdf5_name, f"has {len(dataset)} rows, not {rows}")
            if (unit := dataset.attrs.get("unit", "")) != column.unit:
                check.fail(name, column.hdf5_name, f"its unit is {unit!r}, not {column.unit!r}")
    return check.failed == before


def check_hdf5(check: Check, rows: Rows, file: h5py.File) -> None:
    """Check that the HDF5 file holds the numbers and words of Parquet; doubles where Parquet has them rounded."""
    for column in (*COLUMNS, *rows.own):
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
            found, expected = dataset[where], array.cast(pa.int64()).fill_null(column.stand_in).to_numpy()
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
