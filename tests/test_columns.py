"""One declaration of the columns, and everything that is derived from it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import yaml
from datasets import ClassLabel, Features, Sequence, Value

from builder.dataset.rows import public
from builder.model.column import CONFIGS, RAGGED, ROW_CONFIGS, Column
from builder.model.columns import ASKED, CATALOG, COLUMNS, EBOUNDS, RESPONSES, SOURCES, binned_columns, columns_of
from builder.model.errors import SettingError
from builder.model.schema import arrow_schema, card_features, features, markdown, public_schema
from tests.goldens import CATALOG_DATASETS

EVERY = (*COLUMNS, *binned_columns(64), *SOURCES, *EBOUNDS, *RESPONSES)


@pytest.mark.parametrize("column", EVERY, ids=lambda column: column.name)
def test_every_column_says_what_it_is_and_where_it_comes_from(column: Column) -> None:
    for text in (column.name, column.meaning, column.source):
        assert text
        assert text == text.strip()
        assert text.isprintable()
        assert "|" not in text  # it goes into a Markdown table
    assert column.configs
    assert set(column.configs) <= set(CONFIGS)


UNITLESS = {
    "response_fault",
    "detection_ids",
    "other_detection_ids",
    "name",
    "detection_id",
    "object_id",
    "obsid",
    "obi",
    "region_id",
    "cycle",
    "instrument",
    "healpix",
    "significance",
    "flux_significance_b",
    "hard_hm",
    "hard_hs",
    "hard_ms",
    "var_prob_b",
    "var_index_b",
    "sat_src_flag",
    "streak_src_flag",
    "conf_code",
    "extent_code",
    "detnam",
    "grating",
    "background_scale",
    "n_bins",
    "ebounds_id",
    "pha_file",
    "arf_file",
    "rmf_file",
    "pha_sha256",
    "arf_sha256",
    "rmf_sha256",
    "ebounds_from",
    "split",
    "several_sources",
    "extent_flag",
    "pileup_flag",
    "likelihood_class",
    "gti_end",
    *(f"hard_{pair}_{limit}" for pair in ("hm", "hs", "ms") for limit in ("lolim", "hilim")),
    "powlaw_gamma",
    "powlaw_gamma_lolim",
    "powlaw_gamma_hilim",
    *(f"{model}_stat" for model in ("powlaw", "bb", "brems", "apec")),
    "ccds",
    "caldb_version",
    "arf.psf_frac",
    "first_channel",
    "n_grp",
    "f_chan",
    "n_chan",
    "matrix",
    "fault",
}


def test_only_names_codes_and_ratios_have_no_unit() -> None:
    assert {column.name for column in EVERY if not column.unit} == UNITLESS


def test_units_are_those_of_the_catalogs_documentation() -> None:
    """CSC 2.1 column descriptions; the spectrum's as Sherpa plots it."""
    units = {column.name: column.unit for column in COLUMNS}
    expected = {
        "ra": "deg",
        "dec": "deg",
        "src_cnts_aper_b": "count",
        "flux_aper_b": "erg s-1 cm-2",
        "theta": "arcmin",
        "flux_bb_aper_b": "erg s-1 cm-2",
        "gti_mjd_obs": "d",
        "livetime": "s",
        "phi": "deg",
        "nh_gal": "10**20 cm-2",
        "powlaw_nh": "10**20 cm-2",
        "powlaw_nh_hilim": "10**20 cm-2",
        "powlaw_ampl": "photon s-1 cm-2 keV-1",
        "flux_powlaw": "erg s-1 cm-2",
        "apec_kt_lolim": "keV",
        "flux_aper_hilim_b": "erg s-1 cm-2",
        "err_ellipse_r0": "arcsec",
        "err_ellipse_ang": "deg",
        "exposure": "s",
        "spectrum.ene_center_bin": "keV",
        "spectrum.flux": "count s-1 keV-1",
        "spectrum.flux_error": "count s-1 keV-1",
        "arf.specresp": "cm2",
    }
    assert {name: units[name] for name in expected} == expected


def test_units_are_valid_fits_units() -> None:
    from astropy import units

    for unit in {column.unit for column in EVERY if column.unit}:
        units.Unit(unit, format="fits")


def test_meanings_say_what_the_catalogs_documentation_says() -> None:
    """CSC 2.1 column descriptions: what is corrected for the aperture, the hardness ratios' signs, confusion's bits."""
    meanings = {column.name: column.meaning for column in COLUMNS}
    for name in ("src_cnts_aper_b", "flux_aper_b", "flux_bb_aper_b"):
        assert "net" in meanings[name] and ", aperture-corrected" in meanings[name]
    assert "not aperture-corrected" in meanings["arf.specresp"]
    bands = {"h": ("hard", "2-7"), "m": ("medium", "1.2-2"), "s": ("soft", "0.5-1.2")}
    for pair in ("hm", "hs", "ms"):
        (one, in_one), (other, in_other) = (bands[letter] for letter in pair)
        assert f"({one} - {other}) / ({one} + {other}) of photon fluxes, -1 to 1" in meanings[f"hard_{pair}"]
        assert f"; {one} {in_one} keV, {other} {in_other} keV" in meanings[f"hard_{pair}"]
    assert "8 source on source" in meanings["conf_code"]
    assert "(TT)" in meanings["gti_mjd_obs"]


def test_names_are_unique() -> None:
    for config in CONFIGS:
        names = [column.name for column in columns_of(config)]
        assert len(names) == len(set(names))
    for columns in (COLUMNS, EBOUNDS, RESPONSES):
        names = [column.hdf5_name for column in columns]
        assert len(names) == len(set(names))
        assert not [name for name in names if "/" in name or "." in name]
    assert "ebounds" not in [column.hdf5_name for column in COLUMNS]  # the group of the grids


def test_the_canonical_hdf5_names_are_there() -> None:
    """The datasets that existing readers of this dataset's HDF5 layout look for, with their types."""
    names = {column.hdf5_name: column for column in COLUMNS}
    spectra = ["spectrum_ene", "spectrum_ene_lo", "spectrum_ene_hi", "spectrum_flux", "spectrum_flux_err"]
    assert {*spectra, *CATALOG_DATASETS, "object_id", "healpix"} <= set(names)
    for name in spectra:
        assert names[name].full_type == pa.list_(pa.float64())
    for name in CATALOG_DATASETS:
        column = names[name]
        assert column.name == name
        expected = {"string": pa.string(), "int32": pa.int32()}.get(column.dtype, pa.float64())
        assert column.full_type == expected
    assert names["object_id"].full_type == names["healpix"].full_type == pa.int64()


def test_the_public_names_and_types_of_the_spectrum() -> None:
    """Readers of the Arrow layout know these names, float32."""
    spectrum = features("spectra").arrow_schema.field("spectrum").type
    fields = {field.name: field.type for field in spectrum}
    assert list(fields) == ["ene_center_bin", "ene_low_bin", "ene_high_bin", "flux", "flux_error"]
    assert {str(kind.value_type) for kind in fields.values()} == {"float"}
    types = {column.name: column.public_type for column in COLUMNS}
    for name in (
        "flux_aper_b",
        "flux_bb_aper_b",
        "flux_significance_b",
        "hard_hm",
        "hard_hs",
        "hard_ms",
        "var_index_b",
        "var_prob_b",
    ):
        assert types[name] == pa.float32()


def test_the_catalog_columns_are_those_of_the_query() -> None:
    """Every column that the dataset takes from the service, from the table that has it."""
    assert {column.name for column in CATALOG} - {column.name for column in ASKED} == {"several_sources"}
    queries = {column.query for column in ASKED}
    assert queries == {
        "m.name",
        "m.ra",
        "m.dec",
        "m.significance",
        "o.obsid",
        "o.obi",
        "o.region_id",
        "o.instrument",
        "o.src_cnts_aper_b",
        "o.flux_significance_b",
        "o.flux_aper_b",
        "o.theta",
        "o.phi",
        "o.flux_bb_aper_b",
        "o.gti_mjd_obs",
        "o.livetime",
        "o.hard_hm",
        "o.hard_hs",
        "o.hard_ms",
        "o.var_prob_b",
        "o.var_index_b",
        "o.sat_src_flag",
        "o.streak_src_flag",
        "o.conf_code",
        "o.extent_code",
        *(f"m.{name}" for name in ("extent_flag", "pileup_flag", "likelihood_class", "nh_gal")),
        *(f"m.err_ellipse_{name}" for name in ("r0", "r1", "ang")),
        "o.gti_end",
        *(f"o.flux_aper_{name}" for name in ("lolim_b", "hilim_b", "s", "m", "h")),
        *(f"o.hard_{pair}_{limit}" for pair in ("hm", "hs", "ms") for limit in ("lolim", "hilim")),
        *(f"o.powlaw_{name}{limit}" for name in ("gamma", "nh", "ampl") for limit in ("", "_lolim", "_hilim")),
        *(f"o.{model}_kt{limit}" for model in ("bb", "brems", "apec") for limit in ("", "_lolim", "_hilim")),
        *(f"o.{model}_stat" for model in ("powlaw", "bb", "brems", "apec")),
        "o.flux_powlaw",
    }
    for column in ASKED:
        assert column.query.partition(".")[2] == column.name
        assert column.length is None


@pytest.mark.parametrize("config", CONFIGS)
def test_the_features_are_the_schema_of_the_public_rows(config: str) -> None:
    scalars = tuple(column for column in COLUMNS if column.length is None)
    schema = {
        "binned": arrow_schema((*scalars, *binned_columns(3))),
        "sources": arrow_schema(SOURCES),
        "ebounds": arrow_schema(EBOUNDS),
        "responses": arrow_schema(RESPONSES),
    }.get(config, arrow_schema(COLUMNS))
    table = public(schema.empty_table(), config, 3)
    declared = features(config, 3).arrow_schema
    assert declared.names == table.schema.names
    for field in table.schema:
        assert declared.field(field.name).type == field.type, field.name
    assert table.cast(declared).schema.equals(declared)


KIND = Column("kind", "int64", "what it is", "a file", own=True, classes=("star", "galaxy: distant", "null", "1"))


@pytest.mark.parametrize("own", [(), (KIND,)], ids=["", "classes"])
@pytest.mark.parametrize("config", CONFIGS)
def test_shards_and_card_say_what_datasets_would_say_of_the_columns(config: str, own: tuple[Column, ...]) -> None:
    expected: dict[str, Any] = {}
    for column in columns_of(config, 3, own):
        value: Any = ClassLabel(names=list(column.classes)) if column.classes else Value(column.dtype)
        for length in reversed(column.shape):
            value = Sequence(value, length=length)
        struct, _, name = column.name.rpartition(".")
        (expected.setdefault(struct, {}) if struct else expected)[name] = value
    shards = public_schema(config, 3, own)
    assert Features.from_arrow_schema(shards) == Features(expected) == features(config, 3, own)
    assert shards.equals(Features(expected).arrow_schema)  # and not only as datasets reads it
    written = yaml.safe_load(yaml.safe_dump(card_features(config, 3, own), sort_keys=False))
    assert Features._from_yaml_list(written) == Features(expected)


def test_every_column_is_in_a_config_and_the_scalars_in_all_of_rows() -> None:
    common = set.intersection(*({column.name for column in columns_of(config)} for config in ROW_CONFIGS))
    assert common == {column.name for column in COLUMNS if column.length is None and column.name != "ebounds_id"}
    names = {column.name for config in CONFIGS for column in columns_of(config)}
    assert names == {column.name for column in EVERY}


def test_an_unknown_config_is_refused() -> None:
    with pytest.raises(SettingError, match=r"'images'.*spectra, counts, binned, sources, ebounds"):
        columns_of("images")


def test_the_store_rounds_nothing() -> None:
    """Catalog values and spectra are kept as float64, whatever the public type."""
    for column in COLUMNS:
        value = column.full_type if column.length is None else column.full_type.value_type
        if column.dtype == "float32" and not column.name.startswith("arf."):
            assert value == pa.float64()
        else:
            assert str(value) == str(pa.type_for_alias(column.dtype))


def test_lists_have_their_declared_length() -> None:
    for column in EVERY:
        if column.length == RAGGED:
            assert pa.types.is_list(column.full_type)
        elif column.length is not None:
            assert column.full_type.list_size == column.public_type.list_size == column.shape[0]


def test_the_markdown_table_has_a_line_a_column() -> None:
    lines = markdown(EVERY).splitlines()
    assert len(lines) == 2 + len(EVERY)
    assert {line.count("|") for line in lines} == {6}
    for line, column in zip(lines[2:], EVERY, strict=True):
        assert line.count("*") == line.count(r"\*")  # else two factors are an emphasis
        cells = [cell.strip().replace(r"\*", "*") for cell in line.strip("|").split("|")]
        shape = "".join(f"[{', '.join(map(str, column.shape))}]" for _ in column.shape[:1]).replace(str(RAGGED), "n")
        assert cells == [f"`{column.name}`", column.dtype + shape, column.unit, column.meaning, column.source]
