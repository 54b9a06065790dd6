"""Distributions of all rows of a folder, binned once for the card's pictures and for the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.dataset.rows import HEALPIX_NSIDE

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Column, label, whether its bins are even in the logarithm, and the range in which values are drawn: that of anything
# that Chandra could measure.
_HISTOGRAMS = (
    ("src_cnts_aper_b", "net counts, 0.5-7 keV", True, 1e-3, 1e9),
    ("theta", "off-axis angle (arcmin)", False, 0, 60),
    ("n_bins", "bins in the spectrum", True, 1, 1e4),
)

SCALARS = ("detection_id", "healpix", "src_cnts_aper_b", "theta", "n_bins", "hard_ms", "hard_hm", "source_counts")
"""Columns that `summarize` and whoever samples the rows want."""

_POLE = np.radians([192.859, 27.128])
"""Right ascension and declination (J2000) of the north Galactic pole; IAU 1958, Blaauw et al. 1960."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Numbers of rows between edges, which are even in the logarithm or not; no edges where no row has a value.

    The label says how many values are left out, as they are outside of what can be drawn.
    """

    label: str
    logarithmic: bool
    edges: Floats
    rows: Integers


@dataclass(frozen=True, slots=True)
class Summary:
    """The distributions of the rows.

    Attributes
    ----------
    cells, rows : ndarray of int64, shape (n_cells,)
        HEALPix cells that hold rows, and how many.
    ra, dec : ndarray of float64, shape (n_cells,)
        Centres of the cells, rad.
    histograms : tuple of Histogram
        Of net counts, off-axis angle and bins.
    soft, hard : ndarray of float64, shape (n_known,)
        ``hard_ms`` and ``hard_hm`` of the rows that have both, within -1 and 1 as ratios are.
    outside : int
        Number of the rows that have both, but not within -1 and 1.
    """

    cells: Integers
    rows: Integers
    ra: Floats
    dec: Floats
    histograms: tuple[Histogram, ...]
    soft: Floats
    hard: Floats
    outside: int


def summarize(scalars: pa.Table) -> Summary:
    """Bin the columns `SCALARS` of all rows."""
    from healpix import pix2ang

    cells, rows = np.unique(scalars["healpix"].drop_null().to_numpy(), return_counts=True)
    ra, dec = np.radians(pix2ang(HEALPIX_NSIDE, cells, nest=True, lonlat=True))
    histograms = (_histogram(label, _finite(scalars[name]), *how) for name, label, *how in _HISTOGRAMS)
    soft, hard = _finite(scalars["hard_ms"]), _finite(scalars["hard_hm"])
    known = ~np.isnan(soft) & ~np.isnan(hard)
    drawn = known & (np.abs(soft) <= 1) & (np.abs(hard) <= 1)
    outside = int(known.sum() - drawn.sum())
    return Summary(cells, rows, ra, dec, tuple(histograms), soft[drawn], hard[drawn], outside)


def _finite(column: pa.ChunkedArray) -> Floats:
    """Return the values of a column, NaN for null and for anything that is not finite."""
    values = column.cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _histogram(label: str, values: Floats, logarithmic: bool, least: float, most: float) -> Histogram:
    """Return the twenty bins between 0 and a round number, or eight a decade, of the values from `least` to `most`."""
    known = np.count_nonzero(~np.isnan(values))
    values = values[(values >= least) & (values <= most)]
    if lost := known - values.size:
        label = f"{label}; {lost:,} not drawn"
    if not values.size:
        return Histogram(label, logarithmic, np.empty(0), np.empty(0, np.int64))
    edges = np.linspace(0, np.floor(values.max()) + 1, 21)
    if logarithmic:
        low, high = np.floor(np.log10(values.min())), np.floor(np.log10(values.max())) + 1
        edges = np.logspace(low, high, 8 * int(high - low) + 1)
    return Histogram(label, logarithmic, edges, np.histogram(values, edges)[0])


def galactic_plane(ra: Floats) -> Floats:
    """Compute the declination of the Galactic plane (rad), 90 deg from its pole, at right ascensions (rad)."""
    return np.asarray(np.arctan(-np.cos(ra - _POLE[0]) / np.tan(_POLE[1])))
