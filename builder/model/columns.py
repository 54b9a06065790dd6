"""Every column, declared once: name, type, shape, unit, meaning and source.

The Parquet features (`builder.model.schema`), the HDF5 datasets with their attributes, the catalog query and the card's
table are all derived from `COLUMNS`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from builder.model.column import CONFIGS, RAGGED, Column
from builder.model.errors import SettingError
from builder.model.records import N_CHANNELS, Trio

if TYPE_CHECKING:
    pass


DEFAULT_BINS = 64
"""Of config ``binned``, where the number is not said."""

SEVERAL_SOURCES = "several_sources"
"""The one column of a catalog that is not asked for."""


def _catalog(table: str, name: str, dtype: str, meaning: str, unit: str = "", *, nullable: bool = True) -> Column:
    words = {"m": "master_source", "o": "observation_source"}
    source = f"CSC {words[table]}.{name}"
    return Column(name, dtype, meaning, source, unit, query=f"{table}.{name}", nullable=nullable)


def _limits(table: str, name: str, pattern: str, meaning: str, unit: str = "") -> tuple[Column, ...]:
    """Declare the 68 per cent limits of a quantity of the catalog, named by `pattern`."""
    return tuple(
        _catalog(table, pattern.format(limit), "float32", f"{which} 68 % limit of {name}, the {meaning}", unit)
        for limit, which in (("lolim", "lower"), ("hilim", "upper"))
    )


def _fit(name: str, meaning: str, unit: str = "") -> tuple[Column, ...]:
    """Declare a parameter of the pipeline's fits, and its limits."""
    return (
        _catalog("o", name, "float32", f"{meaning}, as the catalog's pipeline fits it; null without a fit", unit),
        *_limits("o", name, f"{name}_{{}}", meaning.partition(" of ")[0], unit),
    )


def _statistic(model: str, words: str) -> Column:
    return _catalog(
        "o",
        f"{model}_stat",
        "float32",
        f"statistic of the fit of an absorbed {words}, by degree of freedom; null without a fit",
    )


def _spectrum(field: str, record: str, hdf5: str, meaning: str, source: str, unit: str) -> Column:
    return Column(
        f"spectrum.{field}", "float32", meaning, source, unit, RAGGED, ("spectra",), f"spectrum_{hdf5}", record=record
    )


def _area(field: str, record: str, meaning: str, source: str, unit: str, *, nullable: bool = False) -> Column:
    return Column(
        f"arf.{field}",
        "float32",
        meaning,
        f"{source} of the ARF file",
        unit,
        RAGGED,
        ("counts",),
        f"arf_{field}",
        record=record,
        nullable=nullable,
    )


def _channels(name: str, meaning: str, source: str) -> Column:
    return Column(name, "int32", meaning, source, "count", N_CHANNELS, ("counts",))


COLUMNS: tuple[Column, ...] = (
    # identity
    _catalog("m", "name", "string", "name of the master source; several detections share one"),
    Column("detection_id", "string", "obsid.obi.region_id, with .e1 or .e2 for one cycle of an interleaved observation",
           "obsid, obi, region_id, cycle"),
    Column("object_id", "int64", "the detection as one stable integer",
           "((obsid*1000 + obi)*10000 + region_id)*10 + c; c = 0, 1 (e1), 2 (e2)", record="detection.object_id"),
    _catalog("o", "obsid", "int32", "observation", nullable=False),
    _catalog("o", "obi", "int32", "observation interval", nullable=False),
    _catalog("o", "region_id", "int32", "region of the source in the observation", nullable=False),
    Column("cycle", "string", "e1 (primary) or e2 (secondary exposures) of an interleaved observation, else empty",
           "name of the PHA file", record="detection.cycle"),
    _catalog("o", "instrument", "string", "instrument"),
    _catalog("m", "ra", "float64", "right ascension of the master source, ICRS", "deg"),
    _catalog("m", "dec", "float64", "declination of the master source, ICRS", "deg"),
    Column("healpix", "int64", "HEALPix cell of ra, dec: nside 16, nested", "healpix.ang2pix",
           nullable=True),
    Column("split", "string", "train, validation or test: the same for all rows of a sky cell",
           "hash of healpix, see docs/recipe.md"),
    Column(SEVERAL_SOURCES, "bool",
           "the catalog's answer lists the detection under another source, too: name is the first of them",
           "rows of the catalog with the same obsid, obi, region_id"),
    # catalog
    _catalog("m", "significance", "float32", "highest flux significance of the master source, S/N"),
    _catalog("o", "src_cnts_aper_b", "float32", "net counts of the source, aperture-corrected, 0.5-7 keV", "count"),
    _catalog("o", "flux_significance_b", "float32", "significance of the flux, S/N, 0.5-7 keV"),
    _catalog("o", "flux_aper_b", "float32", "net energy flux, aperture-corrected, 0.5-7 keV", "erg s-1 cm-2"),
    _catalog("o", "theta", "float32", "off-axis angle", "arcmin"),
    _catalog("o", "phi", "float32", "azimuth of the source in the field of view", "deg"),
    _catalog("o", "flux_bb_aper_b", "float32",
             "net energy flux, aperture-corrected, of an absorbed black body of 0.75 keV, 0.5-7 keV", "erg s-1 cm-2"),
    _catalog("o", "gti_mjd_obs", "float64", "start of the good time, modified Julian date (TT)", "d"),
    _catalog("o", "livetime", "float64", "live time of the observation", "s"),
    _catalog("o", "hard_hm", "float32",
             "hardness ratio (hard - medium) / (hard + medium) of photon fluxes, "
             "-1 to 1; hard 2-7 keV, medium 1.2-2 keV"),
    _catalog("o", "hard_hs", "float32",
             "hardness ratio (hard - soft) / (hard + soft) of photon fluxes, "
             "-1 to 1; hard 2-7 keV, soft 0.5-1.2 keV"),
    _catalog("o", "hard_ms", "float32",
             "hardness ratio (medium - soft) / (medium + soft) of photon fluxes, "
             "-1 to 1; medium 1.2-2 keV, soft 0.5-1.2 keV"),
    _catalog("o", "var_prob_b", "float32", "probability that the source varied within the observation"),
    _catalog("o", "var_index_b", "float32", "variability index, 0 (constant) to 10"),
    _catalog("o", "sat_src_flag", "bool", "the source is saturated"),
    _catalog("o", "streak_src_flag", "bool", "the source lies on a readout streak"),
    _catalog("o", "conf_code", "int32",
             "overlap with other detections, a sum of: 1 background on background, 2 background on source, "
             "4 source on background, 8 source on source, 256 on an extended one; null for convex-hull sources, "
             "so look for a bit only where it is above 0"),
    _catalog("o", "extent_code", "int32",
             "extent of the source, bit-coded by band: above 0 where it is extended in any"),
    _catalog("m", "extent_flag", "bool", "the master source is extended in one observation and band or more"),
    _catalog("m", "pileup_flag", "bool", "pile-up exceeds about 10 % in all observations of the master source"),
    _catalog("m", "likelihood_class", "string", "class of the master source's highest detection likelihood: "
             "TRUE, MARGINAL or FALSE"),
    _catalog("m", "err_ellipse_r0", "float32", "major radius of the 95 % error ellipse of the position", "arcsec"),
    _catalog("m", "err_ellipse_r1", "float32", "minor radius of the 95 % error ellipse of the position", "arcsec"),
    _catalog("m", "err_ellipse_ang", "float32", "position angle of the error ellipse's major axis, from north", "deg"),
    _catalog("m", "nh_gal", "float32", "Galactic column density of neutral hydrogen", "10**20 cm-2"),
    _catalog("o", "gti_end", "string", "end of the good time, ISO 8601 (TT)"),
    # labels
    *_limits("o", "flux_aper_b", "flux_aper_{}_b", "net energy flux, 0.5-7 keV", "erg s-1 cm-2"),
    *(_catalog("o", f"flux_aper_{band}", "float32", f"net energy flux, aperture-corrected, {energies} keV",
               "erg s-1 cm-2")
      for band, energies in (("s", "0.5-1.2"), ("m", "1.2-2"), ("h", "2-7"))),
    *(column for pair in ("hm", "hs", "ms")
      for column in _limits("o", f"hard_{pair}", f"hard_{pair}_{{}}", "hardness ratio")),
    *_fit("powlaw_gamma", "photon index of an absorbed power law"),
    *_fit("powlaw_nh", "column density of neutral hydrogen of an absorbed power law", "10**20 cm-2"),
    *_fit("powlaw_ampl", "amplitude at 1 keV of an absorbed power law", "photon s-1 cm-2 keV-1"),
    _statistic("powlaw", "power law"),
    _catalog("o", "flux_powlaw", "float32", "energy flux of the absorbed power law, 0.5-7 keV; null without a fit",
             "erg s-1 cm-2"),
    *_fit("bb_kt", "temperature kT of an absorbed black body", "keV"),
    _statistic("bb", "black body"),
    *_fit("brems_kt", "temperature kT of an absorbed bremsstrahlung", "keV"),
    _statistic("brems", "bremsstrahlung"),
    *_fit("apec_kt", "temperature kT of an absorbed plasma (APEC)", "keV"),
    _statistic("apec", "plasma (APEC)"),
    # measured
    Column("detnam", "string", "detector and the chips that were on, such as ACIS-012367", "DETNAM of the PHA file",
           nullable=True),
    Column("ccds", "string", "chips whose good times the PHA file has, such as 2,3",
           "CCD_ID of the GTI tables of the PHA file", nullable=True),
    Column("grating", "string", "NONE, HETG or LETG; with a grating in the beam the effective area is much smaller",
           "GRATING of the PHA file", nullable=True),
    Column("caldb_version", "string", "version of the calibration database",
           "CALDBVER of the ARF file", nullable=True),
    Column("exposure", "float64", "exposure of the source spectrum", "EXPOSURE of the PHA file", "s"),
    Column("background_scale", "float64", "factor from background counts to counts in the source region",
           "(EXPOSURE*BACKSCAL*AREASCAL) of the source / the same of the background"),
    Column("source_counts", "int64", "counts in the kept energy range, source region", "COUNTS of the PHA file",
           "count"),
    Column("background_counts_total", "int64", "counts in the kept energy range, background region, not scaled",
           "COUNTS of the PHA file's background", "count"),
    Column("n_bins", "int32", "number of bins of the spectrum", "length of spectrum.flux"),
    # provenance
    *(Column(f"{kind}_file", "string", f"name of the {kind.upper()} file as served", "archive", record=f"files.{kind}",
             nullable=kind == "rmf")
      for kind in Trio._fields),
    *(Column(f"{kind}_sha256", "string", f"SHA-256 of the {kind.upper()} file, gunzipped", "archive",
             record=f"sha256.{kind}", nullable=kind == "rmf")
      for kind in Trio._fields),
    Column("ebounds_from", "string", "detection whose RMF file gave the channel energies: with one RMF an observation, "
           "another than this where rmf_file is null", "archive", record="ebounds_source"),
    # spectrum
    _spectrum("ene_center_bin", "energy", "ene", "centre of the bin", "(low + high) / 2", "keV"),
    _spectrum("ene_low_bin", "energy_lo", "ene_lo", "low edge of the bin", "Sherpa data plot, xlo", "keV"),
    _spectrum("ene_high_bin", "energy_hi", "ene_hi", "high edge of the bin", "Sherpa data plot, xhi", "keV"),
    _spectrum("flux", "rate", "flux",
              "background-subtracted count rate density; the name is historic, it is no energy flux",
              "Sherpa data plot, y", "count s-1 keV-1"),
    _spectrum("flux_error", "rate_error", "flux_err", "error of the count rate density", "Sherpa chi2gehrels",
              "count s-1 keV-1"),
    # channels
    _channels("counts", "counts in PI channels 1 to 1024, source region", "COUNTS of the PHA file"),
    _channels("background_counts", "counts in PI channels 1 to 1024, background region, not scaled",
              "COUNTS of the PHA file's background"),
    _area("energy_lo", "arf_energy_lo", "low edge of the effective area's bin", "ENERG_LO", "keV"),
    _area("energy_hi", "arf_energy_hi", "high edge of the effective area's bin", "ENERG_HI", "keV"),
    _area("specresp", "specresp", "effective area, not aperture-corrected", "SPECRESP", "cm2"),
    _area("psf_frac", "psf_frac", "fraction of the point-spread function in the region, which can exceed 1; "
          "null where the file has none", "PSF_FRAC", "", nullable=True),
    Column("ebounds_id", "string", "channel energy grid: the key of config ebounds",
           "16 digits of the SHA-256 of E_MIN, E_MAX of the RMF file", configs=("counts",)),
)  # fmt: skip
"""All columns of a spectrum, in their order."""

EBOUNDS: tuple[Column, ...] = (
    Column("ebounds_id", "string", "key of the channel energy grid", "16 digits of the SHA-256 of E_MIN, E_MAX",
           configs=("ebounds",)),
    Column("energy_lo", "float64", "nominal low energy of PI channels 1 to 1024", "E_MIN of the RMF file", "keV",
           N_CHANNELS, ("ebounds",)),
    Column("energy_hi", "float64", "nominal high energy of PI channels 1 to 1024", "E_MAX of the RMF file", "keV",
           N_CHANNELS, ("ebounds",)),
)  # fmt: skip
"""The columns of config ``ebounds``."""


_KEYS = ("rmf_sha256", "ebounds_id")


def _response(name: str, dtype: str, meaning: str, source: str, unit: str = "", length: int | None = RAGGED) -> Column:
    return Column(name, dtype, meaning, source, unit, length, ("responses",), nullable=name not in _KEYS)


RESPONSES: tuple[Column, ...] = (
    _response("rmf_sha256", "string", "key of the response: SHA-256 of the RMF file, gunzipped", "archive",
              length=None),
    _response("ebounds_id", "string", "channel energy grid: the key of config ebounds",
              "16 digits of the SHA-256 of E_MIN, E_MAX", length=None),
    _response("first_channel", "int32", "number of the first channel, from which f_chan counts", "TLMIN of F_CHAN",
              length=None),
    _response("energy_lo", "float64", "low edge of the photon energy bin", "ENERG_LO of the RMF file", "keV"),
    _response("energy_hi", "float64", "high edge of the photon energy bin", "ENERG_HI of the RMF file", "keV"),
    _response("n_grp", "int32", "groups of channels of each photon energy bin", "N_GRP of the RMF file"),
    _response("f_chan", "int32", "first channel of each group, one photon energy after the other",
              "F_CHAN of the RMF file"),
    _response("n_chan", "int32", "channels of each group", "N_CHAN of the RMF file"),
    _response("matrix", "float32", "probabilities of the groups' channels, one group after the other",
              "MATRIX of the RMF file"),
    _response("fault", "string", "why the RMF's matrix could not be kept: all but the keys is null then, and this else",
              "what reading the RMF file met", length=None),
)  # fmt: skip
"""The columns of config ``responses``."""

_PER_SOURCE = ("name", "ra", "dec", "healpix", "split")
_LISTED = "all detections of the source in the dataset are in one of the two lists"


def _source(name: str, dtype: str, meaning: str, source: str, unit: str = "", length: int | None = None) -> Column:
    return Column(name, dtype, meaning, source, unit, length, ("sources",))


SOURCES: tuple[Column, ...] = (
    *(dataclasses.replace(column, configs=("sources",)) for column in COLUMNS
      if column.name in _PER_SOURCE or column.query.startswith("m.")),
    _source("detection_ids", "string", f"the detections that are summed; {_LISTED}", "see docs/recipe.md",
            length=RAGGED),
    _source("other_detection_ids", "string", "the detections that are not summed, as their grating or energies differ",
            "see docs/recipe.md", length=RAGGED),
    dataclasses.replace(
        _source("first_mjd_obs", "float64", "start of the first good time of the summed detections, modified Julian "
                "date (TT)", "least gti_mjd_obs", "d"), nullable=True),
    dataclasses.replace(
        _source("last_mjd_obs", "float64", "start of the last good time of the summed detections, modified Julian "
                "date (TT)", "greatest gti_mjd_obs", "d"), nullable=True),
    dataclasses.replace(
        _source("grating", "string", "NONE, HETG or LETG, the same in all summed detections; NONE where there is one "
                "without a grating", "GRATING of the PHA files"), nullable=True),
    _source("exposure", "float64", "exposure of the summed detections together", "sum of exposure", "s"),
    _source("background_scale", "float64", "factor from background counts to counts in the source regions",
            "mean of background_scale, weighted by background_counts_total", ""),
    _source("source_counts", "int64", "counts in the kept energy range, source regions", "sum of source_counts",
            "count"),
    _source("background_counts_total", "int64", "counts in the kept energy range, background regions, not scaled",
            "sum of background_counts_total", "count"),
    dataclasses.replace(
        _source("rmf_sha256", "string", "response of the summed detection with the longest exposure of those that have "
                "one: those of the others differ from it", "archive"), nullable=True),
    _source("counts", "int32", "counts in PI channels 1 to 1024, source regions", "sum of counts", "count",
            N_CHANNELS),
    _source("background_counts", "int32", "counts in PI channels 1 to 1024, background regions, not scaled",
            "sum of background_counts", "count", N_CHANNELS),
    _source("arf.energy_lo", "float32", "low edge of the effective area's bin", "ENERG_LO of the ARF files", "keV",
            RAGGED),
    _source("arf.energy_hi", "float32", "high edge of the effective area's bin", "ENERG_HI of the ARF files", "keV",
            RAGGED),
    _source("arf.specresp", "float32", "effective area, mean weighted by exposure, not aperture-corrected",
            "SPECRESP of the ARF files", "cm2", RAGGED),
    _source("ebounds_id", "string", "channel energy grid of all summed detections: the key of config ebounds",
            "16 digits of the SHA-256 of E_MIN, E_MAX of the RMF file"),
)  # fmt: skip
"""The columns of config ``sources``."""

ASKED: tuple[Column, ...] = tuple(column for column in COLUMNS if column.query)
"""The columns that are asked for."""

CATALOG: tuple[Column, ...] = tuple(column for column in COLUMNS if column.query or column.name == SEVERAL_SOURCES)
"""The columns of a catalog: what was asked for, and what its rows together tell."""


def compact_columns(bins: int) -> tuple[Column, ...]:
    """Return the columns of config ``binned`` that are made of the response matrix, when a spectrum is reduced."""
    return (
        Column("response", "float32", "effective area times matrix: the counts in each bin are exposure times the sum "
               "over the photon energies of photons cm-2 s-1 times this", "ARF and RMF file, see docs/recipe.md", "cm2",
               (2 * bins, bins), ("binned",), nullable=True),
        Column("response_fault", "string", "why there is no response: it is null then, and this else",
               "what reading the RMF file met", configs=("binned",), nullable=True),
    )  # fmt: skip


def binned_columns(bins: int) -> tuple[Column, ...]:
    """Return the columns of config ``binned`` beside the scalars, for a number of bins."""

    def column(name: str, dtype: str, meaning: str, source: str, unit: str, length: int = bins) -> Column:
        return Column(name, dtype, meaning, source, unit, length, ("binned",))

    photons = "logarithmic, 0.3 to 9.3 keV"
    return (
        column("counts", "int32", "counts in the bin, source region", "COUNTS of the PHA file", "count"),
        column("background_counts", "int32", "counts in the bin, background region, not scaled",
               "COUNTS of the PHA file's background", "count"),
        column("energy_lo", "float32", "low edge of the bin's first channel", "E_MIN of the RMF file", "keV"),
        column("energy_hi", "float32", "high edge of the bin's last channel", "E_MAX of the RMF file", "keV"),
        column("effective_area", "float32", "effective area, mean over the bin, not aperture-corrected",
               "SPECRESP of the ARF file", "cm2"),
        column("photon_energy_lo", "float32", "low edge of the photon energies of response", photons, "keV", 2 * bins),
        column("photon_energy_hi", "float32", "high edge of the photon energies of response", photons, "keV", 2 * bins),
        *compact_columns(bins),
    )  # fmt: skip


def columns_of(config: str, bins: int = DEFAULT_BINS, own: tuple[Column, ...] = ()) -> tuple[Column, ...]:
    """Return the columns of one configuration; SettingError for an unknown one.

    Parameters
    ----------
    bins : int
        Number of bins of config ``binned``.
    own : tuple of Column
        Columns besides those of every dataset, see `builder.model.own`; they come last.
    """
    if config not in CONFIGS:
        raise SettingError(f"unknown config {config!r}: choose one of {', '.join(CONFIGS)}")
    every = (*COLUMNS, *binned_columns(bins), *SOURCES, *EBOUNDS, *RESPONSES, *own)
    return tuple(column for column in every if config in column.configs)


def columns_when(subtract: bool) -> tuple[Column, ...]:
    """Return `COLUMNS` with their meaning where the background is subtracted, as it is by default, or is not."""
    return (
        COLUMNS
        if subtract
        else tuple(
            dataclasses.replace(column, meaning=column.meaning.replace("background-subtracted ", ""))
            for column in COLUMNS
        )
    )


def configs_with(responses: bool, bins: int = 0, sources: bool = False) -> tuple[str, ...]:
    """Return the configurations of a folder that has the responses, so many bins and the sources, or has them not."""
    there = {"responses": responses, "binned": bins > 0, "sources": sources}
    return tuple(config for config in CONFIGS if there.get(config, True))
