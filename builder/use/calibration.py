"""Effects of the instrument: energies of the channels, coarser channels, and the folding of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from builder.model.errors import SettingError
from builder.model.folding import Bins, Floats, Matrix
from builder.model.invariants import energy_faults
from builder.model.records import N_CHANNELS
from builder.use.background import WIDTH, smoothed
from builder.use.batches import arrays

_KEPT = 8
"""Decoded responses kept in memory, 5 MB each."""


class Calibration:
    """The instrument tables of a prepared folder, and what is done with them.

    Parameters
    ----------
    ebounds : iterable of dict
        Rows of config ``ebounds``.
    responses : datasets.Dataset, optional
        Config ``responses``, wanted by `fold` only, or a function that loads it. It is read row by row.

    Examples
    --------
    >>> from chandra_spectra import Calibration
    >>> calibration = Calibration.load("chandra_spectra")  # doctest: +SKIP
    """

    def __init__(self, ebounds: Iterable[Mapping[str, Any]], responses: Any = None) -> None:
        self._grids: dict[str, tuple[Floats, Floats]] = {}
        for row in ebounds:
            low, high = (np.array(row[name], dtype=np.float64) for name in ("energy_lo", "energy_hi"))
            self._grids[str(row["ebounds_id"])] = low, high
        self._sound: set[str] = set()
        self._responses = responses
        self._table: Any = None
        self._numbers: dict[str, int] = {}
        self._decoded: dict[str, Matrix] = {}

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
        return self.__dict__ | {"_table": None, "_numbers": {}, "_decoded": {}, "_sound": set()}

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
            If there is no such grid, or its energies are not bins that follow each other.
        """
        low, high = self._grid(ebounds_id)
        return low.copy(), high.copy()

    def _grid(self, ebounds_id: str) -> tuple[Floats, Floats]:
        try:
            low, high = self._grids[ebounds_id]
        except KeyError:
            raise SettingError(
                f"config ebounds has no channel grid {ebounds_id!r}: take ebounds and rows of one folder"
            ) from None
        if ebounds_id not in self._sound:  # here, since another bad grid is nobody's concern
            for fault in energy_faults("the grid", low, high):
                raise SettingError(f"channel grid {ebounds_id}: {fault.words(int(fault.bad.argmax()))}")
            self._sound.add(ebounds_id)
        return low, high

    def background(self, rows: pa.Table | Mapping[str, Any], width: int = WIDTH) -> Floats:
        """Predict the counts of the background in each channel of the source region, to be added to a model's.

        ``background_scale`` times the mean of ``background_counts`` over `width` channels about each, fewer at both
        ends. Without the mean, a channel in which the background region happens to have no count would have none to
        expect, and the model would have to explain what is there: fits of faint rows are then biased.

        Parameters
        ----------
        rows : pyarrow.Table or dict
            One row of config ``counts``, or a batch of them as for `rebin`; with ``background_counts``,
            ``background_scale`` and ``ebounds_id``.
        width : int
            Number of channels, odd; 51 are 0.74 keV.

        Returns
        -------
        ndarray of float64, shape (1024,) or (rows, 1024)

        Raises
        ------
        SettingError
            If the width is no odd number from 1 to 1023, or the rows are not of config ``counts``.
        """
        single, batch = _batch(rows, ("background_counts", "background_scale", "ebounds_id"))
        scale = np.asarray(batch["background_scale"], dtype=np.float64)
        expected = scale[:, None] * smoothed(np.asarray(batch["background_counts"]), width)
        return expected[0] if single else expected

    def rebin(self, rows: pa.Table | Mapping[str, Any], edges: ArrayLike) -> dict[str, NDArray[Any]]:
        """Sum channels into coarser bins, a view of fixed size.

        A channel belongs to the bin that holds its centre: sums are exact, nothing is interpolated or split. The
        bins that come out therefore begin and end with a channel, within half a channel of the `edges`; the energies
        say where, and the effective area is the mean over just that range.

        Parameters
        ----------
        rows : pyarrow.Table or dict
            A batch of rows of config ``counts`` as a table, which is the fastest, or as ``map(batched=True)`` or
            `collate` gives it, or one row; with ``counts``, ``background_counts``, ``arf`` and ``ebounds_id``.
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
        single, batch = _batch(rows, ("counts", "background_counts", "ebounds_id", "arf"))
        area_low, area_high, area = _areas(batch["arf"])
        grids = np.asarray(batch["ebounds_id"])
        rebinned = {name: np.empty((len(grids), edges.size - 1), kind) for name, kind in _REBINNED.items()}
        left = np.arange(len(grids))
        while left.size:  # once, unless the rows are of several grids
            first = left[0]
            alike = grids[left] == grids[first]
            for each in (area_low, area_high):
                alike &= (each[left] == each[first]).all(axis=1)
            these, left = left[alike], left[~alike]
            bins = self._bins(grids[first], edges)
            for name in ("counts", "background_counts"):
                rebinned[name][these] = bins.total(np.asarray(batch[name])[these])
            rebinned["effective_area"][these] = bins.mean_area(area_low[first], area_high[first], area[these])
            rebinned["energy_lo"][these], rebinned["energy_hi"][these] = bins.low, bins.high
        return {name: values[0] for name, values in rebinned.items()} if single else rebinned

    def _bins(self, ebounds_id: str, edges: Floats) -> Bins:
        """Sort the channels of a grid into bins; SettingError where one holds none."""
        low, high = self._grid(ebounds_id)
        bins = Bins.of(low, high, edges)
        if bins.hollow.size:
            first, last = edges[bins.hollow[0] : bins.hollow[0] + 2]
            raise SettingError(
                f"no channel has its centre in {first:g}-{last:g} keV: choose wider bins within "
                f"{low[0]:g}-{high[-1]:g} keV"
            )
        return bins

    def fold(self, model: Callable[[Floats, Floats], ArrayLike], rows: pa.Table | Mapping[str, Any]) -> Floats:
        """Predict the counts of a model in each channel of the source region, without background.

        ``exposure * sum over energies of RMF(channel, energy) * ARF(energy) * model(energy)`` (OGIP CAL/GEN/92-002),
        as in Sherpa's ``RSPModelPHA``; AREASCAL is 1 in all rows.
        The area is not corrected for the aperture: what is folded is the flux of the photons within the source region,
        while the catalog's fluxes are of all. ``arf.psf_frac`` is the fraction of the PSF within it, where the ARF
        file gives it; it can exceed 1.

        Parameters
        ----------
        model : callable
            ``model(energy_lo, energy_hi)``, with the edges in keV, gives the photons cm-2 s-1 in each energy bin: a
            Sherpa model, or a function. For a batch it may give (rows, energies), a spectrum for each row.
        rows : pyarrow.Table or dict
            One row of config ``counts``, or a batch of them as for `rebin`; with ``exposure``, ``arf`` and
            ``rmf_sha256``.

        Returns
        -------
        ndarray of float64, shape (1024,) or (rows, 1024)

        Raises
        ------
        SettingError
            If there are no responses or not those of the rows, the energies of ARF and RMF differ, those of rows with
            spectra of their own differ, or the model gives another number of values.
        """
        single, batch = _batch(rows, ("exposure", "arf", "rmf_sha256"))
        areas, folded = list(zip(*_areas(batch["arf"]), strict=True)), []
        known: dict[tuple[bytes, bytes], Floats] = {}
        for number, area in enumerate(areas):
            response = self._response(batch["rmf_sha256"][number])
            if not response.has_energies_of(area):
                raise SettingError(f"the energies of the ARF and of RMF {batch['rmf_sha256'][number]} differ")
            grid = response.low.tobytes(), response.high.tobytes()
            if grid not in known:
                known[grid] = _photons(model(response.low, response.high), response.low.size, len(areas), single)
            photons = known[grid]
            if photons.ndim > 1:
                if len(known) > 1:
                    raise SettingError("the rows' responses have other energies each: fold the rows one by one")
                photons = photons[number]
            detected = photons * area[2][: photons.size]
            folded.append(float(batch["exposure"][number]) * response.fold(detected))
        result: Floats = np.array(folded).reshape(-1, N_CHANNELS)
        return result[0] if single else result

    def _response(self, rmf_sha256: str | None) -> Matrix:
        """Return a decoded response; the last few are kept."""
        if rmf_sha256 is None:
            raise SettingError("a row has no RMF of its own, as with prepare --rmf observation: fold needs --rmf each")
        if rmf_sha256 not in self._decoded:
            response = Matrix.decode(self._read(rmf_sha256))
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
        if "fault" in row.column_names and (fault := row["fault"][0].as_py()) is not None:
            raise SettingError(f"the matrix of RMF {rmf_sha256} could not be kept: {fault}")
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
        raise SettingError(f"{path} has no config responses: prepare it --with-responses and --rmf each") from error


def _batch(rows: pa.Table | Mapping[str, Any], names: tuple[str, ...]) -> tuple[bool, Mapping[str, Any]]:
    """Tell whether it is one row, and the named columns of the rows; SettingError where one is missing."""
    there = rows.column_names if isinstance(rows, pa.Table) else rows
    if missing := [name for name in names if name not in there]:
        raise SettingError(f"no {missing[0]} in the row: give rows of config counts with {', '.join(names)}")
    if isinstance(rows, pa.Table):
        return False, arrays(rows.select(names))
    single = any(rows[name] is None or isinstance(rows[name], str) for name in names)
    return single, {name: [rows[name]] if single else rows[name] for name in names}


def _areas(arf: Any) -> tuple[Floats, ...]:
    """Return the low edge, high edge and effective area of each row's ARF, (rows, longest).

    Shorter ones are padded with bins from 0 to 0 keV, as `collate` pads them.
    """
    if not isinstance(arf, Mapping):
        shape = len(arf), max((len(row["specresp"]) for row in arf), default=0)
        padded = {name: np.zeros(shape) for name in _AREA}
        for number, row in enumerate(arf):
            for name, values in padded.items():
                values[number, : len(row[name])] = row[name]
        arf = padded
    return tuple(np.asarray(arf[name], dtype=np.float64) for name in _AREA)


def _rising(edges: ArrayLike) -> Floats:
    try:
        numbers = np.asarray(edges, dtype=np.float64)
    except (TypeError, ValueError):  # texts, or lists of different lengths
        numbers = np.empty(0)
    if numbers.ndim != 1 or numbers.size < 2 or not (np.isfinite(numbers).all() and np.all(np.diff(numbers) > 0)):
        raise SettingError("the edges of bins must be two or more rising numbers, keV")
    return numbers


def _photons(given: ArrayLike, energies: int, rows: int, single: bool) -> Floats:
    """Evaluate a model; SettingError unless it is one spectrum, or one for each row."""
    photons = np.asarray(given, dtype=np.float64)
    if photons.shape != (energies,) and (single or photons.shape != (rows, energies)):
        raise SettingError(f"the model gives values of shape {photons.shape} for {energies} energy bins")
    return photons
