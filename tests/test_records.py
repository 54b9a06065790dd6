"""Records refuse what they cannot be, and their keys depend on nothing but their values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builder.model.errors import ChandraSpectraError, ProductError, SettingError, TransientError
from builder.model.ids import CYCLES, DetectionId
from builder.model.records import N_CHANNELS, REASONS, Rejection, Response, Spectrum
from builder.model.settings import Recipe
from tests.fits_files import stable

detections = st.builds(
    DetectionId, st.integers(0, 999_999), st.integers(0, 999), st.integers(0, 9999), st.sampled_from(CYCLES)
)

# --- detections ---


@stable(300)
@given(detections)
@example(DetectionId(999_999, 999, 9999, "e2"))
@example(DetectionId(0, 0, 0))
def test_text_and_object_id_name_one_detection(detection: DetectionId) -> None:
    assert DetectionId.parse(str(detection)) == detection
    assert DetectionId.parse(f"  {detection}\n") == detection
    assert DetectionId.from_object_id(detection.object_id) == detection
    assert int(float(detection.object_id)) == detection.object_id  # readers may take the column for a double


@stable(300)
@given(detections, detections)
def test_object_ids_differ_and_sort_as_detections_do(one: DetectionId, other: DetectionId) -> None:
    assert (one < other) == (one.object_id < other.object_id)
    assert (one == other) == (one.object_id == other.object_id)


@pytest.mark.parametrize(
    ("text", "object_id"),
    [
        ("4938.0.43", 493800000430),
        ("7867.0.2", 786700000020),
        ("1575.1.85.e1", 157500100851),
        ("1575.1.85.e2", 157500100852),
    ],
)
def test_the_digits_of_an_object_id(text: str, object_id: int) -> None:
    """By hand: obsid, obi in three digits, region_id in four, then 0, 1 (e1) or 2 (e2)."""
    assert DetectionId.parse(text).object_id == object_id


@stable(300)
@given(st.integers(-(10**15), 10**15))
@example(-1)
@example(-9)
@example(999_999_999_9999_2)
@example(999_999_999_9999_3)
@example(1_000_000_000_0000_0)
def test_a_number_is_a_detections_or_refused(number: int) -> None:
    try:
        detection = DetectionId.from_object_id(number)
    except SettingError:
        assert number < 0 or number % 10 > 2 or number >= 10**14
    else:
        assert detection.object_id == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4938",
        "4938.0",
        "4938.0.43.",
        "4938.0.43.e3",
        "4938.0.43.E1",
        "4938.0.43.1",
        "-1.0.43",
        "4938,0,43",
        "4938.0.43 x",
        "1234567.0.1",
        "1.1234.1",
        "1.0.12345",
        "4938 .0.43",
        "1e3.0.1",
        "٤٩٣٨.0.43",
        "4938.0.43/spectrum/b",
    ],
)
def test_text_that_is_no_detection_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="is not a detection"):
        DetectionId.parse(text)


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (10**6, 0, 0), (0, -1, 0), (0, 1000, 0), (0, 0, -1), (0, 0, 10**4)])
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(SettingError, match="is not a detection"):
        DetectionId(*numbers)


@pytest.mark.parametrize("cycle", ["e3", "E1", "P", "e", " "])
def test_an_unknown_cycle_is_refused(cycle: str) -> None:
    with pytest.raises(SettingError, match="cycle"):
        DetectionId(1, 0, 1, cycle)


@stable(50)
@given(detections)
def test_the_catalogs_row_has_no_cycle(detection: DetectionId) -> None:
    assert detection.catalog.cycle == ""
    assert detection.catalog.with_cycle(detection.cycle) == detection
    assert pickle.loads(pickle.dumps(detection)) == detection


def test_records_are_frozen() -> None:
    for record, field in ((DetectionId(1, 0, 1), "obsid"), (Recipe(), "min_counts")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, field, 2)


# --- recipes ---


def test_the_default_recipe_is_the_one_that_defines_the_dataset() -> None:
    settings = {"energy_min": 0.5, "energy_max": 8.0, "min_counts": 5, "subtract": True, "group": True}
    assert Recipe().as_dict() == settings | {"version": 1}


def test_the_key_of_the_default_recipe_is_stable() -> None:
    """Spelled out: finished packages on disk are found by it, so it changes only with `Recipe.VERSION`."""
    text = '{"energy_max": 8.0, "energy_min": 0.5, "group": true, "min_counts": 5, "subtract": true, "version": 1}'
    assert json.loads(text) == Recipe().as_dict()
    assert Recipe().key == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_whole_numbers_of_kev_are_the_same_recipe() -> None:
    assert Recipe(1, 8) == Recipe(1.0, 8.0)
    assert Recipe(1, 8).key == Recipe(1.0, 8.0).key


def test_every_setting_and_the_version_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [
        Recipe(),
        Recipe(energy_min=0.6),
        Recipe(energy_max=7.9),
        Recipe(min_counts=6),
        Recipe(subtract=False),
        Recipe(group=False),
    ]
    assert {field.name for field in dataclasses.fields(Recipe)} == {
        "energy_min",
        "energy_max",
        "min_counts",
        "subtract",
        "group",
    }
    keys = [recipe.key for recipe in changed]
    monkeypatch.setattr(Recipe, "VERSION", 2)
    keys += [Recipe().key]
    assert len(set(keys)) == len(keys) == 7


@pytest.mark.parametrize(
    "settings",
    [
        {"energy_min": -0.1},
        {"energy_min": 8.0},
        {"energy_min": 9},
        {"energy_max": 20.1},
        {"energy_max": 0.5},
        {"energy_min": math.nan},
        {"energy_max": math.nan},
        {"energy_max": math.inf},
        {"energy_min": "0.5"},
        {"energy_min": None},
        {"energy_min": True},
        {"min_counts": 0},
        {"min_counts": -5},
        {"min_counts": 5.0},
        {"min_counts": "5"},
        {"min_counts": None},
        {"min_counts": True},
        {"subtract": "no"},
        {"group": 0},
        {"group": None},
    ],
    ids=str,
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=r"keV|whole number|True or False") as caught:
        Recipe(**settings)
    assert name in str(caught.value) or "energy range" in str(caught.value)
    assert isinstance(caught.value, ChandraSpectraError)
    assert isinstance(caught.value, ValueError)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="binning"):
        Recipe(binning=3)  # type: ignore[call-arg]


# --- errors ---


@pytest.mark.parametrize(
    "error",
    [ProductError("no_counts", "x"), TransientError("y", 3.0), SettingError("z")],
    ids=lambda e: type(e).__name__,
)
def test_an_error_comes_back_whole_from_another_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# --- rejections, spectra and responses ---


def test_a_rejection_needs_a_known_reason() -> None:
    for reason in REASONS:
        assert Rejection(DetectionId(1, 0, 1), "reduce", reason, "x").reason == reason
    with pytest.raises(ValueError, match="bad_luck"):
        Rejection(DetectionId(1, 0, 1), "reduce", "bad_luck", "x")


def spectrum(**changes: Any) -> Spectrum:
    edges = np.array([1.0, 2.0, 4.0])
    channels = np.zeros(N_CHANNELS, dtype=np.int32)
    bounds = 0.0073 + np.arange(N_CHANNELS + 1) * 0.0146
    area = np.arange(1, 5, dtype=np.float32)
    values = {
        "detection": DetectionId(1, 0, 1),
        "detnam": None,
        "grating": "NONE",
        "ccds": "3",
        "caldb_version": None,
        "exposure": 1.0,
        "background_scale": 0.1,
        "source_counts": 1,
        "background_counts_total": 1,
        "energy": (edges[:-1] + edges[1:]) / 2,
        "energy_lo": edges[:-1],
        "energy_hi": edges[1:],
        "rate": np.ones(2),
        "rate_error": np.ones(2),
        "counts": channels,
        "background_counts": channels,
        "arf_energy_lo": area,
        "arf_energy_hi": area + 1,
        "specresp": area,
        "ebounds_lo": bounds[:-1],
        "ebounds_hi": bounds[1:],
        "ebounds_from": DetectionId(1, 0, 1),
        "files": ("p", "a", "r"),
        "sha256": ("1", "2", "3"),
    }
    return Spectrum(**(values | changes))


def test_a_spectrum_knows_its_bins_and_its_grid() -> None:
    one = spectrum()
    assert one.n_bins == 2
    packed = one.ebounds_lo.astype("<f8").tobytes() + one.ebounds_hi.astype("<f8").tobytes()
    assert one.ebounds_id == hashlib.sha256(packed).hexdigest()[:16]
    assert spectrum(ebounds_lo=one.ebounds_lo - 1e-12).ebounds_id != one.ebounds_id
    assert spectrum(ebounds_hi=one.ebounds_hi + 1e-12).ebounds_id != one.ebounds_id
    assert spectrum(rate=np.zeros(2)).ebounds_id == one.ebounds_id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate": np.ones(3)}, "share one shape"),
        ({"rate_error": np.ones((2, 1))}, "share one shape"),
        (dict.fromkeys(["energy", "energy_lo", "energy_hi", "rate", "rate_error"], np.ones(0)), "share one shape"),
        (dict.fromkeys(["energy", "energy_lo", "energy_hi", "rate", "rate_error"], np.ones((2, 2))), "share one shape"),
        ({"counts": np.zeros(512, np.int32)}, "1024"),
        ({"background_counts": np.zeros((1024, 1), np.int32)}, "1024"),
        ({"ebounds_lo": np.zeros(1023)}, "1024"),
        ({"ebounds_hi": np.zeros(1025)}, "1024"),
        ({"specresp": np.ones(3, np.float32)}, "effective area"),
        ({"arf_energy_lo": np.ones(5, np.float32)}, "effective area"),
        ({"psf_frac": np.ones(3, np.float32)}, "effective area"),
        (dict.fromkeys(["arf_energy_lo", "arf_energy_hi", "specresp"], np.ones(0, np.float32)), "effective area"),
    ],
)
def test_a_spectrum_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spectrum(**changes)


def changed(name: str, index: int, value: float | np.floating[Any]) -> dict[str, Any]:
    """One value of an array of `spectrum`."""
    array = getattr(spectrum(), name).astype(np.result_type(type(value), getattr(spectrum(), name).dtype))
    array[index] = value
    return {name: array}


TINY, HUGE = 1e-50, 1e50  # 0 and infinite in single precision


@pytest.mark.parametrize(
    ("reason", "file", "change"),
    [
        *(
            ("out_of_range", "p", {name: value})
            for name in ("exposure", "background_scale")
            for value in (0.0, -1.0, 1e-40, 1e40, np.nan, np.inf)
        ),
        ("out_of_range", "p", changed("counts", 1000, -1)),
        ("out_of_range", "p", changed("background_counts", 0, -1)),
        *(("bad_energies", "r", changed("ebounds_lo", 700, value)) for value in (np.nan, -1.0, 10.2, 10.24, HUGE)),
        *(("bad_energies", "r", changed("ebounds_hi", 1023, value)) for value in (np.nan, 1.0, 101.0, np.inf)),
        ("bad_energies", "r", changed("ebounds_hi", 500, spectrum().ebounds_lo[500])),  # of no width
        (
            "bad_energies",
            "r",
            changed("ebounds_hi", 500, spectrum().ebounds_lo[500] * (1 + 1e-9)),
        ),  # of none in float32
        ("bad_energies", "r", {"ebounds_hi": spectrum().ebounds_hi + 0.003}),  # channels overlap by 3 eV
        ("bad_energies", "r", {"ebounds_hi": spectrum().ebounds_hi - 0.003}),  # or leave gaps
        (
            "bad_energies",
            "a",
            {"arf_energy_lo": np.array([4, 3, 2, 1], np.float32), "arf_energy_hi": np.array([5, 4, 3, 2], np.float32)},
        ),
        ("bad_energies", "a", changed("arf_energy_lo", 2, np.float32("nan"))),
        ("bad_energies", "a", changed("arf_energy_hi", 3, np.float32(4))),
        *(("out_of_range", "a", changed("specresp", 0, np.float32(value))) for value in (-0.001, 1e5)),
        *(("not_finite", "a", changed("specresp", 3, np.float32(value))) for value in ("nan", "inf", "-inf")),
        ("bad_energies", "p", changed("energy_lo", 0, 2.0)),
        ("bad_energies", "p", changed("energy_lo", 1, 1.0)),
        ("bad_energies", "p", changed("energy_hi", 1, np.nan)),
        ("bad_energies", "p", changed("energy", 1, 2.5)),
        *(("not_finite", "p", changed("rate", 0, value)) for value in (np.nan, np.inf, HUGE)),
        *(("not_finite", "p", changed("rate_error", 1, value)) for value in (np.nan, HUGE)),
        *(("out_of_range", "p", changed("rate_error", 1, value)) for value in (0.0, -1.0, TINY)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_row_that_cannot_be_is_refused_with_a_reason_and_its_file(
    reason: str, file: str, change: dict[str, Any]
) -> None:
    with np.errstate(all="ignore"), pytest.raises(ProductError) as caught:
        spectrum(**change)
    assert caught.value.reason == reason, caught.value
    assert str(caught.value).startswith(f"{file}: ")
    assert "{" not in str(caught.value)


def test_edges_that_differ_by_rounding_are_the_same() -> None:
    one = spectrum()
    assert spectrum(ebounds_hi=one.ebounds_hi + 1e-6).n_bins == 2


def response(**changes: Any) -> Response:
    one, energies = np.ones(2, np.int32), np.array([1.0, 2.0])
    values: dict[str, Any] = {
        "first_channel": 1,
        "energy_lo": energies,
        "energy_hi": energies + 1,
        "n_grp": one,
        "f_chan": one,
        "n_chan": one,
        "matrix": np.ones(2, np.float32),
    }
    return Response(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"energy_lo": np.array([2.0, 1.0]), "energy_hi": np.array([3.0, 2.0])}, "begins at 1.0 keV"),
        ({"energy_lo": np.array([1.0, 1.0])}, "begins at 1.0 keV"),
        ({"energy_hi": np.array([1.0, 3.0])}, "has a bin 1.0-1.0 keV"),
        ({"first_channel": 2}, "the first channel is 2, not 0 or 1"),
        ({"f_chan": np.array([1, 1024], np.int32), "first_channel": 0}, "outside the 1024 channels"),
        ({"matrix": np.array([0.5, 1.5], np.float32)}, "matrix has 1.5, which is no probability"),
        ({"matrix": np.array([np.nan, 0.5], np.float32)}, "matrix has nan"),
        ({"energy_hi": np.ones(3)}, "share one shape"),
        ({"n_chan": np.ones(3, np.int32)}, "as many values as there are groups"),
        ({"matrix": np.ones(3, np.float32)}, "as many values as the groups have channels"),
    ],
    ids=["falling", "equal", "empty", "first", "group", "large", "nan", "longer", "groups", "elements"],
)
def test_a_response_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    assert response().matrix.size == 2
    with pytest.raises((ValueError, ProductError), match=words):
        response(**changes)
