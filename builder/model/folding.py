"""Arithmetic of the instrument: channels to bins, the effective area over a bin, and photons to counts.

Energies are in keV, areas in cm2. The response matrix is that of OGIP CAL/GEN/92-002: the probability that a photon of
an energy bin is counted in a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.model.records import N_CHANNELS
from builder.model.settings import Recipe

Floats = NDArray[np.float64]

PHOTON_ENERGIES = (0.3, 9.3)
"""keV; those of the catalog's ARF and RMF files (mkacisrmf's ``energy=0.3:9.3:0.01``)."""

_GRID_TOLERANCE = 1e-6
"""Relative; the energies of ARF and RMF files are single precision, so those of one grid differ by 1e-7 at most."""


def bin_edges(recipe: Recipe, bins: int) -> Floats:
    """Return the edges of config ``binned``, shape (bins + 1,): logarithmic over the kept range."""
    edges: Floats = np.geomspace(recipe.energy_min, recipe.energy_max, bins + 1)
    return edges


def photon_edges(bins: int) -> Floats:
    """Return the edges of the photon energies of compact responses, shape (2 bins + 1,): logarithmic."""
    edges: Floats = np.geomspace(*PHOTON_ENERGIES, 2 * bins + 1)
    return edges


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins of whole channels: a channel belongs to the bin that holds its centre.

    Attributes
    ----------
    begin : ndarray of int, shape (n + 1,)
        First channel of each bin, from 0, and the one after the last bin.
    low, high : ndarray of float64, shape (n,)
        Edges of the channels in it; equal where there are none.
    """

    begin: NDArray[np.intp]
    low: Floats
    high: Floats

    @classmethod
    def of(cls, low: Floats, high: Floats, edges: Floats) -> Bins:
        """Sort channels of these energies into bins with these edges."""
        begin = np.searchsorted((low + high) / 2, edges)
        first = low[np.minimum(begin[:-1], low.size - 1)]
        return cls(begin, first, np.where(np.diff(begin) > 0, high[begin[1:] - 1], first))

    @property
    def hollow(self) -> NDArray[np.intp]:
        """Numbers of the bins without a channel."""
        return np.flatnonzero(np.diff(self.begin) == 0)

    def total(self, counts: NDArray[Any]) -> NDArray[np.int64]:
        """Sum the channels of each bin: (rows, 1024) to (rows, n)."""
        total = np.zeros((len(counts), counts.shape[1] + 1), np.int64)
        np.cumsum(counts, axis=1, out=total[:, 1:])
        return np.diff(total[:, self.begin])

    def mean_area(self, low: Floats, high: Floats, area: Floats) -> Floats:
        """Average effective areas over each bin, (rows, n); 0 in a bin without a channel.

        Parameters
        ----------
        low, high : ndarray, shape (energies,)
            Bins of the area, which is constant in each and 0 outside. Bins from 0 to 0 keV at the end only pad.
        area : ndarray, shape (rows, energies)
        """
        upper, lower = (_integral(area, low, high, energy) for energy in (self.high, self.low))
        width = self.high - self.low
        mean: Floats = (upper - lower) / np.where(width > 0, width, 1)
        return mean


def _integral(area: Floats, low: Floats, high: Floats, energy: Floats) -> Floats:
    """Integrate the area up to each energy, (rows, energies), cm2 keV: constant in each bin, 0 outside."""
    bins = int(np.count_nonzero(high))  # without those that pad
    low, width = low[:bins], high[:bins] - low[:bins]
    before = np.zeros((len(area), bins + 1))
    np.cumsum(area[:, :bins] * width, axis=1, out=before[:, 1:])
    within = np.searchsorted(low, energy, side="right") - 1
    part = np.clip(energy - low[within], 0, width[within])  # of a bin; 0 below the first
    integral: Floats = before[:, np.maximum(within, 0)] + area[:, within] * part
    return integral


@dataclass(frozen=True)
class Matrix:
    """A response matrix, its values one group of channels after the other.

    Attributes
    ----------
    low, high : ndarray of float64, shape (energies,)
        Edges of the photon energy bins.
    energy, first, width : ndarray of int64, shape (groups,)
        Number of the photon energy bin, first channel, from 0, and number of channels of each group.
    value : ndarray of float32, shape (values,)
    """

    low: Floats
    high: Floats
    energy: NDArray[np.int64]
    first: NDArray[np.int64]
    width: NDArray[np.int64]
    value: NDArray[np.float32]

    @classmethod
    def decode(cls, row: Mapping[str, Any]) -> Matrix:
        """Decode the columns of config ``responses``, whose groups of channels are those of CAL/GEN/92-002."""
        energy = np.repeat(np.arange(row["n_grp"].size), row["n_grp"])
        first, width = (row["f_chan"] - row["first_channel"]).astype(np.int64), row["n_chan"].astype(np.int64)
        return cls(row["energy_lo"], row["energy_hi"], energy, first, width, row["matrix"])

    @cached_property
    def _channel(self) -> NDArray[np.int64]:
        """Channel of each value, from 0."""
        begin = np.cumsum(self.width) - self.width
        channel: NDArray[np.int64] = np.arange(self.value.size) + np.repeat(self.first - begin, self.width)
        return channel

    def has_energies_of(self, area: tuple[Floats, ...]) -> bool:
        """Compare the energies with those of an effective area; behind its own, it may be padded with bins of 0 keV."""
        size = self.low.size
        return all(
            mine[:size].shape == theirs.shape
            and np.allclose(mine[:size], theirs, rtol=_GRID_TOLERANCE, atol=0)
            and not mine[size:].any()
            for mine, theirs in zip(area, (self.low, self.high), strict=False)
        )

    def fold(self, photons: Floats) -> Floats:
        """Distribute what is detected in each energy bin over the channels."""
        spread = np.repeat(photons[self.energy], self.width) * self.value
        return np.bincount(self._channel, spread, N_CHANNELS).astype(np.float64, copy=False)

    def compact(self, area: Floats, bins: Bins, edges: Floats) -> NDArray[np.float32]:
        """Average area times matrix over coarse photon energies, and sum it over the channels of each bin.

        Within a coarse energy bin the photons are taken to be spread as E**-1 (equally in the logarithm of energy)::

            response[j, i] = 1 / ln(E[j+1] / E[j]) * integral from E[j] to E[j+1] of
                             area(E) * (sum over channels of bin i of matrix(channel, E)) dE / E

        so that ``exposure * photons @ response`` are the counts in each bin of a model with ``photons`` cm-2 s-1 in
        each coarse energy bin.

        Parameters
        ----------
        area : ndarray, shape (energies,)
            Effective area at the energies of this matrix, cm2.
        bins : Bins
            Of the channels.
        edges : ndarray, shape (n + 1,)
            Of the coarse photon energies, above 0 keV.

        Returns
        -------
        ndarray of float32, shape (n, number of bins)
            cm2.
        """
        total = np.append(0, np.cumsum(self.value, dtype=np.float64))
        start = np.cumsum(self.width) - self.width
        within = np.clip(bins.begin - self.first[:, np.newaxis], 0, self.width[:, np.newaxis])
        summed = np.zeros((self.low.size, bins.low.size))
        np.add.at(summed, self.energy, np.diff(total[start[:, np.newaxis] + within], axis=1))
        ends = np.append(self.low, self.high[-1])
        steps = np.unique(np.concatenate([edges, np.clip(ends, edges[0], edges[-1])]))  # of no two bins of either kind
        fine, coarse = (np.searchsorted(each, steps[:-1], side="right") - 1 for each in (ends, edges))
        known = (fine >= 0) & (fine < self.low.size)
        fine = np.where(known, fine, 0)
        weight = np.where(known, area[fine], 0) * np.diff(np.log(steps)) / np.diff(np.log(edges))[coarse]
        # no matrix product, whose last digits are those of a machine
        parts = weight[:, np.newaxis] * summed[fine]
        response: NDArray[np.float32] = np.add.reduceat(parts, np.searchsorted(steps, edges[:-1])).astype(np.float32)
        return response
