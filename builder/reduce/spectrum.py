"""Files and a recipe in, a spectrum or a rejection out.

The reduction is Sherpa's, by its data objects: analysis in energy, the energy range kept with ``ignore``, the
background subtracted, the kept channels grouped to a least number of counts, and the count rate density and its
Gehrels error as in Sherpa's data plot. The numbers equal those of ``sherpa.astro.ui`` (`load_pha`, `ignore`,
`subtract`, `group_counts`, `get_data_plot`) bit for bit.

Of the RMF only the channel energies (EBOUNDS) enter these numbers, so its matrix is unpacked only for who asks for it.

The background scale is ``(EXPOSURE x BACKSCAL x AREASCAL of the source) / (the same of the background)``: the number
of background counts times it is the number of background counts expected in the source region (OGIP 92-007, section
3; Sherpa's ``DataPHA.get_background_scale``).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sherpa.astro.data import DataPHA, DataRMF
from sherpa.stats import Chi2Gehrels
from sherpa.utils.err import SherpaErr

from builder.archive.packages import HARDLY
from builder.archive.products import ProductName
from builder.model.errors import ProductError, SettingError
from builder.model.folding import Bins, Matrix, bin_edges, photon_edges
from builder.model.invariants import Fault, channel_faults, demand, fraction_faults
from builder.model.records import Energies, ProductFile, Products, Rejection, Response, Spectrum, Stage, Trio
from builder.model.settings import Recipe
from builder.reduce.energies import (
    CHANNELS,
    EVERYWHERE,
    check_channels,
    check_ids,
    check_shared,
    check_words,
    energies_of,
)
from builder.reduce.ogip import Table, content, extension, inflate, sha256, tables
from builder.reduce.response import read_response

Floats = NDArray[np.float64]

_SPECTRUM = {"HDUCLAS3": "COUNT", "HDUCLAS4": "TYPE:I", "POISSERR": "T"}
"""Values that these keywords of a spectrum have, where they are there (see docs/recipe.md)."""
_PER_CHANNEL = {"BACKSCAL", "AREASCAL", "BACKGROUND_UP", "BACKGROUND_DOWN"}  # columns that change Sherpa's numbers


class BinnedRates(NamedTuple):
    """Bins of channels: their energies in keV, rates with errors in count s-1 keV-1, and the channels in them."""

    energy: Floats
    energy_lo: Floats
    energy_hi: Floats
    rate: Floats
    rate_error: Floats
    kept: NDArray[np.bool_]


def reduce_products(
    products: Products,
    recipe: Recipe,
    url: str = "",
    *,
    response: bool = False,
    bins: int = 0,
    energies: Energies | None = None,
) -> Spectrum | Rejection:
    """Reduce one detection.

    Parameters
    ----------
    products : Products
        The bytes of its PHA, ARF and RMF file, gzipped or not.
    url : str
        Where the files came from, for the rejection.
    response : bool
        Keep the RMF's matrix, too.
    bins : int
        Make the compact response for so many bins, too.
    energies : Energies, optional
        Channel energies from the RMF of another detection of the observation, in place of the detection's own.

    Returns
    -------
    Spectrum or Rejection
        A rejection for anything wrong with the files; nothing that a file holds raises.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows or is divided by zero ends up not finite, and is checked
            return _reduce(products, recipe, response, bins, energies)
    except ProductError as error:
        stage: Stage = "fetch" if error.reason.startswith("missing_") else "reduce"
        return Rejection(products.detection, stage, error.reason, str(error), url)
    except SherpaErr as error:
        return Rejection(products.detection, "reduce", "not_reducible", f"Sherpa: {error}", url)


def _reduce(products: Products, recipe: Recipe, response: bool, bins: int, shared: Energies | None) -> Spectrum:
    detection = products.detection
    for file in filter(None, (products.pha, products.arf, products.rmf)):
        if (parsed := ProductName.parse(file.name)) and parsed.instrument == "hrc":
            raise ProductError("not_acis", f"{file.name}: HRC {HARDLY}")
    # In the order in which the archive is asked for files one by one: behind one that is missing it is asked for none.
    pha = _present(products, "pha")
    rmf = None if shared else _present(products, "rmf")
    arf = _present(products, "arf")
    inflated = [inflate(file) for file in (pha, arf, rmf) if file is not None]
    pha_tables = tables(inflated[0], pha.name, "pha")
    source, background = _source_and_background(pha_tables, pha)
    area = extension(tables(inflated[1], arf.name, "arf"), "SPECRESP", arf.name, "arf")
    rmf_tables = tables(inflated[2], rmf.name, "rmf") if rmf else []
    for table in (source, background, area, *rmf_tables):
        check_words(table, EVERYWHERE)
        check_ids(table, detection, complete=table is source)

    channel, counts = _channels(source)
    background_channel, background_counts = _channels(background)
    check_channels(pha.name, channel)
    check_channels(f"the background of {pha.name}", background_channel)
    # Checked before Sherpa filters by them.
    energies = shared or energies_of(detection, rmf.name if rmf else "", rmf_tables, inflated[-1])
    check_shared(source, energies, detection)
    arf_lo, arf_hi, specresp = (array.astype(np.float32) for array in area.columns("ENERG_LO", "ENERG_HI", "SPECRESP"))

    psf_frac = _psf_frac(area, arf_lo)

    energy_scale = _channel_energies(energies.low.tobytes(), energies.high.tobytes())
    data = _data_pha(str(detection), source, counts, energy_scale)
    if data.areascal != 1:  # the counts and the effective area of a row, to which it is not applied, would not fit it
        raise ProductError("wrong_type", f"{pha.name}: AREASCAL is {data.areascal}, but 1 in the catalog's files")
    kept = _keep(data, recipe)
    if kept is None or not counts[kept].any():
        raise ProductError("no_counts", f"{pha.name}: no counts in {recipe.energy_min:g}-{recipe.energy_max:g} keV")
    background_data = _data_pha(f"{detection} background", background, background_counts, energy_scale)
    rates = _bin(data, background_data, (energies.low, energies.high), kept, recipe)
    matrix = _response(rmf_tables, energies.file) if response or bins else None

    own = energies.detection == detection
    spectrum = Spectrum(
        detection=detection,
        detnam=source.word("DETNAM"),
        grating=source.word("GRATING"),
        ccds=_ccds(pha_tables),
        caldb_version=area.word("CALDBVER"),
        exposure=float(data.exposure),
        background_scale=float(data.get_background_scale(group=False)),
        source_counts=int(counts[kept].sum()),
        background_counts_total=int(background_counts[kept].sum()),
        energy=rates.energy,
        energy_lo=rates.energy_lo,
        energy_hi=rates.energy_hi,
        rate=rates.rate,
        rate_error=rates.rate_error,
        counts=counts,
        background_counts=background_counts,
        arf_energy_lo=arf_lo,
        arf_energy_hi=arf_hi,
        specresp=specresp,
        psf_frac=psf_frac,
        ebounds_lo=energies.low,
        ebounds_hi=energies.high,
        ebounds_from=energies.detection,
        files=Trio(pha.name, arf.name, energies.file if own else None),
        sha256=Trio(sha256(inflated[0]), sha256(inflated[1]), energies.sha256 if own else None),
        response=matrix if response else None,
        compact=_compact(matrix, (arf_lo, arf_hi, specresp), [energies.low, energies.high], recipe, bins)
        if bins
        else None,
    )
    demand(_channel_faults(spectrum, recipe), pha.name)
    return spectrum


def regroup_channels(
    counts: NDArray[Any],
    background_counts: NDArray[Any],
    exposure: float,
    background_scale: float,
    energies: tuple[Floats, Floats],
    recipe: Recipe,
) -> BinnedRates:
    """Bin the channels of a row as `reduce_products` bins those of its files.

    Parameters
    ----------
    counts, background_counts : ndarray of int, shape (1024,)
        Of the source and of the background region.
    exposure : float
        s.
    background_scale : float
        Factor from background counts to counts in the source region.
    energies : pair of ndarray, shape (1024,)
        E_MIN and E_MAX of the channels, keV.

    Raises
    ------
    SettingError
        If no channel lies within the kept range.
    """
    energy_scale = _channel_energies(*(energy.tobytes() for energy in energies))
    data, background = (
        DataPHA(name, CHANNELS, values.astype(np.float64), exposure=exposure, backscal=scale)
        for name, values, scale in (("source", counts, background_scale), ("background", background_counts, 1.0))
    )
    data.set_rmf(energy_scale)
    data.set_analysis("energy")
    kept = _keep(data, recipe)
    if kept is None or not kept.any():
        raise SettingError(f"no channel lies within {recipe.energy_min:g}-{recipe.energy_max:g} keV")
    return _bin(data, background, energies, kept, recipe)


def kept_channels(energies: tuple[Floats, Floats], recipe: Recipe) -> NDArray[np.bool_]:
    """Return which channels of these energies (keV) the recipe keeps, shape (1024,)."""
    data = DataPHA("source", CHANNELS, np.zeros(CHANNELS.size))
    data.set_rmf(_channel_energies(*(energy.tobytes() for energy in energies)))
    data.set_analysis("energy")
    kept = _keep(data, recipe)
    return np.zeros(CHANNELS.size, dtype=bool) if kept is None else kept


def _keep(data: DataPHA, recipe: Recipe) -> NDArray[np.bool_] | None:
    """Leave out the channels that reach beyond the kept range; which are left, None where none is."""
    data.ignore(None, recipe.energy_min)
    data.ignore(recipe.energy_max, None)
    kept: NDArray[np.bool_] | None = data.get_mask()
    return kept


def _bin(
    data: DataPHA, background: DataPHA, energies: tuple[Floats, Floats], kept: NDArray[np.bool_], recipe: Recipe
) -> BinnedRates:
    """Group the kept channels, and give the rates of the bins."""
    if recipe.group:
        _group(data, kept, recipe.min_counts)
    # Last, as Sherpa would filter and group it as well, for nothing: it is subtracted in the bins of the source.
    data.set_background(background)
    if recipe.subtract:
        data.subtract()
    low, high = data.apply_filter(energies[0], data._min), data.apply_filter(energies[1], data._max)
    error = data.get_yerr(filter=True, staterrfunc=Chi2Gehrels.calc_staterror)
    return BinnedRates((low + high) / 2, low, high, data.get_y(filter=True), error, kept)


def _channel_faults(spectrum: Spectrum, recipe: Recipe) -> Iterator[Fault]:
    return channel_faults(
        recipe,
        (spectrum.ebounds_lo, spectrum.ebounds_hi),
        (spectrum.energy_lo, spectrum.energy_hi),
        np.zeros(spectrum.n_bins, dtype=np.intp),
        (spectrum.counts[None], spectrum.background_counts[None]),
        (np.array([spectrum.source_counts]), np.array([spectrum.background_counts_total])),
    )


def _response(found: list[Table], file: str) -> Response | str:
    """Return the matrix, or why it cannot be kept: which detections become rows does not hang on it."""
    try:
        return read_response(found, file)
    except ProductError as error:
        return str(error)


def _compact(
    response: Response | str | None,
    arf: tuple[NDArray[np.float32], ...],
    channels: list[Floats],
    recipe: Recipe,
    bins: int,
) -> NDArray[np.float32] | str | None:
    """Multiply area and matrix and sum them to fixed energies and bins, or say why not."""
    if not isinstance(response, Response):
        return response
    matrix = Matrix.decode({name: getattr(response, name) for name in Response.__slots__})
    low, high, area = (values.astype(np.float64) for values in arf)
    if not matrix.has_energies_of((low, high)):
        return "the energies of ARF and RMF differ"
    return matrix.compact(area, Bins.of(channels[0], channels[1], bin_edges(recipe, bins)), photon_edges(bins))


def _psf_frac(area: Table, energy_lo: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the fractions of the point-spread function; None where they are not there or no such numbers.

    The files of release 2 have none, and no other number of a row depends on them.
    """
    try:
        (column,) = area.columns("PSF_FRAC")
    except ProductError:
        return None
    fraction = column.astype(np.float32)
    return None if any(fraction_faults(energy_lo, fraction)) else fraction


def _ccds(found: list[Table]) -> str | None:
    """Return the chips that the tables of good times are of, in rising order."""
    chips = {table.text("CCD_ID", "") for table in found if content(table.text) == "GTI"}
    return ",".join(sorted(filter(re.compile("[0-9]").fullmatch, chips))) or None


def _present(products: Products, kind: str) -> ProductFile:
    file: ProductFile | None = getattr(products, kind)
    if file is None:
        raise ProductError(f"missing_{kind}", f"the archive has no {kind.upper()} file for {products.detection}")
    return file


def _source_and_background(found: list[Table], file: ProductFile) -> tuple[Table, Table]:
    """Find the two SPECTRUM extensions: Sherpa would take the background for the source where the first is garbled."""
    spectra = {table.text("HDUCLAS2", ""): table for table in found if content(table.text) == "SPECTRUM"}
    number = sum(content(table.text) == "SPECTRUM" for table in found)
    if not spectra:
        raise ProductError("unreadable_pha", f"{file.name}: no table SPECTRUM")
    if list(spectra) == ["TOTAL"] and number == 1:
        raise ProductError("no_background", f"{file.name}: no background spectrum")
    if set(spectra) != {"TOTAL", "BKG"} or number != 2:
        kinds = ", ".join(map(repr, list(spectra)[:4]))
        raise ProductError(
            "wrong_type", f"{file.name}: HDUCLAS2 of {number} spectra is {kinds}, not one TOTAL, one BKG"
        )
    for table in spectra.values():
        table.check_sums()
        check_words(table, _SPECTRUM)
    return spectra["TOTAL"], spectra["BKG"]


def _channels(table: Table) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    names = set(table.names)
    if found := names & _PER_CHANNEL:
        raise ProductError("wrong_type", f"{table.file}: {min(found)} is a column, but not in the catalog's files")
    # GROUPING: 1 begins a group, 0 is none; QUALITY: 0 is good (OGIP 92-007, section 3.3). Either may be a keyword.
    for column, harmless, what in (
        ("GROUPING", (0, 1), "puts channels together before the recipe does"),
        ("QUALITY", (0,), "says that channels are bad"),
    ):
        values = np.unique(table.columns(column)[0]).tolist() if column in names else [table.number(column, 0)]
        if not {*values} <= {*harmless}:
            raise ProductError("wrong_type", f"{table.file}: {column} {what}")
    channel, counts = table.columns("CHANNEL", "COUNTS")
    whole = counts.astype(np.int32)
    if not np.array_equal(whole, counts) or np.any(whole < 0):
        raise ProductError("out_of_range", f"{table.file}: COUNTS are not whole numbers from 0 up")
    return channel, whole


def _data_pha(name: str, table: Table, counts: NDArray[np.int32], energy_scale: DataRMF) -> DataPHA:
    scales = {
        "exposure": table.number("EXPOSURE"),
        "backscal": table.number("BACKSCAL"),
        "areascal": table.number("AREASCAL", 1.0),
    }
    for keyword, value in scales.items():
        if not (np.isfinite(value) and value > 0):
            raise ProductError("out_of_range", f"{table.file}: {keyword.upper()} of {name} is {value}")
    data = DataPHA(name, CHANNELS, counts.astype(np.float64), **scales)
    data.set_rmf(energy_scale)
    data.set_analysis("energy")
    return data


def group_starts(counts: NDArray[Any], least: int) -> list[int]:
    """Return where groups of at least so many counts begin; what is left over at the end is a group, too."""
    summed = np.cumsum(counts.astype(np.int64)).tolist()
    starts, begin, before = [], 0, 0
    while begin < len(summed):
        starts.append(begin)
        end = bisect_left(summed, before + least, begin)
        if end < len(summed):
            before = summed[end]
        begin = end + 1
    return starts


def _group(data: DataPHA, kept: NDArray[np.bool_], least: int) -> None:
    """Group the kept channels to at least so many counts, as Sherpa's ``group_counts``; what is left over is a group.

    The library behind Sherpa's own never frees its arrays: 27 kB a call in 4.19, 35 GB for the whole catalog.
    """
    channels = np.flatnonzero(kept)  # without a gap, since their energies rise
    starts = group_starts(data.counts[channels], least)
    flags = np.where(kept, -1, 0).astype(np.int16)  # 1: a group begins, -1: it goes on, 0: not kept
    flags[channels[starts]] = 1
    data.grouping = flags
    data.group()


@lru_cache(maxsize=8)
def _channel_energies(ebounds_lo: bytes, ebounds_hi: bytes) -> DataRMF:
    """Make a response with the channel energies of the RMF and the smallest matrix that Sherpa accepts.

    One grid serves nearly all detections. Sharing it is safe: only a filter on the response changes it, and setting
    the energy range of the data does not filter the response.
    """
    lo, hi = np.frombuffer(ebounds_lo), np.frombuffer(ebounds_hi)
    one = np.ones(1, dtype=np.uint32)
    return DataRMF(
        "EBOUNDS", lo.size, np.array([0.1]), np.array([0.2]), one, one, one, np.ones(1), offset=1, e_min=lo, e_max=hi
    )
