"""The reduction gives the numbers of Sherpa's session to the last bit, and a reason code for whatever it cannot use."""

from __future__ import annotations

import builtins
import gzip
import hashlib
import io
import logging
import resource
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import example, given
from hypothesis import strategies as st

from builder.model.ids import DetectionId
from builder.model.records import N_CHANNELS, REASONS, File, Products, Rejection, Response, Spectrum
from builder.model.settings import Recipe
from builder.reduce import ogip
from builder.reduce.energies import _warn_of_cycle
from builder.reduce.spectrum import reduce_products
from tests import fits_files as ff
from tests.fits_files import DETECTION, KINDS, REAL, poisson, products, real_products, stable, with_file
from tests.goldens import GOLDENS

BRIGHT, FAINT = REAL
DEFAULT = Recipe()


@pytest.fixture
def ui() -> Iterator[Any]:
    """Sherpa's session API, empty and silent, and empty again afterwards."""
    logger = logging.getLogger("sherpa")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    import sherpa.astro.ui

    sherpa.astro.ui.clean()
    yield sherpa.astro.ui
    sherpa.astro.ui.clean()
    logger.setLevel(level)


def session(ui: Any, files: Products, recipe: Recipe, folder: Path) -> dict[str, np.ndarray]:
    """The oracle: the same files, reduced by the documented session commands."""
    for file in (files.pha, files.arf, files.rmf):
        assert file is not None
        (folder / file.name).write_bytes(file.data)
    ui.clean()
    ui.load_pha(str(folder / files.pha.name))  # type: ignore[union-attr]
    assert ui.list_bkg_ids() == [1]
    assert ui.get_analysis() == "energy"
    ui.ignore(None, recipe.energy_min)
    ui.ignore(recipe.energy_max, None)
    if recipe.subtract:
        ui.subtract()
    if recipe.group:
        ui.group_counts(recipe.min_counts)
    plot = ui.get_data_plot()
    arrays = {"energy": plot.x, "energy_lo": plot.xlo, "energy_hi": plot.xhi, "rate": plot.y, "rate_error": plot.yerr}
    found = {name: np.array(array) for name, array in arrays.items()}
    ui.clean()
    return found


def assert_equal_to_the_bit(spectrum: Spectrum | Rejection, expected: dict[str, np.ndarray]) -> None:
    assert isinstance(spectrum, Spectrum), spectrum
    for name, array in expected.items():
        found = getattr(spectrum, name)
        assert found.dtype == np.float64
        assert array.dtype == np.float64
        assert np.array_equal(found, array), name


def reduced(files: Products, recipe: Recipe = DEFAULT) -> Spectrum:
    outcome = reduce_products(files, recipe)
    assert isinstance(outcome, Spectrum), outcome
    return outcome


def rejected(files: Products, reason: str, word: str = "", recipe: Recipe = DEFAULT) -> Rejection:
    outcome = reduce_products(files, recipe, "https://archive.example/retrieve")
    assert isinstance(outcome, Rejection)
    assert outcome.reason == reason, outcome.message
    assert word in outcome.message
    assert "\n" not in outcome.message
    assert outcome.detection == files.detection
    assert outcome.stage == ("fetch" if reason.startswith("missing_") else "reduce")
    assert outcome.url == "https://archive.example/retrieve"
    return outcome


def gzipped(files: Products) -> Products:
    packed: dict[str, Any] = {
        kind: File(f"{file.name}.gz", gzip.compress(file.data, mtime=0))
        for kind in KINDS
        if (file := getattr(files, kind)) is not None
    }
    return replace(files, **packed)


# --- equality with the session ---


@pytest.mark.parametrize("pack", [lambda files: files, gzipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("detection", REAL, ids=str)
def test_real_detection_equals_the_session(ui: Any, tmp_path: Path, detection: DetectionId, pack: Any) -> None:
    files = real_products(detection)
    assert_equal_to_the_bit(reduced(pack(files)), session(ui, files, DEFAULT, tmp_path))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(0.3, 7.0, 1),
        Recipe(1.0, 2.0, 20),
        Recipe(0.0, 20.0, 5),
        Recipe(subtract=False),
        Recipe(group=False),
        Recipe(2.0, 10.0, 15, subtract=False, group=False),
        Recipe(min_counts=100_000),  # more than there are: one bin
    ],
    ids=lambda r: f"{r.energy_min:g}-{r.energy_max:g}-{r.min_counts}-{r.subtract}-{r.group}",
)
@pytest.mark.parametrize("detection", REAL, ids=str)
def test_real_detection_equals_the_session_with_other_recipes(
    ui: Any, tmp_path: Path, detection: DetectionId, recipe: Recipe
) -> None:
    files = real_products(detection)
    assert_equal_to_the_bit(reduced(files, recipe), session(ui, files, recipe, tmp_path))


@pytest.mark.parametrize("detection", REAL, ids=str)
def test_golden_numbers_of_the_real_detections(detection: DetectionId) -> None:
    """Where the numbers are from: tests/goldens.py."""
    golden = GOLDENS[str(detection)]
    spectrum = reduced(real_products(detection))
    assert spectrum.n_bins == golden["n_bins"]
    assert spectrum.energy_lo[0] == pytest.approx(golden["low"], abs=5e-5)
    assert spectrum.rate[:3] == pytest.approx(golden["rate"], rel=1e-6)
    if golden["error"] is not None:
        assert spectrum.rate_error[:3] == pytest.approx(golden["error"], rel=1e-6)


seeds = st.integers(0, 2**32 - 1)
exposures, areas = st.floats(1.0, 1e6), st.floats(1e-4, 1.0)
source_scales = st.fixed_dictionaries({"EXPOSURE": exposures, "BACKSCAL": areas})
background_scales = st.fixed_dictionaries({"EXPOSURE": exposures, "BACKSCAL": areas, "AREASCAL": st.floats(0.1, 10.0)})
levels = st.sampled_from([0.02, 0.2, 2.0, 30.0, 3000.0])
recipes = st.builds(
    lambda low, width, counts, subtract, group: Recipe(low, min(low + width, 20.0), counts, subtract, group),
    st.one_of(st.just(0.5), st.floats(0.0, 5.0)),
    st.one_of(st.just(7.5), st.floats(0.05, 15.0)),
    st.one_of(st.just(5), st.integers(1, 200)),
    st.booleans(),
    st.booleans(),
)


@stable(60)
@given(
    seed=seeds,
    level=levels,
    background=st.one_of(st.just(0.0), levels),
    source_cards=source_scales,
    background_cards=background_scales,
    edge=st.sampled_from([0.0, 0.5]),
    recipe=st.one_of(st.just(DEFAULT), recipes),
    double=st.booleans(),
)
def test_simulated_spectra_equal_the_session(
    ui_of_module: Any,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    level: float,
    background: float,
    source_cards: dict[str, float],
    background_cards: dict[str, float],
    edge: float,
    recipe: Recipe,
    double: bool,
) -> None:
    """Faint or bright, with any scales, any recipe, no background counts, energies in either precision."""
    rng = np.random.default_rng(seed)
    counts, background_counts = (poisson(mean, seed + i, edge) for i, mean in enumerate((level, background)))
    bounds = 0.0146 * np.arange(N_CHANNELS + 1) * rng.uniform(0.9, 1.1) + 0.001
    response = ff.rmf(e_min=bounds[:-1], e_max=bounds[1:], code="D") if double else ff.plain_rmf()
    content = ff.pha(counts, background_counts, source_cards=source_cards, background_cards=background_cards)
    files = products(pha=content, rmf=response)
    outcome = reduce_products(files, recipe)
    with fits.open(io.BytesIO(response)) as hdus:
        low, high = (hdus["EBOUNDS"].data[name].astype(float) for name in ("E_MIN", "E_MAX"))
    if isinstance(outcome, Rejection):
        assert outcome.reason == "no_counts"
        assert not counts[(low >= recipe.energy_min) & (high <= recipe.energy_max)].any()
        return
    folder = tmp_path_factory.mktemp("session")
    assert_equal_to_the_bit(outcome, session(ui_of_module, files, recipe, folder))
    assert np.array_equal(outcome.counts, counts)
    assert np.array_equal(outcome.background_counts, background_counts)


@pytest.fixture(scope="module")
def ui_of_module() -> Iterator[Any]:
    """As `ui`, for tests that run many examples; each example clears the session itself."""
    logger = logging.getLogger("sherpa")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    import sherpa.astro.ui

    yield sherpa.astro.ui
    sherpa.astro.ui.clean()
    logger.setLevel(level)


# --- what else a spectrum carries ---


@stable(30)
@given(source=source_scales, background=background_scales, seed=seeds, subtract=st.booleans())
def test_background_scale_is_the_ratio_of_the_three_scales(
    source: dict[str, float], background: dict[str, float], seed: int, subtract: bool
) -> None:
    content = ff.pha(poisson(9.0, seed), poisson(4.0, seed + 1), source_cards=source, background_cards=background)
    spectrum = reduced(products(pha=content), Recipe(subtract=subtract))
    assert spectrum.exposure == pytest.approx(source["EXPOSURE"], rel=1e-12)  # astropy rounds it to fit a card
    expected = np.prod(list(source.values())) / np.prod(list(background.values()))
    assert spectrum.background_scale == pytest.approx(expected, rel=1e-12)


def test_areascal_is_one_where_the_header_has_none() -> None:
    content = ff.pha(poisson(9.0), poisson(4.0), source_cards={"AREASCAL": None}, background_cards={"AREASCAL": None})
    assert reduced(products(pha=content)).background_scale == pytest.approx(0.1, rel=1e-12)


def test_the_subtracted_rate_is_source_less_scaled_background() -> None:
    """Ungrouped, in each channel: (source - scale x background) / exposure / width, and Gehrels' errors in squares."""
    files = real_products(FAINT)
    spectrum = reduced(files, Recipe(group=False))
    kept = (spectrum.ebounds_lo >= 0.5) & (spectrum.ebounds_hi <= 8.0)
    source, background = spectrum.counts[kept], spectrum.background_counts[kept]
    width = spectrum.ebounds_hi[kept] - spectrum.ebounds_lo[kept]
    net = source - spectrum.background_scale * background
    assert spectrum.rate == pytest.approx(net / spectrum.exposure / width, rel=1e-9)
    gehrels = [1 + np.sqrt(0.75 + counts) for counts in (source, background)]  # Gehrels 1986, equation 7
    error = np.hypot(gehrels[0], spectrum.background_scale * gehrels[1])
    assert spectrum.rate_error == pytest.approx(error / spectrum.exposure / width, rel=1e-9)


@pytest.mark.parametrize("recipe", [DEFAULT, Recipe(1.0, 3.0, subtract=False), Recipe(group=False)])
@pytest.mark.parametrize("detection", REAL, ids=str)
def test_the_kept_counts_are_those_of_channels_within_the_range(detection: DetectionId, recipe: Recipe) -> None:
    """Both totals, against the columns as astropy reads them."""
    spectrum = reduced(real_products(detection), recipe)
    with (
        fits.open(ff.REAL_FOLDER / f"{REAL[detection]}_pha3.fits") as hdus,
        fits.open(ff.REAL_FOLDER / f"{REAL[detection]}_rmf3.fits") as response,
    ):
        bounds = response["EBOUNDS"].data
        kept = (bounds["E_MIN"] >= recipe.energy_min) & (bounds["E_MAX"] <= recipe.energy_max)
        spectra = [hdu for hdu in hdus if hdu.name == "SPECTRUM"]
        assert spectrum.source_counts == spectra[0].data["COUNTS"][kept].sum() > 0
        assert spectrum.background_counts_total == spectra[1].data["COUNTS"][kept].sum() > 0
        assert np.array_equal(spectrum.counts, spectra[0].data["COUNTS"])
        assert np.array_equal(spectrum.background_counts, spectra[1].data["COUNTS"])
        assert np.array_equal(spectrum.ebounds_lo, bounds["E_MIN"].astype(float))
        assert np.array_equal(spectrum.ebounds_hi, bounds["E_MAX"].astype(float))
    with fits.open(ff.REAL_FOLDER / f"{REAL[detection]}_arf3.fits") as hdus:
        for name in ("ENERG_LO", "ENERG_HI", "SPECRESP"):
            found = getattr(spectrum, {"SPECRESP": "specresp"}.get(name) or name.replace("ENERG", "arf_energy").lower())
            assert np.array_equal(found, hdus["SPECRESP"].data[name])


@pytest.mark.parametrize("detection", REAL, ids=str)
def test_gzip_changes_nothing_but_the_names(detection: DetectionId) -> None:
    """The checksums too: they are those of the inflated bytes."""
    files = real_products(detection)
    plain, packed = reduced(files), reduced(gzipped(files))
    for name in Spectrum.__dataclass_fields__:
        if name != "files":
            assert np.array_equal(getattr(plain, name), getattr(packed, name)), name
    names = [getattr(files, kind).name for kind in KINDS]
    assert plain.files == tuple(names)
    assert packed.files == tuple(f"{name}.gz" for name in names)
    assert plain.sha256 == tuple(hashlib.sha256(getattr(files, kind).data).hexdigest() for kind in KINDS)


@pytest.mark.parametrize(("detection", "detnam"), [(BRIGHT, "ACIS-23"), (FAINT, "ACIS-7")], ids=str)
def test_the_chips_and_the_grating_are_those_of_the_header(detection: DetectionId, detnam: str) -> None:
    spectrum = reduced(real_products(detection))
    assert (spectrum.detnam, spectrum.grating) == (detnam, "NONE")


@pytest.mark.parametrize(("detection", "ccds"), [(BRIGHT, "2,3"), (FAINT, "7")], ids=str)
def test_chips_calibration_and_fraction_are_those_of_the_files(detection: DetectionId, ccds: str) -> None:
    """As astropy reads CCD_ID of the GTI extensions, CALDBVER and PSF_FRAC; the background's times are not counted."""
    files = real_products(detection)
    assert files.pha is not None and files.arf is not None
    spectrum = reduced(files)
    with fits.open(io.BytesIO(files.pha.data)) as pha, fits.open(io.BytesIO(files.arf.data)) as arf:
        chips = sorted({hdu.header["CCD_ID"] for hdu in pha if hdu.name == "GTI"})
        assert spectrum.ccds == ccds == ",".join(map(str, chips))
        assert spectrum.caldb_version == arf["SPECRESP"].header["CALDBVER"] == "3.5.0"
        np.testing.assert_array_equal(spectrum.psf_frac, arf["SPECRESP"].data["PSF_FRAC"].astype(np.float32))


@pytest.mark.parametrize("fault", [np.nan, -0.1, 1e9])
def test_a_fraction_that_is_none_is_no_reason_to_reject(fault: float) -> None:
    assert with_fraction(1.02).psf_frac is not None
    assert with_fraction(fault).psf_frac is None


def with_fraction(value: float) -> Spectrum:
    """The faint detection with another fraction of the point-spread function in one energy."""
    files = real_products(FAINT)
    assert files.arf is not None
    with fits.open(io.BytesIO(files.arf.data)) as hdus:
        hdus["SPECRESP"].data["PSF_FRAC"][7] = value
        for keyword in ("CHECKSUM", "DATASUM"):
            hdus["SPECRESP"].header.pop(keyword, None)
        changed = io.BytesIO()
        hdus.writeto(changed)
    return reduced(with_file(files, "arf", File(files.arf.name, changed.getvalue())))


@pytest.mark.parametrize("value", [None, "", 7, True], ids=str)
def test_chips_and_grating_that_the_header_does_not_name_are_null(value: Any) -> None:
    content = ff.pha(
        poisson(5.0),
        poisson(3.0),
        source_cards={"DETNAM": value, "GRATING": value},
        background_cards={"DETNAM": "ACIS-7", "GRATING": "HETG"},
    )
    spectrum = reduced(products(pha=content))
    assert (spectrum.detnam, spectrum.grating) == (None, None)


def one_spectrum(**extra: list[fits.Column]) -> bytes:
    """A PHA file with these columns besides, in the extension TOTAL or BKG."""
    first, second = (
        ff.spectrum(kind, poisson(5.0, seed), extra=extra.get(kind, ())) for seed, kind in enumerate(("TOTAL", "BKG"))
    )
    return ff.fits_bytes(first, ff.gti(), second)


def integers(name: str, *values: int) -> fits.Column:
    return fits.Column(name, "I", array=np.resize(values, N_CHANNELS))


@pytest.mark.parametrize(
    "columns",
    [
        [],
        [integers("GROUPING", 0)],
        [integers("GROUPING", 1)],
        [integers("GROUPING", 0, 1, 1)],
        [integers("GROUPING", 1), integers("QUALITY", 0)],
        [fits.Column(name, "E", array=np.full(N_CHANNELS, 0.5)) for name in ("STAT_ERR", "SYS_ERR", "RATE")],
    ],
    ids=lambda columns: " ".join(column.name for column in columns),
)
def test_columns_that_change_nothing_equal_the_session(ui: Any, tmp_path: Path, columns: list[fits.Column]) -> None:
    files = products(pha=one_spectrum(TOTAL=columns, BKG=columns))
    assert_equal_to_the_bit(reduced(files), session(ui, files, DEFAULT, tmp_path))


@pytest.mark.parametrize("kind", ["TOTAL", "BKG"])
@pytest.mark.parametrize("name", ["BACKSCAL", "AREASCAL", "BACKGROUND_UP", "BACKGROUND_DOWN", "GROUPING", "QUALITY"])
def test_columns_that_would_change_the_numbers_or_what_they_mean(name: str, kind: str) -> None:
    values = {"GROUPING": (1, -1), "QUALITY": (0, 0, 5)}.get(name)
    column = integers(name, *values) if values else fits.Column(name, "E", array=np.ones(N_CHANNELS))
    rejected(products(pha=one_spectrum(**{kind: [column]})), "wrong_type", name)


# docs/recipe.md has the same table: what must have a value where it is there, and what is harmless.
DEMANDED = [
    ("TELESCOP", "CHANDRA", "XMM", "wrong_instrument", "source background arf matrix ebounds"),
    ("INSTRUME", "ACIS", "HRC", "not_acis", "source background arf matrix ebounds"),
    ("INSTRUME", "ACIS", "EPN", "wrong_instrument", "source background arf matrix ebounds"),
    ("CHANTYPE", "PI", "PHA", "wrong_type", "source background matrix ebounds"),
    ("HDUCLAS3", "COUNT", "RATE", "wrong_type", "source background"),
    ("HDUCLAS4", "TYPE:I", "TYPE:II", "wrong_type", "source background"),
    ("POISSERR", True, False, "wrong_type", "source background"),
    ("QUALITY", 0, 1, "wrong_type", "source background"),
    ("GROUPING", 0, -1, "wrong_type", "source background"),
]
HARMLESS = [
    ("HDUCLASS", "ASCA"),
    ("HDUVERS", "9.9"),
    ("DETCHANS", 900),
    ("TLMIN1", 0),
    ("TLMAX1", 4096),
    ("FILTER", "OTHER"),
    ("CORRFILE", "other.fits"),
    ("CORRSCAL", 2.0),
    ("ANCRFILE", "other.fits"),
    ("RESPFILE", "none"),
    ("BACKFILE", "none"),
    ("SYS_ERR", 0.1),
    ("STAT_ERR", 0.1),
    ("DATE-OBS", "yesterday"),
    ("LIVETIME", -1.0),
]
PLACES = {
    "source": ("pha", 1),
    "background": ("pha", 3),
    "arf": ("arf", 1),
    "matrix": ("rmf", 1),
    "ebounds": ("rmf", 2),
}


def with_card(place: str, keyword: str, value: object) -> Products:
    """Good files with one keyword changed or added, or taken out where the value is None."""
    kind, extension = PLACES[place]
    with fits.open(io.BytesIO(getattr(products(), kind).data)) as hdus:
        hdus[extension].header[keyword] = value
        if value is None:
            del hdus[extension].header[keyword]
        stream = io.BytesIO()
        hdus.writeto(stream)
    return products(**{kind: stream.getvalue()})


@pytest.mark.parametrize(
    ("place", "keyword", "right", "wrong", "reason"),
    [(place, *demand[:4]) for demand in DEMANDED for place in demand[4].split()],
)
def test_a_keyword_must_have_its_value_where_it_is_there(
    place: str, keyword: str, right: object, wrong: object, reason: str
) -> None:
    expected = reduced(products())
    for value in (right, None):
        assert np.array_equal(reduced(with_card(place, keyword, value)).rate, expected.rate)
    rejected(with_card(place, keyword, wrong), reason, keyword)


def test_the_table_of_the_documentation_says_the_same() -> None:
    page = (Path(__file__).parents[1] / "docs/recipe.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:5] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5]
    for keyword, *_, reason, _ in DEMANDED:
        assert any(f"`{keyword}`" in words and "must be" in done and reason in other for words, _, done, other in rows)
    for keyword, _ in HARMLESS:
        name = keyword.rstrip("1").replace("-OBS", "-…")
        assert any(f"`{name}`" in words and "harmless" in done for words, _, done, _ in rows), keyword


@pytest.mark.parametrize("place", ["source", "background"])
def test_keywords_that_are_harmless_change_nothing(place: str) -> None:
    expected = reduced(products())
    for keyword, value in HARMLESS:
        for other in (value, None):
            found = reduced(with_card(place, keyword, other))
            assert np.array_equal(found.rate, expected.rate), keyword
            assert np.array_equal(found.rate_error, expected.rate_error), keyword


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        (["TOTAL"], "no_background"),
        (["TOTAL", "NET"], "wrong_type"),
        (["NET"], "wrong_type"),
        (["NET", "BKG"], "wrong_type"),
        (["BKG"], "wrong_type"),
        (["TOTAL", "BKG", "NET"], "wrong_type"),
        (["TOTAL", "TOTAL", "BKG"], "wrong_type"),
        (["TOTAL", "BKG", "BKG"], "wrong_type"),
        ([""], "wrong_type"),
        ([], "unreadable_pha"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_spectrum_of_another_type_is_not_a_missing_background(kinds: list[str], reason: str) -> None:
    content = ff.fits_bytes(*(ff.spectrum(kind, poisson(5.0)) for kind in kinds), ff.gti())
    rejected(
        products(pha=content),
        reason,
        "SPECTRUM" if not kinds else "background" if len(kinds) == 1 and kinds[0] == "TOTAL" else "HDUCLAS2",
    )


def test_many_spectra_make_a_short_message() -> None:
    content = ff.fits_bytes(*(ff.spectrum(f"KIND{number}" * 4, poisson(5.0)) for number in range(9)))
    assert len(rejected(products(pha=content), "wrong_type").message) < 300


@pytest.mark.parametrize("kind", ["pha", "arf", "rmf"])
def test_a_file_of_hrc_is_told_by_its_name_whatever_it_holds_or_lacks(kind: str) -> None:
    files = products()
    name = getattr(files, kind).name.replace("acisf", "hrcf", 1)
    whole: dict[str, Any] = {kind: File(name, getattr(files, kind).data)}
    assert "hardly resolves energy" in rejected(replace(files, **whole), "not_acis", name).message
    others: dict[str, Any] = {"pha": None, "arf": None, "rmf": None, kind: File(name, b"")}
    rejected(replace(files, **others), "not_acis", name)


def test_a_product_of_hrc_with_the_name_of_one_of_acis() -> None:
    content = ff.pha(
        poisson(5.0), poisson(3.0), source_cards={"INSTRUME": "HRC-I"}, background_cards={"INSTRUME": "HRC-I"}
    )
    assert "hardly resolves energy" in rejected(products(pha=content), "not_acis", "HRC-I").message


# --- what a file says of its own damage ---


@pytest.mark.parametrize("detection", REAL, ids=str)
@pytest.mark.parametrize("place", ["source", "background", "arf", "ebounds"])
@pytest.mark.parametrize("part", ["header", "data"])
def test_a_changed_byte_in_what_is_used_is_found_by_the_files_own_checksum(
    detection: DetectionId, place: str, part: str
) -> None:
    kind, _ = PLACES[place]
    files = real_products(detection)
    data = bytearray(getattr(files, kind).data)
    with fits.open(io.BytesIO(data)) as hdus:
        name = {"source": 1, "background": ("SPECTRUM", 2), "arf": 1, "ebounds": "EBOUNDS"}[place]
        where = hdus[name].fileinfo()["hdrLoc" if part == "header" else "datLoc"]
    at = bytes(data).index(b"ORIGIN  =", where) + 14 if part == "header" else where + 3000
    data[at] ^= 1
    rejected(
        with_file(files, kind, File(getattr(files, kind).name, bytes(data))), "damaged_fits", getattr(files, kind).name
    )


def test_a_changed_byte_in_what_is_not_used_changes_nothing() -> None:
    """Good times, and the matrix where it is not kept."""
    files = real_products(BRIGHT)
    expected = reduced(files)
    for kind, extension in (("pha", 2), ("rmf", 1)):
        data = bytearray(getattr(files, kind).data)
        with fits.open(io.BytesIO(data)) as hdus:
            data[hdus[extension].fileinfo()["datLoc"] + 8] ^= 1
        found = reduced(with_file(files, kind, File(getattr(files, kind).name, bytes(data))))
        assert np.array_equal(found.rate, expected.rate)


def test_images_among_the_spectra_equal_the_session(ui: Any, tmp_path: Path) -> None:
    """As in the catalog's own example of release 2.0: a MASK after the GTIs, and one after the background."""
    mask = fits.ImageHDU(np.ones((70, 90), np.int16), name="MASK")
    content = ff.fits_bytes(ff.spectrum("TOTAL", poisson(5.0)), ff.gti(), mask, ff.spectrum("BKG", poisson(3.0)), mask)
    files = products(pha=content)
    assert_equal_to_the_bit(reduced(files), session(ui, files, DEFAULT, tmp_path))


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["matrix first", "EBOUNDS first"])
@pytest.mark.parametrize("names", [(None, None), ("RESPMAT", "BOUNDS"), ("matrix", "ebounds")], ids=str)
def test_a_response_is_found_by_its_class_or_its_name(order: tuple[int, int], names: tuple[str | None, ...]) -> None:
    """Wherever in the file it stands; without a class where the name is that of one."""
    with fits.open(io.BytesIO(ff.plain_rmf())) as hdus:
        for hdu, name in zip(hdus[1:], names, strict=True):
            hdu.header["EXTNAME"] = name or hdu.name
            if name and name.islower():
                del hdu.header["HDUCLAS*"]
        content = ff.fits_bytes(*(hdus[number] for number in order))
    expected, found = (reduce_products(files, DEFAULT, response=True) for files in (products(), products(rmf=content)))
    assert isinstance(expected, Spectrum)
    assert isinstance(found, Spectrum), found
    assert isinstance(found.response, Response)
    assert isinstance(expected.response, Response)
    assert np.array_equal(found.rate, expected.rate)
    assert np.array_equal(found.response.matrix, expected.response.matrix)
    other = ff.changed_card(content, "REGIONID", "'0008'", 1 + order.index(1))
    rejected(products(rmf=other), "wrong_ids", "123.1.8")


@pytest.mark.parametrize("extension", [1, 3], ids=["source", "background"])
def test_spectra_of_any_name_are_found_by_their_class(extension: int) -> None:
    content = ff.changed_card(products().pha.data, "EXTNAME", "'SPECTRUM7'", extension)  # type: ignore[union-attr]
    assert np.array_equal(reduced(products(pha=content)).rate, reduced(products()).rate)


def test_one_detection_leaves_no_trace_in_the_next() -> None:
    """The channel energies are shared between detections; the order of reduction must not matter."""
    first = reduced(products())
    for recipe in (Recipe(1.0, 2.0), Recipe(group=False), Recipe(subtract=False)):
        reduced(products(), recipe)
        reduced(real_products(FAINT), recipe)
    again = reduced(products())
    assert np.array_equal(first.rate, again.rate)
    assert np.array_equal(first.energy_lo, again.energy_lo)


# --- rejections ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(kind: str) -> None:
    rejected(with_file(products(), kind, None), f"missing_{kind}", kind.upper())


def test_no_background_extension() -> None:
    rejected(products(pha=ff.pha(poisson(5.0), None)), "no_background")


def test_two_background_extensions() -> None:
    two = ff.fits_bytes(*(ff.spectrum(kind, poisson(5.0)) for kind in ("TOTAL", "BKG", "BKG")))
    rejected(products(pha=two), "wrong_type", "'BKG', not one")


def test_no_counts_in_the_kept_range() -> None:
    """Counts outside 0.5-8 keV, and in the background, do not help."""
    outside = np.where((ff.E_MAX < 0.5) | (ff.E_MIN > 8.0), 10, 0)
    rejected(products(pha=ff.pha(outside, poisson(5.0))), "no_counts", "0.5-8 keV")
    rejected(products(pha=ff.pha(np.zeros(1024), poisson(5.0))), "no_counts")


def test_no_channel_in_the_kept_range() -> None:
    rejected(products(), "no_counts", recipe=Recipe(16.0, 17.0))


def test_a_range_narrower_than_a_channel() -> None:
    rejected(products(), "no_counts", recipe=Recipe(1.001, 1.002))


def test_a_single_count_is_a_spectrum() -> None:
    one = np.zeros(1024)
    one[100] = 1
    assert reduced(products(pha=ff.pha(one, np.zeros(1024)))).source_counts == 1


@pytest.mark.parametrize("field", ["obsid", "obi", "region_id"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_detection(kind: str, field: str) -> None:
    other = replace(DETECTION, **{field: getattr(DETECTION, field) + 1})
    content = {
        "pha": lambda: ff.pha(poisson(5.0), poisson(3.0), other),
        "arf": lambda: ff.arf(other),
        "rmf": lambda: ff.rmf(other),
    }[kind]()
    message = rejected(products(**{kind: content}), "wrong_ids", ff.product_name(DETECTION, kind)).message
    assert str(other) in message
    assert str(DETECTION) in message


def test_a_background_of_another_detection() -> None:
    other = replace(DETECTION, region_id=8)
    mixed = ff.fits_bytes(ff.spectrum("TOTAL", poisson(5.0)), ff.spectrum("BKG", poisson(3.0), other))
    rejected(products(pha=mixed), "wrong_ids", str(other))


@pytest.mark.parametrize("keyword", ["OBS_ID", "OBI_NUM", "REGIONID"])
@pytest.mark.parametrize(
    ("kind", "extension"), [("pha", 1), ("pha", 3), ("arf", 1), ("rmf", 1)], ids=["source", "background", "arf", "rmf"]
)
def test_only_the_source_spectrum_must_have_every_id(kind: str, extension: int, keyword: str) -> None:
    """What has none is of the detection that its file's name says; what has another is refused, see above."""
    data = getattr(products(), kind).data
    start = ff.changed_card(data, keyword, "'gone'", extension).index(f"{keyword:<8}= 'gone'".encode())
    files = products(**{kind: data[:start] + b" " * 80 + data[start + 80 :]})
    if extension == 1 and kind == "pha":
        rejected(files, "unreadable_pha", keyword)
    else:
        assert np.array_equal(reduced(files).rate, reduced(products()).rate)


@pytest.mark.parametrize(("keyword", "value"), [("OBS_ID", "'merged'"), ("OBI_NUM", "1.5"), ("REGIONID", "-7")])
def test_ids_that_are_no_ids(keyword: str, value: str) -> None:
    content = ff.changed_card(products().pha.data, keyword, value, 1)  # type: ignore[union-attr]
    outcome = reduce_products(products(pha=content), DEFAULT)
    assert isinstance(outcome, Rejection)
    assert outcome.reason in ("wrong_ids", "unreadable_pha")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cycle", "word"), [("e1", "'S'"), ("e2", "'P'"), ("e1", "'X'")])
def test_a_file_with_the_keyword_of_the_other_cycle_is_believed_by_its_name_with_a_warning(
    kind: str, cycle: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing public proves what the keyword is in files of the secondary exposures."""
    detection = DETECTION.with_cycle(cycle)
    files = products(detection)
    assert reduced(files).detection == detection
    content = ff.changed_card(getattr(files, kind).data, "CYCLE", word, 1)
    _warn_of_cycle.cache_clear()
    assert caplog.messages == []
    for _ in range(2):
        found = reduced(products(detection, **{kind: content}))
        assert np.array_equal(found.rate, reduced(files).rate)
    assert caplog.messages == [
        f"files of cycle {cycle} by their names have the keyword CYCLE {word}: the names are believed"
    ]


def test_a_response_that_both_cycles_share_is_of_either() -> None:
    """It has no cycle in its name; its header may name one."""
    for cycle in ("e1", "e2"):
        own, shared = products(DETECTION.with_cycle(cycle)), products()
        assert reduced(replace(shared, detection=own.detection, pha=own.pha)).detection.cycle == cycle


def test_half_as_many_channels() -> None:
    half = np.arange(1, 513)
    few = ff.pha(poisson(5.0)[:512], poisson(3.0)[:512], channel=half)
    rejected(products(pha=few), "channel_mismatch", "512")
    short = ff.rmf(channel=half, e_min=ff.E_MIN[:512], e_max=ff.E_MAX[:512])
    rejected(products(rmf=short), "channel_mismatch", "512")
    rejected(products(pha=few, rmf=short), "channel_mismatch")


def test_shifted_channels() -> None:
    """Channels 0 to 1023, in the PHA file, in the RMF file, or in both."""
    shifted = ff.CHANNEL - 1
    content, response = ff.pha(poisson(5.0), poisson(3.0), channel=shifted), ff.rmf(channel=shifted)
    rejected(products(pha=content), "channel_mismatch")
    rejected(products(rmf=response), "channel_mismatch")
    rejected(products(pha=content, rmf=response), "channel_mismatch")


def test_channels_out_of_order() -> None:
    mixed = ff.CHANNEL[::-1]
    files = products(pha=ff.pha(poisson(5.0), poisson(3.0), channel=mixed), rmf=ff.rmf(channel=mixed))
    rejected(files, "channel_mismatch")


def test_a_background_with_other_channels() -> None:
    mixed = ff.fits_bytes(
        ff.spectrum("TOTAL", poisson(5.0)), ff.spectrum("BKG", poisson(3.0)[:512], channel=np.arange(1, 513))
    )
    rejected(products(pha=mixed), "channel_mismatch")


@pytest.mark.parametrize("extension", [1, 3], ids=["source", "background"])
@pytest.mark.parametrize("value", ["0.0", "-1.0", "nan", "inf", "-inf", "1E999", "0"])
@pytest.mark.parametrize("keyword", ["EXPOSURE", "BACKSCAL", "AREASCAL"])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_scale_that_is_not_a_positive_number(keyword: str, value: str, extension: int, subtract: bool) -> None:
    content = ff.changed_card(products().pha.data, keyword, value, extension)  # type: ignore[union-attr]
    reason = "unreadable_pha" if value.strip("-").isalpha() else "out_of_range"
    rejected(products(pha=content), reason, keyword, Recipe(subtract=subtract))


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("value", ["1E-320", "1E-310", "1E-300", "1E-40", "1E40", "1E300"])
@pytest.mark.parametrize("extension", [1, 3])
@pytest.mark.parametrize("keyword", ["EXPOSURE", "BACKSCAL", "AREASCAL"])
def test_a_scale_out_of_all_proportion(keyword: str, extension: int, value: str, subtract: bool) -> None:
    """Though it may be finite: the columns of single precision could not hold what it gives, and nobody meant it."""
    content = ff.changed_card(products().pha.data, keyword, value, extension)  # type: ignore[union-attr]
    reason = "wrong_type" if (keyword, extension) == ("AREASCAL", 1) else "out_of_range"
    rejected(products(pha=content), reason, recipe=Recipe(subtract=subtract))


def test_an_areascal_of_the_source_other_than_one() -> None:
    """The rate would be divided by it, but the row's counts and effective area would know nothing of it."""
    for value in (0.5, 1.0000001, 2):
        content = ff.pha(poisson(5.0), poisson(3.0), source_cards={"AREASCAL": value})
        rejected(products(pha=content), "wrong_type", "AREASCAL is")


@pytest.mark.parametrize("extension", [1, 3], ids=["source", "background"])
@pytest.mark.parametrize("keyword", ["EXPOSURE", "BACKSCAL"])
def test_a_scale_that_is_not_there(keyword: str, extension: int) -> None:
    cards = {"source_cards" if extension == 1 else "background_cards": {keyword: None}}
    rejected(products(pha=ff.pha(poisson(5.0), poisson(3.0), **cards)), "unreadable_pha", keyword)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_of_the_responses_that_are_not_finite(value: float) -> None:
    rejected(products(arf=ff.arf(fault=value)), "not_finite", "arf.specresp")
    for name, array in (("e_min", ff.E_MIN), ("e_max", ff.E_MAX)):
        bad = array.copy()
        bad[500] = value
        changed: dict[str, Any] = {name: bad}
        rejected(products(rmf=ff.rmf(**changed)), "bad_energies", "ebounds")


@pytest.mark.parametrize("value", [-0.001, -1e-30, 1e30])
def test_an_effective_area_that_cannot_be(value: float) -> None:
    rejected(products(arf=ff.arf(fault=value)), "out_of_range", "arf.specresp")


def changed_energy(index: int, low: float, high: float) -> bytes:
    e_min, e_max = ff.E_MIN.copy(), ff.E_MAX.copy()
    e_min[index] += low
    e_max[index] += high
    return ff.rmf(e_min=e_min, e_max=e_max)


@pytest.mark.parametrize(
    "response",
    [
        ff.rmf(e_min=ff.E_MIN[::-1], e_max=ff.E_MAX[::-1]),
        ff.rmf(e_min=ff.E_MAX, e_max=ff.E_MIN),
        ff.rmf(e_min=np.ones(1024), e_max=np.ones(1024)),
        changed_energy(1023, 0, -0.0146),
        changed_energy(500, 0.0146, 0),
        changed_energy(500, 0, 0.003),
        changed_energy(0, -0.003, 0),
        ff.rmf(e_min=ff.E_MIN, e_max=ff.E_MAX + np.float32(0.003)),
        ff.rmf(e_min=ff.E_MIN.astype(float), e_max=ff.E_MIN + 1e-12, code="D"),
    ],
    ids=[
        "falling",
        "swapped",
        "one",
        "last of no width",
        "one of none",
        "overlap",
        "below 0",
        "overlaps",
        "of none in float32",
    ],
)
def test_channel_energies_that_are_no_bins_are_a_rejection(response: bytes) -> None:
    rejected(products(rmf=response), "bad_energies", "ebounds has a bin")


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, 1e20])
def test_counts_that_are_no_counts(value: float) -> None:
    counts = poisson(5.0).astype(float)
    counts[77] = value
    outcome = reduce_products(products(pha=ff.pha(counts, poisson(3.0), code="D")), DEFAULT)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == "out_of_range"


def test_whole_counts_in_a_column_of_floats_are_counts() -> None:
    counts = poisson(5.0)
    assert np.array_equal(reduced(products(pha=ff.pha(counts, poisson(3.0), code="D"))).counts, counts)


# --- damage ---


def test_a_gzip_cut_short_where_sherpa_would_not_notice() -> None:
    """Cut within the background, where a lenient reader sees a whole source spectrum."""
    files = gzipped(real_products(BRIGHT))
    assert files.pha is not None
    for cut in (0.5, 0.7, 0.9, 0.99):
        data = files.pha.data[: int(cut * len(files.pha.data))]
        rejected(replace(files, pha=File(files.pha.name, data)), "damaged_gzip", files.pha.name)


PACKED = gzipped(products())


@stable(150)
@given(kind=st.sampled_from(KINDS), keep=st.floats(0.0, 1.0, exclude_max=True))
def test_a_gzip_cut_short_anywhere(kind: str, keep: float) -> None:
    file = getattr(PACKED, kind)
    data = file.data[: int(keep * len(file.data))]
    reason = "damaged_gzip" if len(data) >= 2 else f"unreadable_{kind}"
    rejected(with_file(PACKED, kind, File(file.name, data)), reason, file.name)


@pytest.mark.parametrize("missing", range(1, 10))
@pytest.mark.parametrize("kind", KINDS)
def test_a_gzip_cut_within_its_trailer(kind: str, missing: int) -> None:
    """Its last eight bytes are the CRC and the length: all data are there, but nothing proves it."""
    file = getattr(PACKED, kind)
    rejected(with_file(PACKED, kind, File(file.name, file.data[:-missing])), "damaged_gzip", file.name)


@pytest.mark.parametrize("position", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_a_gzip_with_a_wrong_crc_or_length(kind: str, position: int) -> None:
    file = getattr(PACKED, kind)
    data = bytearray(file.data)
    data[-position] ^= 0x10
    rejected(with_file(PACKED, kind, File(file.name, bytes(data))), "damaged_gzip", file.name)


@pytest.mark.parametrize(
    "tail",
    [b"<html>", b"\0" * 100 + b"x", gzip.compress(b"more", mtime=0)],
    ids=["a page", "zeros and a letter", "another gzip"],
)
def test_a_gzip_followed_by_something_else(tail: bytes) -> None:
    data = PACKED.pha.data + tail  # type: ignore[union-attr]
    rejected(replace(PACKED, pha=File("x_pha3.fits.gz", data)), "damaged_gzip", "follow")


def test_a_gzip_padded_with_zeros_is_whole() -> None:
    """As `gzip` itself has it: zeros after the stream are padding."""
    data = PACKED.pha.data + bytes(512)  # type: ignore[union-attr]
    assert np.array_equal(reduced(replace(PACKED, pha=File("x", data))).counts, reduced(PACKED).counts)


@stable(250)
@given(kind=st.sampled_from(KINDS), place=st.floats(0.0, 1.0, exclude_max=True), mask=st.integers(1, 255))
def test_a_changed_byte_in_a_gzip_never_changes_the_numbers(kind: str, place: float, mask: int) -> None:
    """It is a rejection, or it was in a part of the gzip header that says nothing."""
    file = getattr(PACKED, kind)
    data = bytearray(file.data)
    data[int(place * len(data))] ^= mask
    outcome = reduce_products(with_file(PACKED, kind, File(file.name, bytes(data))), DEFAULT)
    if isinstance(outcome, Spectrum):
        assert int(place * len(data)) < 10  # RFC 1952: ten bytes of header
        assert outcome.sha256 == reduced(PACKED).sha256


def test_a_gzip_bomb_is_refused_without_inflating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = gzip.compress(bytes(10**7))
    for limit in (10**6, 10**7 - 1):
        monkeypatch.setattr(ogip, "MAX_INFLATED_BYTES", limit)
        rejected(products(arf=bomb), "damaged_gzip", str(limit))


def test_a_product_of_just_the_largest_size_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(len(getattr(products(), kind).data) for kind in KINDS)
    monkeypatch.setattr(ogip, "MAX_INFLATED_BYTES", size)
    reduced(PACKED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"<!DOCTYPE html><html><body>Error</body></html>",
        b"Error executing query: no such file\n",
        b"SIMPLE  =",
        b"SIMPLE  =                    T",
        b"SIMPLE  = T".ljust(80),
        bytes(5000),
        b"\x1f",
        b"\x1f\x8b",
        zlib.compress(b"SIMPLE  ="),
    ],
    ids=["empty", "newline", "html", "text", "word", "half card", "card", "zeros", "half magic", "magic", "zlib"],
)
def test_something_else_in_place_of_a_file(kind: str, content: bytes) -> None:
    files = with_file(products(), kind, File("some_name", content))
    rejected(files, "damaged_gzip" if content == b"\x1f\x8b" else f"unreadable_{kind}", "some_name")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fits_file_without_extensions(kind: str) -> None:
    rejected(products(**{kind: ff.fits_bytes()}), f"unreadable_{kind}", ff.product_name(DETECTION, kind))


def test_files_in_each_others_places() -> None:
    files = products()
    assert files.arf is not None
    assert files.rmf is not None
    rejected(replace(files, arf=files.rmf), "unreadable_arf", "SPECRESP")
    rejected(replace(files, rmf=files.arf), "unreadable_rmf", "EBOUNDS")
    rejected(replace(files, pha=files.arf), "unreadable_pha")


@pytest.mark.parametrize(
    ("keyword", "value"), [("HDUCLAS2", "'TOTAL?'"), ("HDUCLAS1", "'SPECTR'"), ("XTENSION", "'X'")]
)
def test_a_garbled_first_header_is_not_taken_for_the_background(keyword: str, value: str) -> None:
    """Sherpa would read the background as the source."""
    for files in (products(), real_products(BRIGHT)):
        assert files.pha is not None
        garbled = File(files.pha.name, ff.changed_card(files.pha.data, keyword, value, 1))
        rejected(replace(files, pha=garbled), "wrong_type", "not one TOTAL")


@stable(120)
@given(kind=st.sampled_from(KINDS), keep=st.floats(0.0, 1.0, exclude_max=True))
def test_a_plain_file_cut_short_anywhere(kind: str, keep: float) -> None:
    """A rejection, unless only the padding of the last block went."""
    whole = products()
    data = getattr(whole, kind).data[: int(keep * len(getattr(whole, kind).data))]
    outcome = reduce_products(products(**{kind: data}), DEFAULT)
    if isinstance(outcome, Spectrum):
        assert not getattr(whole, kind).data[len(data) :].strip(b"\0")
        expected = reduced(whole)
        assert np.array_equal(outcome.rate, expected.rate)
        assert np.array_equal(outcome.specresp, expected.specresp)
    else:
        assert outcome.reason in (f"unreadable_{kind}", "no_background")


@pytest.mark.parametrize("letter", [b"\x00", b"\x1b", b"\xe9"])
@pytest.mark.parametrize(
    "keyword", ["DETNAM", "GRATING", "EXTNAME", "CYCLE", "TELESCOP", "TUNIT3", "TTYPE3", "HDUCLAS2"]
)
def test_no_letter_that_cannot_be_printed_reaches_a_row_or_a_message(keyword: str, letter: bytes) -> None:
    content = with_card("source", keyword, "ACIS-7X").pha.data  # type: ignore[union-attr]
    outcome = reduce_products(products(pha=content.replace(b"ACIS-7X", b"ACIS-7" + letter)), DEFAULT)
    if isinstance(outcome, Spectrum):
        assert (outcome.detnam or "").isprintable() and (outcome.grating or "").isprintable()
        assert keyword not in ("DETNAM", "GRATING") or None in (outcome.detnam, outcome.grating)
    else:
        assert outcome.message.isprintable()


def header_positions(data: bytes) -> list[int]:
    with fits.open(io.BytesIO(data)) as hdus:
        spans = [(hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"]) for hdu in hdus]
    return [position for start, stop in spans for position in range(start, stop) if data[position] != ord(" ")]


WHOLE = products()
HEADERS = {kind: header_positions(getattr(WHOLE, kind).data) for kind in KINDS}


def assert_no_exception(kind: str, data: bytes, recipe: Recipe = DEFAULT) -> None:
    outcome = reduce_products(with_file(WHOLE, kind, File(f"x_{kind}3.fits", data)), recipe)
    if isinstance(outcome, Spectrum):
        assert np.isfinite([*outcome.rate, *outcome.rate_error, outcome.background_scale]).all()
    else:
        assert outcome.reason in REASONS
        assert outcome.message.isprintable()


@stable(600)
@given(
    kind=st.sampled_from(KINDS),
    place=st.floats(0.0, 1.0, exclude_max=True),
    value=st.one_of(st.sampled_from(b"0123456789EDT'-+. /"), st.integers(0, 255)),
)
def test_no_changed_byte_in_a_header_is_an_exception(kind: str, place: float, value: int) -> None:
    data = bytearray(getattr(WHOLE, kind).data)
    data[HEADERS[kind][int(place * len(HEADERS[kind]))]] = value
    assert_no_exception(kind, bytes(data))


@stable(250)
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    recipe=recipes,
)
def test_no_changed_bytes_anywhere_are_an_exception(
    kind: str, changes: list[tuple[float, int]], recipe: Recipe
) -> None:
    data = bytearray(getattr(WHOLE, kind).data)
    for place, value in changes:
        data[int(place * len(data))] = value
    assert_no_exception(kind, bytes(data), recipe)


STRUCTURE = [("pha", 1), ("pha", 3), ("arf", 1), ("rmf", 1), ("rmf", 2)]
WORDS = [
    "BITPIX",
    "NAXIS",
    "NAXIS1",
    "NAXIS2",
    "PCOUNT",
    "TFIELDS",
    "TFORM1",
    "TFORM2",
    "TFORM3",
    "TTYPE1",
    "EXTNAME",
    "XTENSION",
    "DETCHANS",
]
VALUES = [
    "0",
    "1",
    "-1",
    "2",
    "4",
    "3",
    "-5",
    "1024",
    "1023",
    "1025",
    "2147483647",
    "99999999999999999999",
    "1E24",
    "1E308",
    "1E400",
    "nan",
    "-inf",
    "1.5",
    "T",
    "''",
    "'1J'",
    "'2J'",
    "'0J'",
    "'J'",
    "'1K'",
    "'1PE(3)'",
    "'99999999X'",
    "'é'",
    "'CHANNEL'",
    "'\0'",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
]


@stable(700)
@given(
    where=st.sampled_from(STRUCTURE),
    changes=st.dictionaries(st.sampled_from(WORDS), st.sampled_from(VALUES), min_size=1, max_size=3),
)
@example(("pha", 1), {"NAXIS2": "1E24"})
@example(("pha", 1), {"BITPIX": "4"})
@example(("pha", 1), {"NAXIS": "1"})
@example(("arf", 1), {"NAXIS": "0"})
@example(("rmf", 2), {"NAXIS1": "4294967296", "NAXIS2": "4294967296"})
def test_no_value_of_a_structural_keyword_is_an_exception(where: tuple[str, int], changes: dict[str, str]) -> None:
    kind, extension = where
    data = getattr(WHOLE, kind).data
    for keyword, value in changes.items():
        data = changed(data, keyword, value, extension)
    assert_no_exception(kind, data)


def changed(data: bytes, keyword: str, value: str, extension: int) -> bytes:
    """As `fits_files.changed_card`, at the place that the card has in the whole file."""
    position = CARDS[extension, len(data)].get(keyword)
    if position is None:
        return data
    return data[:position] + f"{keyword:<8}= {value}".encode().ljust(80)[:80] + data[position + 80 :]


def _card_positions() -> dict[tuple[int, int], dict[str, int]]:
    places: dict[tuple[int, int], dict[str, int]] = {}
    for kind in KINDS:
        data = getattr(WHOLE, kind).data
        with fits.open(io.BytesIO(data)) as hdus:
            for number, hdu in enumerate(hdus):
                start, stop = hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"]
                cards = {data[p : p + 8].decode().strip(): p for p in range(start, stop, 80)}
                places[number, len(data)] = cards
    return places


CARDS = _card_positions()


# --- manners ---


def test_nothing_is_printed_logged_or_warned(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    logging.getLogger("sherpa").addHandler(caplog.handler)
    try:
        for files in (real_products(BRIGHT), gzipped(real_products(FAINT)), products(), PACKED):
            for recipe in (DEFAULT, Recipe(group=False), Recipe(0.0, 20.0, 10**6), Recipe(16.0, 17.0)):
                reduce_products(files, recipe)
        reduce_products(products(pha=ff.pha(poisson(0.01), np.zeros(1024))), DEFAULT)
        reduce_products(products(rmf=ff.rmf(e_min=ff.E_MIN * 0)), DEFAULT)
    finally:
        logging.getLogger("sherpa").removeHandler(caplog.handler)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [str(warning.message) for warning in recwarn.list] == []


def test_the_level_of_sherpas_logger_is_as_it_was() -> None:
    logger = logging.getLogger("sherpa")
    before = logger.level
    try:
        for level in (logging.NOTSET, logging.DEBUG, logging.WARNING):
            logger.setLevel(level)
            reduced(products())
            rejected(products(), "no_counts", recipe=Recipe(16.0, 17.0))
            assert logger.level == level
    finally:
        logger.setLevel(before)


def test_no_file_is_opened_or_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = real_products(BRIGHT)
    reduced(products())  # whatever is imported late

    def refuse(*args: object, **keywords: object) -> None:
        raise AssertionError(f"opened {args}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    reduced(files)
    reduced(gzipped(files))
    assert list(tmp_path.iterdir()) == []


def test_sherpas_session_is_not_touched(ui: Any) -> None:
    """Neither when it is empty nor when the user has data in it."""
    reduced(real_products(BRIGHT))
    rejected(products(), "no_counts", recipe=Recipe(16.0, 17.0))
    assert ui.list_data_ids() == []
    ui.load_arrays("mine", [1, 2, 3], [4, 5, 6])
    ui.set_stat("cash")
    reduced(real_products(BRIGHT))
    assert ui.list_data_ids() == ["mine"]
    assert ui.get_stat_name() == "cash"


@stable(60)
@given(seed=seeds, level=levels, background=levels, recipe=recipes)
def test_bins_rise_and_hold_the_least_number_of_counts(
    seed: int, level: float, background: float, recipe: Recipe
) -> None:
    """All groups but the last hold `min_counts`; the bins' widths, rates and counts add up."""
    content = ff.pha(poisson(level, seed), poisson(background, seed + 1))
    outcome = reduce_products(products(pha=content), replace(recipe, subtract=False))
    if isinstance(outcome, Rejection):
        assert outcome.reason == "no_counts"
        return
    assert np.all(outcome.energy_lo < outcome.energy)
    assert np.all(outcome.energy < outcome.energy_hi)
    assert np.array_equal(outcome.energy_hi[:-1], outcome.energy_lo[1:])
    assert np.all(outcome.rate_error > 0)
    counts = outcome.rate * outcome.exposure * (outcome.energy_hi - outcome.energy_lo)
    assert counts.sum() == pytest.approx(outcome.source_counts, rel=1e-9)
    if recipe.group:
        assert np.all(counts[:-1] > recipe.min_counts - 1e-6 * level)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory in use from /proc, which Linux has")
def test_memory_does_not_grow_with_the_number_of_reductions() -> None:
    """Sherpa's own grouping function loses 27 kB a call; 600 of them would be 16 MB."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    products = real_products(DetectionId(4938, 0, 43))
    for _ in range(50):
        reduce_products(products, Recipe())
    before = resident()
    for _ in range(600):
        reduce_products(products, Recipe())
    assert resident() - before < 4_000_000
