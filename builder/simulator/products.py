"""An archive of detections that never were, in the catalog's format, for tests, benchmarks and the embedded archive.

Everything carries ``SIM`` in its name and ``ORIGIN = 'SIMULATED'`` in its headers. The spectra of
`builder.simulator.sky` are folded through a response that resembles that of ACIS and drawn from Poisson distributions.
The files are put together card by card: a FITS library would take ten times as long. Their structure is
that of release 2, which the archive serves today, or that of release 1, as of the two real detections inside Sherpa.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.model.errors import ArchiveError
from builder.model.ids import DetectionId
from builder.model.records import BROAD, N_CHANNELS, File
from builder.model.sky import source_name
from builder.simulator.headers import Cards, header, padded, sum32, summed
from builder.simulator.sky import DEAD_TIME, catalog_rows, draw_detections, effective_area, photon_spectrum, time_text

Floats = NDArray[np.float64]

ENERGIES: Floats = 0.3 + 0.01 * np.arange(901, dtype=np.float64)
"""Edges of the ARF's and RMF's energies, keV (mkacisrmf's ``energy=0.3:9.3:0.01`` in the catalog's files)."""

CHANNELS: Floats = np.concatenate([[0.0073], 0.0146 * np.arange(1, N_CHANNELS + 1)])
"""Edges of the PI channels, keV: 14.6 eV each, the first half as wide (EBOUNDS of the catalog's files)."""

_CENTRES = (CHANNELS[:-1] + CHANNELS[1:]) / 2
_MIDDLES = (ENERGIES[:-1] + ENERGIES[1:]) / 2
_MISSION_MJD = 50814.0  # MJDREF of Chandra's clock, 1998-01-01 TT

# The cards that all headers have alike.
_CONSTANT: Cards = {
    "SIMPLE": True, "BITPIX": 8, "NAXIS": 0, "EXTEND": True, "MISSION": "AXAF", "TELESCOP": "CHANDRA",
    "INSTRUME": "ACIS", "ORIGIN": "SIMULATED", "CREATOR": "chandra-spectra simulation", "TIMESYS": "TT",
    "MJDREF": _MISSION_MJD, "TIMEZERO": 0.0, "TIMEUNIT": "s", "GRATING": "NONE", "FILTER": "NONE", "READMODE": "TIMED",
    "DATAMODE": "FAINT", "OBS_MODE": "POINTING", "DATACLAS": "OBSERVED", "EQUINOX": 2000.0, "RADECSYS": "ICRS",
    "DTCOR": DEAD_TIME, "HDUCLASS": "OGIP", "CHANTYPE": "PI", "DETCHANS": N_CHANNELS, "TLMIN1": 1,
    "TLMAX1": N_CHANNELS, "TLMIN4": 1, "TLMAX4": N_CHANNELS, "PIBINWID": 0.0146, "LO_THRES": 1e-6, "AREASCAL": 1.0,
    "CORRSCAL": 0.0, "POISSERR": True, "SYS_ERR": 0.0, "QUALITY": 0, "GROUPING": 0, "CORRFILE": "none",
    "RADESYS": "ICRS",
}  # fmt: skip
_INSTRUMENT = "MISSION TELESCOP INSTRUME"
_CLASS = "HDUCLASS HDUCLAS1 HDUCLAS2 HDUVERS"
_IDS = (
    f"{_INSTRUMENT} OBS_ID OBI_NUM REGIONID OBJECT ORIGIN CREATOR MJD_OBS DATE-OBS DATE-END TIMESYS MJDREF TIMEZERO "
    "TIMEUNIT TSTART TSTOP"
)
_PLACE = (
    "DETNAM GRATING FILTER READMODE DATAMODE OBS_MODE DATACLAS CYCLE EQUINOX RADECSYS RA DEC RA_PNT DEC_PNT ROLL_PNT "
    "ONTIME LIVETIME EXPOSURE DTCOR"
)
_PLACE_2 = (
    "DETNAM GRATING READMODE DATAMODE OBS_MODE DATACLAS CYCLE RADESYS RA_TARG DEC_TARG RA_PNT DEC_PNT ROLL_PNT "
    "ONTIME LIVETIME EXPOSURE DTCOR"
)
"""Cards of release 2, which gives the position of the pointing and of its target, and none of the source."""

_PSF_FRAC = {1: [("psf_frac", ">f8")], 2: []}
"""A column of the effective area in release 1 alone."""

_EXTNAMES: dict[int, dict[str, str]] = {1: {}, 2: {"RSP_MATRIX": "MATRIX"}}
_MASK_SIDE = 32
_SPECTRUM = (
    "AREASCAL CORRSCAL BACKSCAL CHANTYPE DETCHANS TOTCTS POISSERR SYS_ERR QUALITY GROUPING CORRFILE BACKFILE ANCRFILE "
    "RESPFILE"
)
# Of each table the columns with form and unit, its OGIP classes and version, and its cards in their order.
_TABLES = {
    "SPECTRUM": (
        "CHANNEL 1J channel, PI 1D chan, COUNTS 1J count, COUNT_RATE 1D count/s",
        {"HDUCLAS1": "SPECTRUM", "HDUVERS": "1.1.0", "HDUCLAS3": "COUNT"},
        f"{_CLASS} HDUCLAS3 TLMIN1 TLMAX1 {_IDS} {_PLACE} {_SPECTRUM}",
    ),
    "GTI": ("START 1D s, STOP 1D s", {}, f"{_INSTRUMENT} MJDREF TIMESYS TIMEUNIT CCD_ID"),
    "SPECRESP": (
        "ENERG_LO 1E keV, ENERG_HI 1E keV, SPECRESP 1E cm**2",
        {"HDUCLAS1": "RESPONSE", "HDUCLAS2": "SPECRESP", "HDUVERS": "1.1.0"},
        f"{_CLASS} {_IDS} {_PLACE}",
    ),
    "RSP_MATRIX": (
        "ENERG_LO 1E keV, ENERG_HI 1E keV, N_GRP I, F_CHAN PI(2), N_CHAN PI(2), MATRIX PE au",
        {"HDUCLAS1": "RESPONSE", "HDUCLAS2": "RSP_MATRIX", "HDUVERS": "1.3.0", "HDUCLAS3": "REDIST"},
        f"{_CLASS} HDUCLAS3 CHANTYPE DETCHANS TLMIN4 TLMAX4 LO_THRES NUMGRP NUMELT {_IDS} {_PLACE}",
    ),
    "EBOUNDS": (
        "CHANNEL 1J channel, E_MIN 1E keV, E_MAX 1E keV",
        {"HDUCLAS1": "RESPONSE", "HDUCLAS2": "EBOUNDS", "HDUVERS": "1.3.0"},
        f"{_CLASS} {_INSTRUMENT} GRATING ORIGIN CHANTYPE DETCHANS TLMIN1 TLMAX1 PIBINWID",
    ),
}

# Particle background: (keV, counts a channel) and lines (keV, counts), Al K, Si K, Au M, Ni K, Au L; the shapes of the
# same two detections' background spectra.
_BACKGROUND = (([0.15, 0.16, 0.5, 1.8, 2.5, 7.0, 8.0, 9.0, 12.0, 13.3, 14.0, 14.6],
                [0, 12, 16, 13, 6.5, 6.7, 10.5, 10, 14, 10, 3, 0]),
               ([0.15, 0.16, 0.5, 1.8, 2.5, 6.0, 8.0, 10.0, 11.2, 11.3],
                [0, 18, 11, 7, 4, 4, 8, 20, 30, 0]))  # fmt: skip
_BACKGROUND_LINES = [(1.49, 60), (1.74, 60), (2.14, 100), (7.47, 110), (9.71, 400), (11.44, 350)]


@dataclass(frozen=True, slots=True, eq=False)
class _Response:
    """One redistribution matrix, dense for folding, and as the part of the RMF file that all detections share."""

    matrix: Floats
    cards: Cards
    table: bytes
    deflated: bytes


def _gaussian(energy: Floats, centre: Floats | float, sigma: Floats | float) -> Floats:
    """Share of a line in each channel."""
    share: Floats = 0.0146 / np.sqrt(2.0 * np.pi) / sigma * np.exp(-0.5 * ((energy - centre) / sigma) ** 2)
    return share


@cache
def _response(back_illuminated: int, release: int) -> _Response:
    """Make a response with peak, tail, silicon escape and fluorescence, and a shelf, as in the catalog's RMFs."""
    energy, channel = _MIDDLES[:, None], _CENTRES[None, :]
    noise, fano, tail, shelf, dip = ((0.030, 8.3e-4, 0.025, 3e-5, 0.8), (0.040, 4.3e-4, 0.010, 1.5e-4, 0.0))[
        back_illuminated
    ]
    sigma = np.sqrt(noise**2 + fano * energy)

    def peak(centre: Floats | float) -> Floats:
        return _gaussian(channel, centre, sigma)

    below, above_silicon = channel < energy, energy > 1.84
    matrix = (
        peak(energy)
        + np.where(above_silicon, 0.037 / energy * peak(energy - 1.74) + 0.004 / energy * peak(1.74), 0.0)
        + np.where(below, tail * 0.0146 / 0.25 * np.exp(-(energy - channel).clip(0.0) / 0.25), 0.0)
        + np.where(below, shelf / energy * (1.0 - dip * np.exp(-(((channel - 0.7) / 0.2) ** 2))), 0.0)
        + np.where(below, 2e-4 * np.exp(-channel / 0.1), 0.0)
    )
    matrix[(matrix <= 1e-6) | (channel < 0.05)] = 0.0  # LO_THRES of the catalog's RMFs
    matrix /= matrix.sum(axis=1, keepdims=True)
    # Eight bits of mantissa are plenty for a simulation and let gzip take the matrix to a third.
    bits = matrix.astype(np.float32).view(np.uint32)
    single = ((bits + 0x4000) & 0xFFFF8000).view(np.float32)
    rows = np.arange(len(single))
    top = single.argmax(axis=1)
    single[rows, top] = 0.0
    single[rows, top] = 1.0 - single.sum(axis=1, dtype=np.float64)

    descriptors, heap = bytearray(), bytearray()
    groups = longest = 0
    for low, high, row in zip(ENERGIES[:-1], ENERGIES[1:], single, strict=True):
        starts, stops = np.flatnonzero(np.diff(row > 0, prepend=False, append=False)).reshape(-1, 2).T
        values = row[row > 0]
        groups, longest = groups + starts.size, max(longest, values.size)
        descriptors += struct.pack(">ffh", low, high, starts.size)
        for array, kind in ((starts + 1, ">i2"), (stops - starts, ">i2"), (values, ">f4")):
            descriptors += struct.pack(">ii", array.size, len(heap))
            heap += array.astype(kind).tobytes()
    bounds = np.zeros(N_CHANNELS, [("channel", ">i4"), ("low", ">f4"), ("high", ">f4")])
    bounds["channel"], bounds["low"], bounds["high"] = np.arange(1, N_CHANNELS + 1), CHANNELS[:-1], CHANNELS[1:]
    data = padded(bytes(descriptors + heap), b"\0")
    table = data + _table("EBOUNDS", {}, bounds.tobytes(), N_CHANNELS, release)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    elements = int((single > 0).sum())
    cards: Cards = {"PCOUNT": len(heap), "NUMGRP": groups, "NUMELT": elements, "TFORM6": f"PE({longest})"}
    cards |= {"DATASUM": str(sum32(data))}
    return _Response(single.astype(np.float64), cards, table, deflate.compress(table) + deflate.flush())


@cache
def _background_shape(back_illuminated: int) -> Floats:
    """Return the expected background in each channel, 1 in all of 0.5-7 keV."""
    shape: Floats = np.interp(_CENTRES, *_BACKGROUND[back_illuminated])
    for line, counts in _BACKGROUND_LINES:
        shape += counts * _gaussian(_CENTRES, line, np.sqrt(0.035**2 + 6e-4 * line))
    _, *_, highest = _BACKGROUND[back_illuminated][0]
    shape[highest < _CENTRES] = 0.0
    shape /= shape[BROAD].sum()
    return shape


def _table(name: str, values: Cards, data: bytes, rows: int, release: int) -> bytes:
    """Make a binary table of `_TABLES`; the data may be appended afterwards, ``PCOUNT`` bytes of heap among them."""
    columns, classes, cards = _TABLES[name]
    columns += ", PSF_FRAC 1D" if name == "SPECRESP" and _PSF_FRAC[release] else ""
    head: Cards = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 0, "NAXIS2": rows, "PCOUNT": 0}
    extname = _EXTNAMES[release].get(name, name)
    head |= {"GCOUNT": 1, "TFIELDS": columns.count(",") + 1, "EXTNAME": extname, "EXTVER": 1}
    width = 0
    for number, column in enumerate(columns.split(", "), start=1):
        title, form, *unit = column.split()
        width += {"J": 4, "E": 4, "D": 8, "I": 2, "P": 8}[form.lstrip("1")[0]]
        head |= {f"TTYPE{number}": title, f"TFORM{number}": form} | {f"TUNIT{number}": word for word in unit}
    head |= {"NAXIS1": width} | {key: value for key, value in values.items() if key in head}
    known = _CONSTANT | classes | values
    content = padded(data, b"\0")
    if release == 1:
        return header(head | {card: known[card] for card in cards.split()}) + content
    head |= {"HDUNAME": extname, "DATASUM": values["DATASUM"] if not data else str(sum32(content))}
    return summed(head | {card: known[card] for card in cards.replace(_PLACE, _PLACE_2).split()}) + content


@cache
def _mask(version: int) -> bytes:
    """Make the image of a region, as release 2 has it behind each spectrum."""
    y, x = np.mgrid[:_MASK_SIDE, :_MASK_SIDE] - (_MASK_SIDE - 1) / 2
    data = padded((np.hypot(x, y) < _MASK_SIDE / 2).astype(np.uint8).tobytes(), b"\0")
    cards: Cards = {
        "XTENSION": "IMAGE",
        "BITPIX": 8,
        "NAXIS": 2,
        "NAXIS1": _MASK_SIDE,
        "NAXIS2": _MASK_SIDE,
        "PCOUNT": 0,
    }
    cards |= {"GCOUNT": 1, "EXTNAME": "MASK", "EXTVER": version, "HDUNAME": "MASK", "DATASUM": str(sum32(data))}
    return summed(cards) + data


def _gzip(data: bytes, shared: _Response | None = None) -> bytes:
    """Make one gzip member, mtime 0, of `data` and the table of `shared`, whose deflated form is taken as it is."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    # A sync flush ends on a byte boundary without ending the stream: another deflate stream can follow.
    body = deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH if shared else zlib.Z_FINISH)
    crc, size = zlib.crc32(data), len(data)
    if shared:
        body += shared.deflated
        crc, size = zlib.crc32(shared.table, crc), size + len(shared.table)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + struct.pack("<II", crc, size)


class SimulatedArchive:
    """Catalog rows and product files of detections that never were.

    The same (`seed`, detection) always gives the same row and the same bytes, in whatever order they are asked for,
    and whatever `n`.

    Parameters
    ----------
    n : int
        Number of detections (catalog rows).
    first_obsid : int
        Observations are numbered from here on.
    interleaved : float
        Share of observations with alternating exposures: their detections have one row, but a spectrum for either
        cycle; ``e1`` has a third of the exposure and of the counts, ``e2`` the rest.
    release : int
        Whose structure the files have, 2 or 1.

    Attributes
    ----------
    rows : list of dict
        Catalog rows in the order of (obsid, obi, region_id), keyed by the bare names of the catalog's columns. The
        float columns that the catalog may leave empty are None now and then. ``src_cnts_aper_b`` is the expected
        number of source counts: those in the files scatter around it.
    """

    def __init__(
        self, n: int, seed: int = 0, first_obsid: int = 90000, interleaved: float = 0.02, release: int = 2
    ) -> None:
        self.seed, self.release = seed, release
        truth = draw_detections(n, seed, first_obsid, interleaved)
        self.rows: list[dict[str, Any]] = catalog_rows(truth, n, seed)
        self._truth = truth[:n]

    @cached_property
    def _position(self) -> dict[tuple[int, int, int], int]:
        ids = (self._truth[name].tolist() for name in ("obsid", "obi", "region_id"))
        return {key: position for position, key in enumerate(zip(*ids, strict=True))}

    def files(self, detection: DetectionId) -> list[File]:
        """Return the product files of one catalog row: PHA, ARF and RMF, and again for the second of two cycles.

        Raises
        ------
        ArchiveError
            If the archive has no such detection.
        """
        position = self._position.get((detection.obsid, detection.obi, detection.region_id))
        if position is None:
            raise ArchiveError(f"{detection} is not in the simulated archive of {len(self._truth)} detections")
        truth = self._truth[position : position + 1]
        if not truth["interleaved"][0]:
            return _files(truth, self.seed, "", 1.0, self.release)
        first, second = (_files(truth, self.seed, f"e{part}", part / 3, self.release) for part in (1, 2))
        return first + second


def _files(truth: NDArray[np.void], seed: int, cycle: str, share: float, release: int) -> list[File]:
    """Return PHA, ARF and RMF of one spectrum, `truth` of shape (1,), with `share` of its exposure and counts."""
    one = truth[0]
    obsid, obi, region_id, back_illuminated = (
        int(one[name]) for name in ("obsid", "obi", "region_id", "back_illuminated")
    )
    rng = np.random.default_rng((seed, obsid, obi, region_id, ("", "e1", "e2").index(cycle)))
    # Each product is processed for itself: versions differ within one detection now and then.
    versions = rng.integers(1, 4) + (rng.random(3) < 0.15) + (20 if release == 2 else 0)
    stem = f"acisf{obsid:05d}_{obi:03d}N{{:03d}}{cycle and '_' + cycle}_r{region_id:04d}_{{}}3.fits"
    pha, arf, rmf = (stem.format(*pair) for pair in zip(versions, ("pha", "arf", "rmf"), strict=True))

    response = _response(back_illuminated, release)
    area = effective_area(truth, _MIDDLES)[0]
    # Not the @ of a BLAS: its threads cost more than they bring, and its rounding differs between machines.
    expected = np.einsum("e,ec->c", photon_spectrum(truth, ENERGIES)[0] * area, response.matrix)
    expected *= one["counts"] * share / expected[BROAD].sum()
    background = _background_shape(back_illuminated) * (one["background"] * share)
    counts = rng.poisson(expected + background)
    background_counts = rng.poisson(background * one["area_ratio"])

    exposure, mjd = float(one["exposure"]) * share, float(one["mjd"])
    ontime, duration = exposure / DEAD_TIME, float(one["exposure"]) / DEAD_TIME
    start = (mjd - _MISSION_MJD) * 86400.0
    begin, end = (time_text(mjd, after) for after in (0.0, duration))
    place = (
        ("RA", "ra"),
        ("DEC", "dec"),
        ("RA_TARG", "ra_pnt"),
        ("DEC_TARG", "dec_pnt"),
        ("RA_PNT", "ra_pnt"),
        ("DEC_PNT", "dec_pnt"),
        ("ROLL_PNT", "roll"),
    )
    values: Cards = {
        "OBS_ID": str(obsid),
        "OBI_NUM": obi,
        "REGIONID": f"{region_id:04d}",
        "OBJECT": source_name("SIM", float(one["ra"]), float(one["dec"])),
        "MJD_OBS": mjd,
        "DATE-OBS": begin,
        "DATE-END": end,
        "TSTART": start,
        "TSTOP": start + duration,
        "DETNAM": ("ACIS-0123", "ACIS-7")[back_illuminated],
        "CCD_ID": (3, 7)[back_illuminated],
        "CYCLE": "S" if cycle == "e2" else "P",
        **{card: float(one[name]) for card, name in place},
        "ONTIME": ontime,
        "LIVETIME": exposure,
        "EXPOSURE": exposure,
    }

    def spectrum(kind: str, counts: NDArray[np.int64], scale: float, files: list[str], version: int) -> bytes:
        rows = np.zeros(N_CHANNELS, [("channel", ">i4"), ("pi", ">f8"), ("counts", ">i4"), ("rate", ">f8")])
        rows["channel"] = rows["pi"] = np.arange(1, N_CHANNELS + 1)
        rows["counts"], rows["rate"] = counts, counts / exposure
        own: Cards = {"EXTVER": version, "HDUCLAS2": kind, "BACKSCAL": scale, "TOTCTS": int(counts.sum())}
        own |= zip(("BACKFILE", "ANCRFILE", "RESPFILE"), files, strict=True)
        return _table("SPECTRUM", values | own, rows.tobytes(), N_CHANNELS, release)

    primary = header({card: (_CONSTANT | values)[card] for card in f"SIMPLE BITPIX NAXIS EXTEND {_IDS}".split()})
    scale = float(one["area"])
    masks = [_mask(version) if release == 2 else b"" for version in (1, 2)]
    pha_data = (
        primary
        + spectrum("TOTAL", counts, scale, [pha, arf, rmf], 1)
        + _table("GTI", values, struct.pack(">2d", start, start + ontime), 1, release)
        + masks[0]
        + spectrum("BKG", background_counts, scale * float(one["area_ratio"]), ["none"] * 3, 2)
        + masks[1]
    )
    # The source region holds all that is simulated: the fraction of the point-spread function within it is 1.
    areas = np.zeros(area.size, [("low", ">f4"), ("high", ">f4"), ("area", ">f4"), *_PSF_FRAC[release]])
    areas["low"], areas["high"], areas["area"] = ENERGIES[:-1], ENERGIES[1:], area
    for name, _ in _PSF_FRAC[release]:
        areas[name] = 1.0
    matrix = _table("RSP_MATRIX", values | response.cards, b"", area.size, release)
    return [
        File(f"{pha}.gz", _gzip(pha_data)),
        File(f"{arf}.gz", _gzip(primary + _table("SPECRESP", values, areas.tobytes(), area.size, release))),
        File(f"{rmf}.gz", _gzip(primary + matrix, response)),
    ]
