"""Effects of the instrument: energies of the channels, coarser channels, and the folding of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from builder.model.errors import SettingError
from builder.model.records import N_CHANNELS

Floats = NDArray[np.float64]

_KEPT = 8
"""Decoded responses kept in memory, 7 MB each."""

_GRID_TOLERANCE = 1e-6
"""Relative; the energies of ARF and RMF files are single precision, so those of one grid differ by 1e-7 at most."""


class Calibration:
    """The instrument tables of a prepared folder, and what is done with them.

    Parameters
    ----------
    ebounds : iterable of dict
        Rows of config ``ebounds``.
    responses : datasets.Dataset, optional
        Config ``responses``, wanted by `fold` only, or a function that loads it. It is read row by row.

    Raises
    ------
    SettingError
        If the energies of a channel grid do not rise.

    Examples
    --------
    >>> from chandra_spectra import Calibration
    >>> calibration = Calibration.load("chandra_spectra")  # doctest: +SKIP
    """

    def __init__(self, ebounds: Iterable[Mapping[str, Any]], responses: Any = None) -> None:
        self._grids: dict[str, tuple[Floats, Floats]] = {}
        for row in ebounds:
            low, high = (np.array(row[name], dtype=np.float64) for name in ("energy_lo", "energy_hi"))
            if not (np.all(low < high) and np.all(np.diff(low) > 0) and np.all(np.diff(high) > 0)):
                raise SettingError(f"the energies of channel grid {row['ebounds_id']} do not rise")
            self._grids[str(row["ebounds_id"])] = low, high
        self._responses = responses
        self._table: Any = None
        self._numbers: dict[str, int] = {}
        self._decoded: dict[str, tuple[Floats, Floats, Floats]] = {}

    @classmethod
    def load(cls, path: str, **options: Any) -> Calibration:
        """Read the tables of a prepared folder or of a dataset on a hub.

        Parameters
        ----------
        path : str
            As `datasets.load_dataset` takes it.
        **options
            Further arguments of `datasets.load_dataset`, such as ``revision``; not ``name``, ``split`` or
            ``streaming``. Config ``responses`` is loaded at the first `fold`.

        Raises
        ------
        SettingError
            If one of those three is among the options.
        """
        from datasets import load_dataset

        if wrong := [name for name in ("name", "split", "streaming") if name in options]:
            raise SettingError(f"the tables of the instrument are loaded whole, for any split: leave out {wrong[0]}")
        ebounds = load_dataset(path, "ebounds", split="train", **options)
        return cls(ebounds, partial(_load_responses, path, options))

    def __getstate__(self) -> dict[str, Any]:
        # datasets makes the key of a cached `map` of this, which must not depend on what was folded before
        return self.__dict__ | {"_table": None, "_numbers": {}, "_decoded": {}}

    def energies(self, ebounds_id: str) -> tuple[Floats, Floats]:
        """Return the nominal energies of channels 1 to 1024.

        Parameters
        ----------
        ebounds_id : str
            Key of config ``ebounds``.

        Returns
        -------
        energy_lo, energy_hi : ndarray of float64, shape (1024,)
            keV: E_MIN and E_MAX of the RMF file.

        Raises
        ------
        SettingError
            If there is no such grid.
        """
        low, high = self._grid(ebounds_id)
        return low.copy(), high.copy()

    def _grid(self, ebounds_id: str) -> tuple[Floats, Floats]:
        try:
            return self._grids[ebounds_id]
        except KeyError:
            raise SettingError(
                f"config ebounds has no channel grid {ebounds_id!r}: take ebounds and rows of one folder"
            ) from None

    def rebin(self, rows: Mapping[str, Any], edges: ArrayLike) -> dict[str, NDArray[Any]]:
        """Sum channels into coarser bins, a view of fixed size.

        A channel belongs to the bin that holds its centre: sums are exact, nothing is interpolated or split. The
        bins that come out therefore begin and end with a channel, within half a channel of the `edges`; the energies
        say where, and the effective area is the mean over just that range.

        Parameters
        ----------
        rows : dict
            One row of config ``counts``, or a batch of them as ``map(batched=True)`` or `collate` gives it; with
            ``counts``, ``background_counts``, ``arf`` and ``ebounds_id``.
        edges : array_like, shape (n + 1,)
            Rising, keV; channels outside are left out.

        Returns
        -------
        dict of ndarray, shape (n,) or (rows, n)
            ``counts`` and ``background_counts``, int64; ``effective_area``, float64, cm2: the mean over the bin of the
            ARF, which is constant in each of its bins and 0 outside; ``energy_lo`` and ``energy_hi``, float64, keV.

        Raises
        ------
        SettingError
            If the edges do not rise, a bin holds no channel, or the rows are not of config ``counts``.
        """
        edges = _rising(edges)
        names = ("counts", "background_counts", "ebounds_id", "arf")
        _require(rows, names)
        *columns, arf = (rows[name] for name in names)
        if isinstance(rows["ebounds_id"], str):
            return self._rebin((*columns, arf), edges)
        if isinstance(arf, Mapping):  # of `collate`: what it pads with, bins from 0 to 0 keV, adds no area
            arf = [dict(zip(_AREA, row, strict=True)) for row in zip(*(arf[name] for name in _AREA), strict=True)]
        done = [self._rebin(values, edges) for values in zip(*columns, arf, strict=True)]
        shape = len(done), edges.size - 1
        return {name: np.array([row[name] for row in done], kind).reshape(shape) for name, kind in _REBINNED.items()}

    def _rebin(self, values: Sequence[Any], edges: Floats) -> dict[str, NDArray[Any]]:
        counts, background, ebounds_id, arf = values
        low, high = self._grid(ebounds_id)
        begin = np.searchsorted((low + high) / 2, edges)
        if (hollow := np.flatnonzero(np.diff(begin) == 0)).size:
            first, last = edges[hollow[0] : hollow[0] + 2]
            raise SettingError(
                f"no channel has its centre in {first:g}-{last:g} keV: choose wider bins within "
                f"{low[0]:g}-{high[-1]:g} keV"
            )
        low, high = low[begin[:-1]], high[begin[1:] - 1]
        sums = (np.append(0, np.cumsum(np.asarray(each, dtype=np.int64))) for each in (counts, background))
        summed = [np.diff(total[begin]) for total in sums]
        return dict(zip(_REBINNED, (*summed, _mean_area(arf, low, high), low, high), strict=True))

    def fold(self, model: Callable[[Floats, Floats], ArrayLike], row: Mapping[str, Any]) -> Floats:
        """Compute the counts that a model predicts in each channel of the source region, without background.

        ``exposure * sum over energies of RMF(channel, energy) * ARF(energy) * model(energy)`` (OGIP CAL/GEN/92-002),
        as in Sherpa's ``RSPModelPHA``; AREASCAL is 1 in all rows.
        The area is not corrected for the aperture: what is folded is the flux of the photons within the source region,
        while the catalog's fluxes are of all. Column PSF_FRAC of the ARF file is the fraction of the PSF within it
        (``chandra-spectra export --layout fits`` gives the files back); it can exceed 1.

        Parameters
        ----------
        model : callable
            ``model(energy_lo, energy_hi)``, with the edges in keV, gives the photons cm-2 s-1 in each energy bin: a
            Sherpa model, or a function.
        row : dict
            One row of config ``counts``; with ``exposure``, ``arf`` and ``rmf_sha256``.

        Returns
        -------
        ndarray of float64, shape (1024,)

        Raises
        ------
        SettingError
            If there are no responses or not this one, it is more than a row, the energies of ARF and RMF differ, or
            the model gives another number of values.
        """
        _require(row, ("exposure", "arf", "rmf_sha256"))
        if not isinstance(row["rmf_sha256"], str):
            raise SettingError("fold takes one row of config counts, not a batch: fold its rows one by one")
        low, high, matrix = self._response(str(row["rmf_sha256"]))
        area = _arf(row["arf"])
        for mine, theirs in zip(area, (low, high), strict=False):
            if mine.shape != theirs.shape or not np.allclose(mine, theirs, rtol=_GRID_TOLERANCE, atol=0):
                raise SettingError(f"the energies of the ARF and of RMF {row['rmf_sha256']} differ: cannot fold")
        photons = np.asarray(model(low, high), dtype=np.float64)
        if photons.shape != low.shape:
            raise SettingError(f"the model gives values of shape {photons.shape} for {low.size} energy bins")
        predicted: Floats = float(row["exposure"]) * ((photons * area[2]) @ matrix)
        return predicted

    def _response(self, rmf_sha256: str) -> tuple[Floats, Floats, Floats]:
        """Return the energies and matrix of shape (energies, 1024); the last few are kept."""
        if rmf_sha256 not in self._decoded:
            response = _decode(self._read(rmf_sha256))
            if len(self._decoded) >= _KEPT:
                self._decoded.pop(next(iter(self._decoded)))
            self._decoded[rmf_sha256] = response
        return self._decoded[rmf_sha256]

    def _read(self, rmf_sha256: str) -> dict[str, NDArray[Any]]:
        if self._responses is None:
            raise SettingError("to fold a model takes config responses: Calibration(ebounds, responses)")
        if self._table is None:
            responses = self._responses() if callable(self._responses) else self._responses
            self._table = responses.with_format("arrow")
            names = self._table.select_columns("rmf_sha256")[:]["rmf_sha256"].to_pylist()
            self._numbers = {name: number for number, name in enumerate(names)}
        if rmf_sha256 not in self._numbers:
            raise SettingError(f"config responses has no RMF {rmf_sha256}: take responses and rows of one folder")
        row = self._table[self._numbers[rmf_sha256]]
        lists = {name: row[name].combine_chunks().flatten().to_numpy() for name in _LISTS}
        return lists | {"first_channel": row["first_channel"].to_numpy()}


_REBINNED = {
    "counts": np.int64,
    "background_counts": np.int64,
    "effective_area": np.float64,
    "energy_lo": np.float64,
    "energy_hi": np.float64,
}
_AREA = ("energy_lo", "energy_hi", "specresp")
_LISTS = ("energy_lo", "energy_hi", "n_grp", "f_chan", "n_chan", "matrix")


def _load_responses(path: str, options: dict[str, Any]) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, "responses", split="train", **options)
    except ValueError as error:  # no config has this name
        raise SettingError(f"{path} has no config responses: prepare it with --with-responses") from error


def _require(rows: Mapping[str, Any], names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in rows]:
        raise SettingError(f"no {missing[0]} in the row: give rows of config counts with {', '.join(names)}")


def _rising(edges: ArrayLike) -> Floats:
    try:
        numbers = np.asarray(edges, dtype=np.float64)
    except (TypeError, ValueError):  # texts, or lists of different lengths
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.size < 2 or not (np.isfinite(numbers).all() and np.all(np.diff(numbers) > 0)):
        raise SettingError("the edges of bins must be two or more rising numbers, keV")
    return numbers


def _arf(arf: Mapping[str, ArrayLike]) -> tuple[Floats, Floats, Floats]:
    low, high, area = (np.asarray(arf[name], dtype=np.float64) for name in _AREA)
    return low, high, area


def _mean_area(arf: Mapping[str, ArrayLike], low: Floats, high: Floats) -> Floats:
    """Compute the mean over each range of an area that is constant in each bin of the ARF and 0 outside, cm2."""
    arf_low, arf_high, area = _arf(arf)
    overlap = np.minimum.outer(high, arf_high) - np.maximum.outer(low, arf_low)
    mean: Floats = (np.maximum(overlap, 0) @ area) / (high - low)
    return mean


def _decode(row: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats, Floats]:
    """Return the energies and matrix of a row of config ``responses``: groups of CAL/GEN/92-002, written out."""
    n_energies, n_chan = row["n_grp"].size, row["n_chan"].astype(np.int64)
    energy = np.repeat(np.repeat(np.arange(n_energies), row["n_grp"]), n_chan)
    within = np.arange(n_chan.sum()) - np.repeat(np.cumsum(n_chan) - n_chan, n_chan)
    channel = np.repeat(row["f_chan"] - row["first_channel"], n_chan) + within
    matrix = np.zeros((n_energies, N_CHANNELS))
    np.add.at(matrix, (energy, channel), row["matrix"])
    return row["energy_lo"], row["energy_hi"], matrix
