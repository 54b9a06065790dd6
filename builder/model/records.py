"""The records that pass between the stages: frozen, and checked when made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from builder.model.ids import DetectionId
from builder.model.invariants import (
    area_faults,
    bin_faults,
    count_faults,
    demand,
    energy_faults,
    fraction_faults,
    response_faults,
    scalar_faults,
)

N_CHANNELS = 1024
"""PI channels of an ACIS spectrum (TLMIN1 = 1, TLMAX1 = 1024 in the catalog's PHA files)."""

BROAD = slice(35, 479)
"""The channels that lie within the catalog's broad band, 0.5-7 keV: 36 to 479, at their array positions."""

ACIS_GRID = "cf51a61207d6f37e"
"""`ebounds_id` of the channel energies of all known ACIS products: 14.6 eV each, the first from 7.3 eV, as mkacisrmf
makes them for the PI channels 1 to 1024."""

REASONS = {
    "no_detection": "the catalog's row has ids that no detection can have",
    "not_acis": "the instrument is HRC, which hardly resolves energy",
    "not_served": "the archive would not serve the package",
    "missing_pha": "the archive has no PHA file for the detection",
    "missing_arf": "the archive has no ARF file for the detection",
    "missing_rmf": "the archive has no RMF file for the detection",
    "damaged_gzip": "a file is cut short or its checksum is wrong",
    "damaged_fits": "a file is not what its own FITS checksums say",
    "unreadable_pha": "the PHA file is not the FITS table it should be",
    "unreadable_arf": "the ARF file is not the FITS table it should be",
    "unreadable_rmf": "the RMF file is not the FITS table it should be",
    "no_background": "the PHA file has no background spectrum",
    "wrong_type": "a file's numbers are of another kind than the catalog's, such as rates or a net spectrum",
    "wrong_instrument": "a file is of another telescope or instrument than Chandra's ACIS",
    "wrong_ids": "a file is of another detection than its name or the catalog says",
    "channel_mismatch": "the channels of the PHA file are not those of the RMF file",
    "bad_energies": "the energies of a file are not bins that follow each other without gap or overlap",
    "not_finite": "a number that enters the row is not finite",
    "out_of_range": "a number that enters the row is beyond what it can be",
    "no_counts": "no source counts in the kept energy range",
    "not_reducible": "Sherpa refused the data",
}
"""Reason codes of rejections, and what each means."""

Stage = Literal["select", "fetch", "reduce"]


@dataclass(frozen=True, slots=True)
class File:
    """One product file as it was served: its name without folders, and its bytes, gzipped or not."""

    name: str
    data: bytes


class Trio(NamedTuple):
    """A text for each of the three files of a detection, such as its name; none for an RMF that was not read."""

    pha: str
    arf: str
    rmf: str | None


class ProductFile(Protocol):
    """A product file to whoever reads it: a `File`, or one whose bytes are read from disk when they are asked for."""

    @property
    def name(self) -> str:
        """Name without folders."""

    @property
    def data(self) -> bytes:
        """Content, gzipped or not."""


@dataclass(frozen=True, slots=True)
class Products:
    """The files of one detection; None where the archive has none."""

    detection: DetectionId
    pha: ProductFile | None = None
    arf: ProductFile | None = None
    rmf: ProductFile | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """A selected detection that is no row, and why.

    Attributes
    ----------
    detection : DetectionId or str
        Its name as text, where the catalog's row names none.
    stage : {'select', 'fetch', 'reduce'}
    reason : str
        A key of `REASONS`.
    message : str
        What was found, in one line.
    url : str
        Where its files were asked for.
    """

    detection: DetectionId | str
    stage: Stage
    reason: str
    message: str
    url: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason code {self.reason!r}")


def ebounds_id(low: NDArray[np.float64], high: NDArray[np.float64]) -> str:
    """Give 16 hexadecimal digits of the SHA-256 of channel energies (both edges, little-endian float64)."""
    digest = hashlib.sha256(low.astype("<f8").tobytes())
    digest.update(high.astype("<f8").tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Energies:
    """The channel energies of an RMF file, and the file.

    Attributes
    ----------
    detection : DetectionId
        Whose file it is.
    file, sha256 : str
        Its name, and the SHA-256 of the inflated bytes.
    telescope, instrument : str
        TELESCOP and INSTRUME; empty where it does not say.
    low, high : ndarray of float64, shape (1024,)
        Nominal energy range of each channel, keV (EBOUNDS).
    """

    detection: DetectionId
    file: str
    sha256: str
    telescope: str
    instrument: str
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """A redistribution matrix as its file has it, sparse (OGIP CAL/GEN/92-002, section 3).

    Attributes
    ----------
    first_channel : int
        Number of the first channel, from which `f_chan` counts.
    energy_lo, energy_hi : ndarray of float64, shape (n_energies,)
        Photon energies, keV.
    n_grp : ndarray of int32, shape (n_energies,)
        Groups of channels of each photon energy.
    f_chan, n_chan : ndarray of int32, shape (n_groups,)
        First channel and number of channels of each group.
    matrix : ndarray of float32, shape (n_elements,)
        The groups' values, one after the other.

    Raises
    ------
    ValueError
        If a shape contradicts the above.
    ProductError
        If it is not what `builder.model.invariants` says.
    """

    first_channel: int
    energy_lo: NDArray[np.float64]
    energy_hi: NDArray[np.float64]
    n_grp: NDArray[np.int32]
    f_chan: NDArray[np.int32]
    n_chan: NDArray[np.int32]
    matrix: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not (self.energy_lo.shape == self.energy_hi.shape == self.n_grp.shape and self.energy_lo.size):
            raise ValueError("energies and N_GRP must share one shape (n_energies,)")
        if np.any(self.n_grp < 0) or not self.f_chan.size == self.n_chan.size == self.n_grp.sum():
            raise ValueError("F_CHAN and N_CHAN must have as many values as there are groups")
        if np.any(self.n_chan < 0) or self.matrix.size != self.n_chan.sum():
            raise ValueError("MATRIX must have as many values as the groups have channels")
        groups = (self.first_channel, self.f_chan, self.n_chan)
        demand(response_faults(self.energy_lo, self.energy_hi, *groups, self.matrix, N_CHANNELS), "the response")


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """One reduced spectrum, and the channels that it was made from.

    Attributes
    ----------
    detnam, grating : str or None
        DETNAM and GRATING of the source spectrum; None where it does not say.
    ccds : str or None
        Chips of the GTI tables, such as ``2,3``; None where they name none.
    caldb_version : str or None
        CALDBVER of the ARF or the RMF; None where neither says.
    exposure : float
        EXPOSURE of the source spectrum, s.
    background_scale : float
        Factor from background counts to counts in the source region, see `builder.reduce.spectrum`.
    source_counts, background_counts_total : int
        Counts in the kept channels, of the source and of the (unscaled) background region.
    energy, energy_lo, energy_hi : ndarray of float64, shape (n_bins,)
        Centre and edges of the bins, keV.
    rate, rate_error : ndarray of float64, shape (n_bins,)
        Count rate density and its error, counts/s/keV.
    counts, background_counts : ndarray of int32, shape (1024,)
        Counts in each PI channel, 1 to 1024.
    arf_energy_lo, arf_energy_hi, specresp : ndarray of float32, shape (n_energies,)
        Effective area in cm2 on its own grid in keV.
    psf_frac : ndarray of float32, shape (n_energies,), optional
        Fraction of the point-spread function in the region.
    ebounds_lo, ebounds_hi : ndarray of float64, shape (1024,)
        Nominal energy range of each channel, keV (EBOUNDS of the RMF).
    ebounds_from : DetectionId
        Whose RMF that is.
    files, sha256 : Trio
        Names and SHA-256 (of the inflated bytes) of the PHA, ARF and RMF file.
    response : Response or str, optional
        The RMF's matrix where it was asked for, or why it cannot be kept.
    compact : ndarray of float32, shape (photon energies, bins), or str, optional
        Compact response of config ``binned`` where it was asked for, cm2, or why there is none.

    Raises
    ------
    ValueError
        If a shape contradicts the above.
    ProductError
        If it is not what `builder.model.invariants` says that a row must be, with the file that is to blame.
    """

    detection: DetectionId
    detnam: str | None
    grating: str | None
    ccds: str | None
    caldb_version: str | None
    exposure: float
    background_scale: float
    source_counts: int
    background_counts_total: int
    energy: NDArray[np.float64]
    energy_lo: NDArray[np.float64]
    energy_hi: NDArray[np.float64]
    rate: NDArray[np.float64]
    rate_error: NDArray[np.float64]
    counts: NDArray[np.int32]
    background_counts: NDArray[np.int32]
    arf_energy_lo: NDArray[np.float32]
    arf_energy_hi: NDArray[np.float32]
    specresp: NDArray[np.float32]
    ebounds_lo: NDArray[np.float64]
    ebounds_hi: NDArray[np.float64]
    ebounds_from: DetectionId
    files: Trio
    sha256: Trio
    psf_frac: NDArray[np.float32] | None = None
    response: Response | str | None = None
    compact: NDArray[np.float32] | str | None = None

    def __post_init__(self) -> None:
        bins = (self.energy, self.energy_lo, self.energy_hi, self.rate, self.rate_error)
        if len({array.shape for array in bins}) != 1 or self.energy.ndim != 1 or not self.energy.size:
            raise ValueError(f"{self.detection}: the bins' arrays must share one shape (n_bins,)")
        for array in (self.counts, self.background_counts, self.ebounds_lo, self.ebounds_hi):
            if array.shape != (N_CHANNELS,):
                raise ValueError(f"{self.detection}: channel arrays must have shape ({N_CHANNELS},)")
        area = (self.arf_energy_lo, self.arf_energy_hi, self.specresp)
        fraction = self.specresp if self.psf_frac is None else self.psf_frac
        if len({array.shape for array in (*area, fraction)}) != 1 or area[0].ndim != 1 or not area[0].size:
            raise ValueError(f"{self.detection}: the effective area's arrays must share one shape (n_energies,)")
        pha, arf, rmf = self.files
        demand(scalar_faults(np.array([self.exposure]), np.array([self.background_scale])), pha)
        for name in ("counts", "background_counts"):
            demand(count_faults(name, np.array([getattr(self, name).min()])), pha)
        demand(area_faults(*area), arf)
        if self.psf_frac is not None:
            demand(fraction_faults(self.arf_energy_lo, self.psf_frac), arf)
        demand(energy_faults("ebounds", self.ebounds_lo, self.ebounds_hi), rmf or str(self.ebounds_from))
        demand(bin_faults(*bins), pha)

    @property
    def n_bins(self) -> int:
        """Number of bins of the spectrum."""
        return int(self.energy.size)

    @property
    def ebounds_id(self) -> str:
        """Key of the channel energies, see `ebounds_id`."""
        return ebounds_id(self.ebounds_lo, self.ebounds_hi)

    @property
    def ebounds_source(self) -> str:
        """Name of the detection whose RMF gave the channel energies."""
        return str(self.ebounds_from)
