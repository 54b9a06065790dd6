"""A sky that never was: simulated sources, their spectra, and the catalog rows that they would get.

The physics is that of a textbook: three families of absorbed spectra, seen through an effective area like that of ACIS
on top of a background. `builder.simulator.products` makes the product files.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from builder.model.column import Column
from builder.model.columns import ASKED
from builder.model.sky import source_name

Floats = NDArray[np.float64]

_MAX_REGIONS = 30

_ERG = 1.602176634e-9
"""In a keV."""

DEAD_TIME = 0.987
"""Live time of a second (DTCOR of the two catalog files that come with Sherpa)."""

_FITTED = 150
"""Net counts from which on the catalog's pipeline fits a spectrum."""

_PAIRS = ("hm", "hs", "ms")


def _more(query: str, dtype: str, meaning: str, unit: str = "", ucd: str = "") -> Column:
    return Column(query[2:], dtype, meaning, "", unit, query=query, nullable=True, ucd=ucd, own=True)


MORE = (
    _more("m.gal_l", "float64", "Galactic longitude of the source", "deg", "pos.galactic.lon"),
    _more("m.gal_b", "float64", "Galactic latitude of the source", "deg", "pos.galactic.lat"),
    _more("o.apec_z", "float64", "redshift of the best fitting absorbed APEC model"),
    _more("o.cnts_aper_b", "int64", "counts in the source region", "counts", "phot.count"),
    _more("o.gti_obs", "string", "start time of the valid data", "", "time.start"),
)
"""Columns that the catalog has, and the dataset takes where they are asked for: a few of some two hundred."""

SERVED = (*ASKED, *MORE)
"""Columns of a simulated catalog."""

# From equatorial (ICRS) to Galactic coordinates: Hipparcos and Tycho Catalogues, ESA SP-1200, volume 1, section 1.5.3.
_GALACTIC = np.array(
    [
        (-0.0548755604, -0.8734370902, -0.4838350155),
        (0.4941094279, -0.4448296300, 0.7469822445),
        (-0.8676661490, -0.1980763734, 0.4559837762),
    ]
)

# What is drawn for each detection. Angles in deg, theta in arcmin, exposure in s, nh in cm-2, temperature and iron
# (equivalent width) in keV; counts and background are those expected in the source region in 0.5-7 keV, and area is
# that of the source region as a fraction of the 8192 x 8192 pixels of the sky plane, like BACKSCAL.
TRUTH = np.dtype(
    [(name, "i4") for name in ("obsid", "obi", "region_id", "source", "family", "back_illuminated", "interleaved")]
    + [(name, "f8") for name in ("ra", "dec", "ra_pnt", "dec_pnt", "roll", "theta", "phi", "mjd", "exposure", "nh")]
    + [(name, "f8") for name in ("photon_index", "temperature", "iron", "counts", "background", "area", "area_ratio")]
)
_POWER_LAW, _PLASMA, _IRON_LINE = range(3)

# Effective area, cm2, of the front-illuminated ACIS-I3 (2005) and the back-illuminated ACIS-S3 (2007), rounded from
# the two ARF files that come with Sherpa.
_AREA_KEV = [0.3, 0.4, 0.5, 0.53, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.55, 1.57, 1.65, 1.75, 1.83,
             1.85, 1.9, 2.0, 2.05, 2.1, 2.15, 2.2, 2.3, 2.4, 2.6, 2.8, 3.0, 3.6, 4.0, 4.4, 4.8, 5.2, 5.6, 6.0, 6.5, 7.0,
             7.5, 8.0, 8.5, 9.0, 9.3]  # fmt: skip
_AREA = ([0.1, 4, 27, 31, 14, 33, 70, 132, 198, 260, 316, 366, 406, 440, 469, 456, 391, 429, 449, 462,
          284, 316, 340, 300, 203, 179, 195, 230, 248, 254, 278, 286, 302, 296, 274, 239, 198, 157, 121, 82, 52,
          32, 19, 12, 8, 5],
         [4, 65, 171, 187, 154, 225, 296, 408, 491, 549, 600, 641, 671, 696, 713, 692, 615, 647, 654, 656,
          644, 656, 650, 571, 379, 327, 350, 398, 416, 406, 429, 429, 433, 424, 400, 360, 309, 251, 204, 152, 101,
          63, 38, 27, 20, 17])  # fmt: skip

# Plasma lines (keV, equivalent width in keV): Mg XII, Si XIII, S XV, Fe XXV; about those of a solar-abundance plasma.
_PLASMA_LINES = [(1.35, 0.03), (1.86, 0.08), (2.46, 0.08), (6.70, 0.5)]
_NEUTRAL_IRON = 6.40

# Morrison & McCammon 1983, ApJ 270, 119, table 2, from 0.284 to 10 keV: lower bound, c0, c1, c2.
_CROSS_SECTION = np.array(
    [(0.284, 78.1, 18.8, 4.3), (0.400, 71.4, 66.8, -51.4), (0.532, 95.5, 145.8, -61.1), (0.707, 308.9, -380.6, 294.0),
     (0.867, 120.6, 169.3, -47.7), (1.303, 141.3, 146.8, -31.5), (1.840, 202.7, 104.7, -17.0), (2.471, 342.7, 18.7, 0),
     (3.210, 352.2, 18.7, 0), (4.038, 433.9, -2.4, 0.75), (7.111, 629.0, 30.9, 0), (8.331, 701.2, 25.2, 0)]
)  # fmt: skip


def absorption_cross_section(energy: Floats) -> Floats:
    """Compute the photoelectric cross-section per hydrogen atom, cm2, at 0.284-10 keV: Morrison & McCammon 1983."""
    _, c0, c1, c2 = _CROSS_SECTION[np.searchsorted(_CROSS_SECTION[:, 0], energy, side="right") - 1].T
    section: Floats = 1e-24 * (c0 + c1 * energy + c2 * energy**2) / energy**3
    return section


def photon_spectrum(sources: NDArray[np.void], edges: Floats) -> Floats:
    """Compute photons in each energy bin, arbitrary norm.

    An absorbed power law ``E^-index``, alone or with a neutral iron line at 6.4 keV, or a plasma: bremsstrahlung
    ``E^-1 (E/kT)^-0.4 exp(-E/kT)`` (the usual power-law approximation of the Gaunt factor) and lines of fixed
    equivalent width. Lines are narrow: all of their photons fall in one bin.

    Parameters
    ----------
    sources : structured ndarray, shape (n,)
        With ``family``, ``photon_index``, ``temperature`` (keV), ``nh`` (cm-2) and ``iron`` (keV).
    edges : ndarray of float64, shape (m + 1,)
        Edges of the bins, keV.

    Returns
    -------
    ndarray of float64, shape (n, m)
    """
    energy, width = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    plasma = sources["family"] == _PLASMA
    index = np.where(plasma, 1.4, sources["photon_index"])
    folding = np.where(plasma, 1.0 / sources["temperature"], 0.0)
    photons: Floats = np.exp(-np.outer(index, np.log(energy)) - np.outer(folding, energy)) * width
    iron = np.where(sources["family"] == _IRON_LINE, sources["iron"], 0.0)
    for line, equivalent_width in [(_NEUTRAL_IRON, iron), *((e, np.where(plasma, w, 0.0)) for e, w in _PLASMA_LINES)]:
        at = int(np.searchsorted(edges, line, side="right")) - 1
        photons[:, at] *= 1.0 + equivalent_width / width[at]
    photons *= np.exp(-np.outer(sources["nh"], absorption_cross_section(energy)))
    return photons


def effective_area(sources: NDArray[np.void], energy: Floats) -> Floats:
    """Compute the area in cm2, shape (n, m), at `energy` in keV: less off axis, and least at high energies."""
    on_axis = np.array([np.interp(energy, _AREA_KEV, area) for area in _AREA])[sources["back_illuminated"]]
    vignetting = 1.0 - np.outer(sources["theta"] / 10.0, 0.18 + 0.035 * energy)
    area: Floats = on_axis * vignetting
    return area


def draw_detections(n: int, seed: int, first_obsid: int, interleaved: float) -> NDArray[np.void]:
    """Draw the truth about at least `n` detections, one a row, in the order of (obsid, obi, region_id).

    Fields of view are observed one to three times, with 5 to 30 detections each time. Every quantity is the inverse
    distribution of its own uniform number, drawn row by row, so a longer archive starts with the shorter one.
    """

    def uniform(level: int, count: int, columns: int) -> Floats:
        return np.random.default_rng((seed, level)).random((count, columns)).T

    u_ra, u_dec, u_visits = uniform(0, n // 5 + 1, 3)
    visits = 1 + (u_visits > 0.6) + (u_visits > 0.85)
    field = np.repeat(np.arange(visits.size), visits)
    u_regions, u_mjd, u_exposure, u_roll, u_chip, u_interleaved, u_obi = uniform(1, field.size, 7)
    regions = 5 + (u_regions * (_MAX_REGIONS - 4)).astype(int)
    # Whole fields are made, and cut only at the end: what is said of a source does not depend on n.
    last_field = field[np.searchsorted(np.cumsum(regions), n)]
    regions = regions[field <= last_field]

    observation = np.repeat(np.arange(regions.size), regions)
    order = np.arange(observation.size) - np.repeat(np.cumsum(regions) - regions, regions)
    truth = np.zeros(observation.size, TRUTH)
    truth["obsid"] = first_obsid + observation
    truth["obi"] = u_obi[observation] > 0.97
    truth["mjd"] = 51500.0 + 8500.0 * u_mjd[observation]
    truth["exposure"] = 5e3 * 20.0 ** u_exposure[observation]
    truth["roll"] = 360.0 * u_roll[observation]
    truth["back_illuminated"] = u_chip[observation] > 0.6
    truth["interleaved"] = u_interleaved[observation] < interleaved
    truth["ra_pnt"] = 360.0 * u_ra[field[observation]]
    truth["dec_pnt"] = np.degrees(np.arcsin(2.0 * u_dec[field[observation]] - 1.0))

    truth["source"] = source = field[observation] * _MAX_REGIONS + order
    of_source = uniform(2, (last_field + 1) * _MAX_REGIONS, 8)[:, source]
    u_theta, u_angle, u_family, u_index, u_kt, u_nh, u_iron, u_counts = of_source
    truth["theta"] = 0.5 + 9.4 * u_theta
    # Each source has its own sector of the field: no two come so close that they would share a name.
    angle = (order * 7 % _MAX_REGIONS + 0.6 * u_angle) / _MAX_REGIONS * 2.0 * np.pi
    theta, dec0 = np.radians(truth["theta"] / 60.0), np.radians(truth["dec_pnt"])
    sin_dec = np.sin(dec0) * np.cos(theta) + np.cos(dec0) * np.sin(theta) * np.cos(angle)
    east = np.arctan2(np.sin(angle) * np.sin(theta) * np.cos(dec0), np.cos(theta) - np.sin(dec0) * sin_dec)
    truth["ra"] = (truth["ra_pnt"] + np.degrees(east)) % 360.0
    truth["dec"] = np.degrees(np.arcsin(sin_dec))
    truth["phi"] = (np.degrees(angle) - truth["roll"]) % 360.0
    truth["family"] = np.searchsorted([0.6, 0.85], u_family)
    truth["photon_index"] = 1.0 + 2.0 * u_index
    truth["temperature"] = 0.5 * 16.0**u_kt
    truth["nh"] = 1e20 * 1e3**u_nh
    truth["iron"] = 0.1 * 10.0**u_iron

    u_region, u_varied, u_background, u_ratio = uniform(3, observation.size, 4)
    truth["region_id"] = 1 + 3 * order + (3 * u_region).astype(int)
    first = np.searchsorted(field, field[observation])
    growth = truth["exposure"] / (5e3 * 20.0 ** u_exposure[first]) * (0.7 + 0.6 * u_varied)
    brightness = u_counts + np.where(first == observation, 0.0, np.log(growth) / np.log(20000.0 / 40.0))
    # Reflected at its ends, the distribution stays log-uniform and nothing piles up there.
    truth["counts"] = 40.0 * (20000.0 / 40.0) ** (1.0 - np.abs(1.0 - np.abs(brightness)))
    # Radius of the source region in pixels: the point-spread function grows with the off-axis angle squared.
    pixels = np.pi * (3.5 + 0.42 * truth["theta"] ** 2) ** 2
    truth["area"] = pixels / 8192.0**2
    truth["area_ratio"] = 5.0 * 10.0**u_ratio
    # About 1.7e-7 counts/s/pixel, as in 4938.0.43. Never above the source: that would not pass the catalog's cuts.
    background = 1e-7 * (0.7 + 2.0 * u_background) * pixels * truth["exposure"]
    truth["background"] = np.minimum(background, truth["counts"])
    return truth


def catalog_rows(truth: NDArray[np.void], n: int, seed: int) -> list[dict[str, object]]:
    """Make the catalog rows of the first `n` detections, by the bare names of the catalog's columns, in its order."""
    edges = np.linspace(0.3, 9.3, 91)
    energy = (edges[:-1] + edges[1:]) / 2
    soft, medium, hard = slice(2, 9), slice(9, 17), slice(17, 67)  # the catalog's 0.5-1.2, 1.2-2 and 2-7 keV
    broad = slice(2, 67)
    flux, ampl = np.empty((2, len(truth)))
    bands, fluxes = np.empty((2, 3, len(truth)))
    for start in range(0, len(truth), 8192):  # in pieces, to bound the memory
        part = slice(start, start + 8192)
        photons = photon_spectrum(truth[part], edges)
        detected = (photons * effective_area(truth[part], energy))[:, broad].sum(axis=1) * truth["exposure"][part]
        ampl[part] = truth["counts"][part] / detected  # of a power law of 1 photon/s/cm2/keV at 1 keV
        photons *= ampl[part, None]
        # No matrix product: its rounding would depend on the number of rows.
        flux[part] = (photons * energy)[:, broad].sum(axis=1) * _ERG
        bands[:, part] = [photons[:, band].sum(axis=1) for band in (soft, medium, hard)]
        fluxes[:, part] = [(photons * energy)[:, band].sum(axis=1) * _ERG for band in (soft, medium, hard)]

    def ratio(harder: int, softer: int) -> Floats:
        value: Floats = (bands[harder] - bands[softer]) / (bands[harder] + bands[softer])
        return value

    background = truth["background"] * (1.0 + 1.0 / truth["area_ratio"])
    significance = truth["counts"] / np.sqrt(truth["counts"] + background)
    highest = np.zeros(truth["source"].max(initial=0) + 1)
    np.maximum.at(highest, truth["source"], significance)
    u = np.random.default_rng((seed, 4)).random((len(truth), 16)).T
    nullable = {
        "significance": highest[truth["source"]],
        "flux_aper_b": flux,
        "phi": truth["phi"],
        "gti_mjd_obs": truth["mjd"],
        "livetime": truth["exposure"],
        "hard_hm": ratio(2, 1),
        "hard_hs": ratio(2, 0),
        "hard_ms": ratio(1, 0),
        "var_prob_b": u[0],
        "var_index_b": np.array([0.0, 1.0, 2.0, 6.0, 8.0])[np.searchsorted([0.5, 0.67, 0.9, 0.99], u[0])],
    }
    columns: dict[str, list[object]] = {
        "name": [source_name("SIM", *place) for place in zip(truth["ra"].tolist(), truth["dec"].tolist(), strict=True)],
        "instrument": ["ACIS"] * len(truth),
        "src_cnts_aper_b": truth["counts"].tolist(),
        "flux_significance_b": significance.tolist(),
        "flux_bb_aper_b": (flux * (0.85 + 0.2 * u[1])).tolist(),
        "sat_src_flag": (u[2] < 0.005).tolist(),
        "streak_src_flag": (u[3] < 0.01).tolist(),
        "conf_code": np.where(u[4] < 0.05, 4, 0).tolist(),
        "extent_code": np.where(u[5] < 0.05, 16, 0).tolist(),
        **{name: truth[name].tolist() for name in ("ra", "dec", "obsid", "obi", "region_id", "theta")},
        "gti_end": list(map(time_text, truth["mjd"].tolist(), (truth["exposure"] / DEAD_TIME).tolist())),
    }
    # What is said of the source is null in all of its rows or in none.
    _, first, source = np.unique(truth["source"], return_index=True, return_inverse=True)
    u[6] = u[6, first][source]
    for chance, (name, values) in zip(u[6:], nullable.items(), strict=True):
        column = values.astype(object)
        column[chance < 0.04] = None
        columns[name] = column.tolist()
    known = {
        name: np.array(columns[name], dtype=float) for name in ("flux_aper_b", *(f"hard_{pair}" for pair in _PAIRS))
    }
    labels = _labels(truth, significance, flux, fluxes, ampl, known)
    for name, values in (labels | _of_source(truth, first, source, columns["extent_code"], seed)).items():
        column = values.astype(object)
        column[values != values] = None
        columns[name] = column.tolist()
    columns["gti_obs"] = list(map(time_text, truth["mjd"].tolist()))
    columns["cnts_aper_b"] = np.rint(truth["counts"] + truth["background"]).astype(int).tolist()
    columns["apec_z"] = [None if kt is None else 0.0 for kt in columns["apec_kt"]]
    columns["gal_l"], columns["gal_b"] = (angle.tolist() for angle in _galactic(truth["ra"], truth["dec"]))
    names = [column.name for column in SERVED]
    return [dict(zip(names, row, strict=True)) for row in zip(*(columns[name][:n] for name in names), strict=True)]


def _labels(
    truth: NDArray[np.void], significance: Floats, flux: Floats, fluxes: Floats, ampl: Floats, known: dict[str, Floats]
) -> dict[str, Floats]:
    """Say what each row was simulated with in the columns of fits and limits; NaN where there is none.

    The values are the truth, not fits to the files. The limits lie as far from it as about 1 sigma of a fit to as
    many counts: of a flux 1 / S/N of it, of a photon index 3 / sqrt(counts). A plasma's temperature is that of its
    continuum, too; no source is a black body. What the catalog does not give has no limits.
    """
    counts = truth["counts"]
    fitted = counts >= _FITTED
    power_law, plasma = (fitted & (truth["family"] != _PLASMA), fitted & (truth["family"] == _PLASMA))
    relative = 1.0 / np.sqrt(counts)
    named = {
        "powlaw_gamma": (truth["photon_index"], 3.0 * relative, power_law),
        "powlaw_nh": (truth["nh"] / 1e20, (truth["nh"] / 1e20 + 5.0) * 3.0 * relative, power_law),
        "powlaw_ampl": (ampl, ampl * 3.0 * relative, power_law),
        "bb_kt": (truth["temperature"], truth["temperature"], np.zeros_like(fitted)),
        "brems_kt": (truth["temperature"], truth["temperature"] * 4.0 * relative, plasma),
        "apec_kt": (truth["temperature"], truth["temperature"] * 4.0 * relative, plasma),
    }
    labels: dict[str, Floats] = {}
    for name, (value, error, there) in named.items():
        limits = ("", value), ("_lolim", np.maximum(value - error, 0.0)), ("_hilim", value + error)
        labels |= {name + limit: np.where(there, number, np.nan) for limit, number in limits}
    for model, there in (("powlaw", power_law), ("bb", named["bb_kt"][2]), ("brems", plasma), ("apec", plasma)):
        labels[f"{model}_stat"] = np.where(there, 1.0, np.nan)
    labels["flux_powlaw"] = np.where(power_law, flux, np.nan)
    labels |= {f"flux_aper_{band}": values for band, values in zip("smh", fluxes, strict=True)}
    for limit, sign in (("lolim", -1.0), ("hilim", 1.0)):
        labels[f"flux_aper_{limit}_b"] = known["flux_aper_b"] * (1.0 + sign / significance)
        for pair in _PAIRS:
            labels[f"hard_{pair}_{limit}"] = np.clip(known[f"hard_{pair}"] + sign * relative, -1.0, 1.0)
    return labels


def _of_source(
    truth: NDArray[np.void], first: NDArray[np.intp], source: NDArray[np.intp], extent: list[object], seed: int
) -> dict[str, NDArray[np.generic]]:
    """Say the same of a source in all of its rows."""
    u = np.random.default_rng((seed, 5)).random((len(truth), 4)).T[:, first]
    extended = np.zeros(len(first), dtype=bool)
    np.logical_or.at(extended, source, np.array(extent) != 0)
    radius = 0.3 + 0.05 * truth["theta"][first] ** 1.5 + 5.0 / truth["counts"][first]
    values: dict[str, NDArray[np.generic]] = {
        "err_ellipse_r0": radius,
        "err_ellipse_r1": radius * (0.7 + 0.3 * u[0]),
        "err_ellipse_ang": 180.0 * u[1],
        "nh_gal": np.minimum(truth["nh"][first] / 1e20, 100.0) * u[2],  # not more than there is in all
        "pileup_flag": u[3] < 0.01,
        "extent_flag": extended,
        "likelihood_class": np.array(["TRUE"] * len(first), dtype=object),
    }
    return {name: value[source] for name, value in values.items()}


def _galactic(ra: Floats, dec: Floats) -> tuple[Floats, Floats]:
    """Turn positions in deg into Galactic longitude and latitude in deg."""
    ra, dec = np.radians(ra), np.radians(dec)
    place = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    # No matrix product: its rounding would depend on the number of rows.
    x, y, z = ((row[:, None] * place).sum(axis=0) for row in _GALACTIC)
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(np.clip(z, -1.0, 1.0)))


def time_text(mjd: float, after: float = 0.0) -> str:
    """Write the time some seconds after a modified Julian date, ISO 8601."""
    return f"{datetime(1858, 11, 17, tzinfo=UTC) + timedelta(days=mjd, seconds=after):%Y-%m-%dT%H:%M:%S}"
