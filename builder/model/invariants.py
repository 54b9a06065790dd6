"""What the numbers of a row must be, said once: for the record that the reduction makes, and for `verify`, which reads.

Each function looks at any number of rows together, their lists laid end to end, and gives one `Fault` for each demand
that is not met. Energies, rates and areas are judged in single precision, as Parquet holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from builder.model.errors import ProductError

if TYPE_CHECKING:
    from builder.model.settings import Recipe

Floats = NDArray[Any]
Row = NDArray[np.intp] | None

EXPOSURES = (1e-3, 1e9)
"""Seconds: from below any frame of ACIS (a row in continuous clocking lasts 2.85 ms) to longer than the mission."""

SCALES = (1e-12, 1e12)
"""Of the background: the regions' areas and exposures may differ by no more than any two on one detector could."""

MAX_ENERGY = 100.0
"""keV; Chandra's mirrors reflect up to 10."""

MAX_AREA = 1e4
"""cm2; Chandra's mirrors have 1145 (Chandra Proposers' Observatory Guide, chapter 4)."""

MAX_FRACTION = 100.0
"""Of the point-spread function; the catalog's exceed 1 by some ten per cent."""

_SEAM = 0.01
"""Of a bin's width, by which the next may begin before or after its end: edges are rounded to single precision."""

_EDGE = 1e-6
"""keV within which an edge of the kept range counts as the edge of a channel: Sherpa compares with a tolerance."""

_HALF_ROUNDING = 1e-6
"""Relative; the centre and the edges of a bin are each rounded to float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """A demand that some values do not meet.

    Attributes
    ----------
    reason : str
        The key of `builder.model.records.REASONS` for which a detection with such a value is rejected.
    bad : ndarray of bool, shape (n,)
        Which of the values.
    text : str
        What is wrong, to be formatted with the value of each of `values` at a bad place.
    row : ndarray of int, shape (n,), optional
        The row of each value, where they are not one a row.
    """

    reason: str
    bad: NDArray[np.bool_]
    text: str
    values: tuple[Any, ...]
    row: Row = None

    def words(self, index: int) -> str:
        """Say what is wrong with one of the values."""
        return self.text.format(*(values[index] for values in self.values))


def demand(faults: Iterable[Fault], where: str) -> None:
    """Raise ProductError, which names the file or detection `where`, for the first of the faults."""
    for fault in faults:
        raise ProductError(fault.reason, f"{where}: {fault.words(int(fault.bad.argmax()))}")


def _found(reason: str, bad: NDArray[np.bool_], text: str, *values: Any, row: Row = None) -> Iterator[Fault]:
    if bad.any():
        yield Fault(reason, bad, text, values, row)


def scalar_faults(exposure: Floats, background_scale: Floats) -> Iterator[Fault]:
    """Demand that the exposure and the background scale are such as a person could mean; one value a row."""
    for name, values, (least, most) in (
        ("exposure", exposure, EXPOSURES),
        ("background_scale", background_scale, SCALES),
    ):
        bad = ~((values >= least) & (values <= most))  # so that what is no number is bad
        yield from _found("out_of_range", bad, f"{name} is {{}}, not a number of {least:g} to {most:g}", values)


def count_faults(name: str, lowest: NDArray[Any]) -> Iterator[Fault]:
    """Demand that no channel has fewer counts than none, given the lowest number of each row."""
    yield from _found("out_of_range", lowest < 0, f"{name} has {{}}", lowest)


def energy_faults(name: str, low: Floats, high: Floats, row: Row = None) -> Iterator[Fault]:
    """Demand that bins of energy are finite, have a width, and follow each other without gap or overlap.

    Parameters
    ----------
    name : str
        What the bins are of, for the words.
    low, high : ndarray, shape (n,)
        keV.
    row : ndarray of int, shape (n,), optional
        The row of each bin; all are of one row where it is not given.
    """
    low, high = low.astype(np.float32, copy=False), high.astype(np.float32, copy=False)
    width = high - low
    bad = ~((low >= 0) & (width > 0) & (high <= MAX_ENERGY))  # as above
    yield from _found("bad_energies", bad, f"{name} has a bin {{}}-{{}} keV", low, high, row=row)
    apart = np.zeros(low.size, dtype=bool)
    apart[1:] = np.abs(low[1:] - high[:-1]) > _SEAM * np.minimum(width[1:], width[:-1])
    if row is not None:
        apart[1:] &= row[1:] == row[:-1]
    text = f"{name} has a bin that begins at {{}} keV, though the one before ends at {{}} keV"
    yield from _found("bad_energies", apart, text, low, np.roll(high, 1), row=row)


def area_faults(low: Floats, high: Floats, area: Floats, row: Row = None) -> Iterator[Fault]:
    """Demand well-formed energies, and areas that are finite, not negative and not larger than the mirrors."""
    yield from energy_faults("arf", low, high, row)
    yield from _found("not_finite", ~np.isfinite(area), "arf.specresp is {} cm2 at {} keV", area, low, row=row)
    bad = (area < 0) | (area > MAX_AREA)
    yield from _found("out_of_range", bad, "arf.specresp is {} cm2 at {} keV", area, low, row=row)


def fraction_faults(low: Floats, fraction: Floats, row: Row = None) -> Iterator[Fault]:
    """Demand fractions of the point-spread function that are finite and from 0 up; they can exceed 1."""
    bad = ~((fraction >= 0) & (fraction <= MAX_FRACTION))  # as above
    yield from _found("out_of_range", bad, "arf.psf_frac is {} at {} keV", fraction, low, row=row)


def response_faults(
    low: Floats,
    high: Floats,
    first_channel: int,
    f_chan: NDArray[np.integer[Any]],
    n_chan: NDArray[np.integer[Any]],
    matrix: Floats,
    n_channels: int,
) -> Iterator[Fault]:
    """Demand well-formed energies, groups within the channels, and elements that are probabilities."""
    yield from energy_faults("energy", low, high)
    if first_channel not in (0, 1):  # TLMIN of F_CHAN
        yield Fault("out_of_range", np.array([True]), "the first channel is {}, not 0 or 1", ([first_channel],))
    begin = f_chan.astype(np.int64) - first_channel
    outside = (begin < 0) | (begin + n_chan > n_channels)
    text = f"a group of {{}} channels from {{}} lies outside the {n_channels} channels"
    yield from _found("out_of_range", outside, text, n_chan, f_chan)
    bad = ~((matrix >= 0) & (matrix <= 1))
    yield from _found("out_of_range", bad, "matrix has {}, which is no probability", matrix)


def bin_faults(
    centre: Floats, low: Floats, high: Floats, rate: Floats, error: Floats, row: Row = None
) -> Iterator[Fault]:
    """Demand that bins follow each other, have their centre in the middle, and finite rates with errors."""
    centre, low, high, rate, error = (
        values.astype(np.float32, copy=False) for values in (centre, low, high, rate, error)
    )
    yield from energy_faults("spectrum", low, high, row)
    middle = (low.astype(np.float64) + high) / 2
    off = ~(np.abs(centre - middle) <= _HALF_ROUNDING * middle)
    yield from _found("bad_energies", off, "spectrum: the centre {} of the bin {}-{} keV", centre, low, high, row=row)
    for name, values in (("flux", rate), ("flux_error", error)):
        bad = ~np.isfinite(values)
        yield from _found("not_finite", bad, f"spectrum.{name} is {{}} at {{}} keV", values, centre, row=row)
    yield from _found("out_of_range", error <= 0, "spectrum.flux_error is {} at {} keV", error, centre, row=row)


def channel_faults(
    recipe: Recipe,
    grid: tuple[Floats, Floats],
    bins: tuple[Floats, Floats],
    row: NDArray[np.intp],
    counts: tuple[NDArray[Any], NDArray[Any]],
    totals: tuple[NDArray[Any], NDArray[Any]],
) -> Iterator[Fault]:
    """Demand that the bins are the kept channels, with the least counts in each but the last, and the totals of those.

    Parameters
    ----------
    grid : pair of ndarray, shape (1024,)
        Low and high energies of the channels of all these rows, keV.
    bins : pair of ndarray, shape (n,)
        Low and high edges of the bins, keV.
    row : ndarray of int, shape (n,)
        The row of each bin, each row in its turn.
    counts : pair of ndarray of int, shape (rows, 1024)
        In each channel, of the source and of the background region.
    totals : pair of ndarray of int, shape (rows,)
        The same within the kept range.
    """
    low, high = (edges.astype(np.float32, copy=False) for edges in bins)
    grid_lo, grid_hi = (edges.astype(np.float32, copy=False) for edges in grid)
    top = grid_lo.size - 1
    first, last = (np.minimum(edges.searchsorted(values), top) for edges, values in ((grid_lo, low), (grid_hi, high)))
    begins = np.flatnonzero(np.diff(row, prepend=-1))
    ends = np.append(begins[1:], row.size) - 1

    part = (grid_lo[first] != low) | (grid_hi[last] != high) | (first > last)
    text = "the bin {}-{} keV does not reach from the edge of a channel to that of another"
    yield from _found("bad_energies", part, text, low, high, row=row)
    gap = first != np.roll(last, 1) + 1
    gap[begins] = False
    text = "the bin {}-{} keV does not begin where the one before ends, {} keV"
    yield from _found("bad_energies", gap, text, low, high, np.roll(high, 1), row=row)

    begin, end = first[begins], last[ends]
    wrong = (grid[0][begin] < recipe.energy_min - _EDGE) | (grid[1][end] > recipe.energy_max + _EDGE)
    wrong |= (begin > 0) & (grid[0][begin - 1] > recipe.energy_min + _EDGE)
    wrong |= (end < top) & (grid[1][np.minimum(end + 1, top)] < recipe.energy_max - _EDGE)
    text = f"the bins cover {{}}-{{}} keV of the {recipe.energy_min:g}-{recipe.energy_max:g} keV that are kept"
    yield from _found("bad_energies", wrong, text, grid_lo[begin], grid_hi[end])

    each = np.arange(begins.size)
    sums = [np.cumsum(values, axis=1, dtype=np.int64) for values in counts]
    for name, values, total, summed in zip(
        ("source_counts", "background_counts_total"), counts, totals, sums, strict=True
    ):
        found = summed[each, end] - summed[each, begin] + values[each, begin]
        text = f"{name} is {{}}, the kept channels have {{}}"
        yield from _found("out_of_range", total != found, text, total, found)
    if recipe.group:
        grouped = sums[0][row, last] - sums[0][row, first] + counts[0][row, first]
        few = grouped < recipe.min_counts
        few[ends] = False
        text = f"the bin {{}}-{{}} keV has {{}} counts, not {recipe.min_counts} or more"
        yield from _found("out_of_range", few, text, low, high, grouped, row=row)
    else:
        yield from _found(
            "bad_energies", first != last, "the bin {}-{} keV is more than one channel", low, high, row=row
        )
