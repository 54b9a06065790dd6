"""Channels are summed exactly, and models folded as Sherpa folds them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from datasets import Dataset, IterableDataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from sherpa.astro.instrument import RSPModelPHA
from sherpa.astro.io import read_pha
from sherpa.models import NormGauss1D, PowLaw1D

from builder.model.errors import SettingError
from builder.use.batches import collate
from builder.use.calibration import Calibration
from tests.fits_files import REAL, REAL_FOLDER, stable

EDGES = np.geomspace(0.5, 8.0, 65)


@pytest.fixture(scope="module")
def counts(sample: Path) -> Dataset:
    return load_dataset(str(sample), "counts", split="train")


@pytest.fixture(scope="module")
def calibration(sample: Path) -> Calibration:
    return Calibration.load(str(sample))


@pytest.fixture(scope="module")
def rows(counts: Dataset) -> list[dict[str, Any]]:
    return list(counts)


@pytest.fixture(scope="module")
def folding(full_sample: Path) -> Calibration:
    """With config `responses`."""
    return Calibration.load(str(full_sample))


def test_energies_are_those_of_the_rmf_file(calibration: Calibration, rows: list[dict[str, Any]]) -> None:
    low, high = calibration.energies(rows[0]["ebounds_id"])
    with fits.open(REAL_FOLDER / "acisf04938_000N002_r0043_rmf3.fits") as hdus:
        np.testing.assert_array_equal(low, hdus["EBOUNDS"].data["E_MIN"])
        np.testing.assert_array_equal(high, hdus["EBOUNDS"].data["E_MAX"])


def test_what_is_done_to_the_energies_does_not_reach_the_calibration(calibration: Calibration, rows: Any) -> None:
    calibration.energies(rows[0]["ebounds_id"])[0][:] = 0
    assert calibration.energies(rows[0]["ebounds_id"])[0][0] > 0


@st.composite
def channel_edges(draw: st.DrawFn) -> list[float]:
    """Rising edges of bins that hold a channel each: more than a channel's width apart."""
    steps = draw(st.lists(st.floats(0.0147, 3.0), min_size=1, max_size=30))
    edges = draw(st.floats(0.0, 1.0)) + np.cumsum([0.0, *steps])
    return [edge for edge in edges.tolist() if edge < 14.9] or [0.5, 1.0]


@stable(60)
@given(edges=channel_edges(), number=st.integers(0, 61), data=st.data())
def test_sums_are_exact_on_any_coarser_grid(
    calibration: Calibration, rows: list[dict[str, Any]], edges: list[float], number: int, data: st.DataObject
) -> None:
    """Each count is in the one bin that holds its channel's centre, and merging bins adds them up."""
    if len(edges) < 2:
        edges = [edges[0], edges[0] + 1.0]
    row = rows[number]
    fine = calibration.rebin(row, edges)
    low, high = calibration.energies(row["ebounds_id"])
    centre = (low + high) / 2
    for name in ("counts", "background_counts"):
        channels = np.array(row[name])
        expected = [channels[(centre >= a) & (centre < b)].sum() for a, b in itertools.pairwise(edges)]
        assert fine[name].dtype == np.int64
        np.testing.assert_array_equal(fine[name], expected)

    middle = data.draw(st.sets(st.integers(1, len(edges) - 2)) if len(edges) > 2 else st.just(set()))
    chosen = sorted({0, len(edges) - 1} | middle)
    coarse = calibration.rebin(row, np.array(edges)[chosen])
    width = fine["energy_hi"] - fine["energy_lo"]
    for name in ("counts", "background_counts"):
        np.testing.assert_array_equal(coarse[name], np.add.reduceat(fine[name], chosen[:-1]))
    np.testing.assert_allclose(
        coarse["effective_area"] * (coarse["energy_hi"] - coarse["energy_lo"]),
        np.add.reduceat(fine["effective_area"] * width, chosen[:-1]),
        rtol=1e-9,
    )
    area = row["arf"]["specresp"]
    inside = (fine["energy_lo"] >= row["arf"]["energy_lo"][0]) & (fine["energy_hi"] <= row["arf"]["energy_hi"][-1])
    assert np.all(fine["effective_area"][inside] >= min(area) * (1 - 1e-6))
    assert np.all((fine["effective_area"] >= 0) & (fine["effective_area"] <= max(area) * (1 + 1e-6)))


def test_the_mean_area_is_the_integral_over_the_channels_range(calibration: Calibration, rows: Any) -> None:
    """By brute force, a million steps through one bin; and 0 above 9.3 keV, where the ARF ends."""
    row = rows[0]
    found = calibration.rebin(row, [1.0, 2.5, 9.5, 12.0])
    arf = {name: np.array(values) for name, values in row["arf"].items()}
    steps = np.linspace(found["energy_lo"][0], found["energy_hi"][0], 1_000_001)
    at = np.searchsorted(arf["energy_lo"], steps, side="right") - 1
    assert found["effective_area"][0] == pytest.approx(arf["specresp"][at].mean(), rel=1e-5)
    assert found["effective_area"][2] == 0


def test_bins_meet_where_a_channel_ends_within_half_a_channel_of_the_edges(calibration: Calibration, rows: Any) -> None:
    found = calibration.rebin(rows[0], EDGES)
    np.testing.assert_array_equal(found["energy_hi"][:-1], found["energy_lo"][1:])
    assert np.all(np.abs(np.append(found["energy_lo"], found["energy_hi"][-1]) - EDGES) < 0.0146 / 2 + 1e-6)


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_batch_in_any_format_is_its_rows(calibration: Calibration, counts: Dataset, rows: Any, form: Any) -> None:
    batch = calibration.rebin(counts.with_format(form)[:5], EDGES)
    assert {array.shape for array in batch.values()} == {(5, 64)}
    for number in range(5):
        for name, values in calibration.rebin(rows[number], EDGES).items():
            np.testing.assert_array_equal(batch[name][number], values)


def test_a_collated_batch_is_its_rows_however_long_their_areas_are(calibration: Calibration, rows: Any) -> None:
    short = rows[1] | {"arf": {name: values[:500] for name, values in rows[1]["arf"].items()}}
    batch = calibration.rebin(collate([rows[0], short]), EDGES)
    for number, row in enumerate((rows[0], short)):
        for name, values in calibration.rebin(row, EDGES).items():
            np.testing.assert_array_equal(batch[name][number], values)


def test_an_empty_batch_gives_empty_arrays_of_the_same_types(calibration: Calibration, counts: Dataset) -> None:
    empty, full = (calibration.rebin(counts.select(range(length))[:], EDGES) for length in (0, 1))
    assert {array.shape for array in empty.values()} == {(0, 64)}
    assert {name: array.dtype for name, array in empty.items()} == {name: array.dtype for name, array in full.items()}


@pytest.mark.parametrize("streaming", [False, True])
def test_rebin_in_a_map_gives_a_view_of_fixed_size(
    calibration: Calibration, sample: Path, rows: list[dict[str, Any]], streaming: bool
) -> None:
    data: Dataset | IterableDataset = load_dataset(str(sample), "counts", split="train", streaming=streaming)
    view = data.map(calibration.rebin, batched=True, fn_kwargs={"edges": EDGES}).with_format("numpy")
    for row, found in zip(rows, view, strict=True):
        np.testing.assert_array_equal(found["counts"], calibration.rebin(row, EDGES)["counts"])
        assert found["effective_area"].shape == (64,)


def test_a_map_is_cached_whatever_was_folded_before(folding: Calibration, counts: Dataset) -> None:
    row = counts[0]
    keys = []
    for _ in range(2):
        keys.append(counts.map(folding.rebin, batched=True, fn_kwargs={"edges": EDGES})._fingerprint)
        folding.fold(PowLaw1D("powerlaw"), row)
    assert keys[0] == keys[1]


@pytest.mark.parametrize("detection", [0, 1])
@pytest.mark.parametrize("shape", ["power law", "narrow line"])
def test_folding_is_that_of_sherpa(folding: Calibration, counts: Dataset, detection: int, shape: str) -> None:
    """RSPModelPHA on the files themselves."""
    model = PowLaw1D("powerlaw") if shape == "power law" else NormGauss1D("line")
    if shape == "power law":
        model.gamma, model.ampl = 1.7, 1e-4
    else:
        model.pos, model.fwhm, model.ampl = 6.4, 0.01, 1e-4
    data = read_pha(str(REAL_FOLDER / f"{list(REAL.values())[detection]}_pha3.fits"))
    expected = RSPModelPHA(data.get_arf(), data.get_rmf(), data, data.exposure * model)(data.channel)
    found = folding.fold(model, counts[detection])
    assert found.shape == expected.shape == (1024,)
    assert expected.sum() > 1
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_folding_takes_a_function_and_a_row_in_any_format(folding: Calibration, counts: Dataset) -> None:
    def flat(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.asarray(1e-4 * (high - low))

    plain = folding.fold(flat, counts[0])
    for form in ("numpy", "torch"):
        np.testing.assert_allclose(folding.fold(flat, counts.with_format(form)[0]), plain, rtol=1e-6)


def test_a_row_of_pandas_is_a_row(folding: Calibration, full_sample: Path, rows: Any) -> None:
    row = pd.read_parquet(next((full_sample / "counts").glob("train-*"))).iloc[0]
    assert row["detection_id"] == rows[0]["detection_id"]
    np.testing.assert_array_equal(folding.fold(np.subtract, row), folding.fold(np.subtract, rows[0]))
    for name, values in folding.rebin(row, EDGES).items():
        np.testing.assert_array_equal(values, folding.rebin(rows[0], EDGES)[name])


def test_groups_of_channels_count_from_the_first_channel_of_the_file() -> None:
    """A file whose first channel is 0, with no, one and two groups at its three energies."""
    row = {
        "rmf_sha256": "x",
        "first_channel": 0,
        "energy_lo": [1.0, 2.0, 3.0],
        "energy_hi": [2.0, 3.0, 4.0],
        "n_grp": [0, 1, 2],
        "f_chan": [0, 5, 1022],
        "n_chan": [2, 1, 2],
        "matrix": [0.25, 0.75, 0.5, 0.25, 0.125],
    }
    arf = {"energy_lo": row["energy_lo"], "energy_hi": row["energy_hi"], "specresp": [9.0, 10.0, 100.0]}
    calibration = Calibration([], Dataset.from_list([row]))
    found = calibration.fold(lambda low, high: low, {"exposure": 2.0, "arf": arf, "rmf_sha256": "x"})
    expected = np.zeros(1024)
    expected[[0, 1, 5, 1022, 1023]] = [10.0, 30.0, 300.0, 150.0, 75.0]
    np.testing.assert_allclose(found, expected)


def test_many_responses_are_folded_in_any_order() -> None:
    """More than are kept in memory at once."""
    rows = [
        {
            "rmf_sha256": str(number),
            "first_channel": 1,
            "energy_lo": [1.0],
            "energy_hi": [2.0],
            "n_grp": [1],
            "f_chan": [1 + number],
            "n_chan": [1],
            "matrix": [1.0],
        }
        for number in range(12)
    ]
    calibration = Calibration([], Dataset.from_list(rows))
    arf = {"energy_lo": [1.0], "energy_hi": [2.0], "specresp": [3.0]}
    for number in [*range(12), 0, 11, 5]:
        found = calibration.fold(lambda low, high: high, {"exposure": 1.0, "arf": arf, "rmf_sha256": str(number)})
        assert np.flatnonzero(found).tolist() == [number] and found[number] == 6.0
        assert len(calibration._decoded) <= 8  # 16 MB each


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("no channel grid 'abc'", lambda c, row: c.energies("abc")),
        ("must be two or more rising numbers", lambda c, row: c.rebin(row, [1.0, 1.0])),
        ("must be two or more rising numbers", lambda c, row: c.rebin(row, [1.0])),
        ("must be two or more rising numbers", lambda c, row: c.rebin(row, [1.0, np.nan])),
        ("must be two or more rising numbers", lambda c, row: c.rebin(row, ["a", "b"])),
        ("must be two or more rising numbers", lambda c, row: c.rebin(row, [[1.0], [2.0, 3.0]])),
        (
            r"values of shape \(3, 900\) for 900 energy bins",
            lambda c, row: c.fold(lambda low, high: np.ones((3, 1)) * low, collate([row, row])),
        ),
        (r"no channel has its centre in 1.001-1.01 keV", lambda c, row: c.rebin(row, [0.5, 1.001, 1.01])),
        (r"no channel has its centre in 15-20 keV: .* within 0.0073-14.9", lambda c, row: c.rebin(row, [1, 15, 20])),
        ("no counts in the row: give rows of config counts", lambda c, row: c.rebin(without(row, "counts"), EDGES)),
        ("no arf in the row: give rows of config counts", lambda c, row: c.fold(np.subtract, without(row, "arf"))),
        ("config responses has no RMF 0000", lambda c, row: c.fold(np.subtract, row | {"rmf_sha256": "0000"})),
        (r"values of shape \(3,\) for 900 energy", lambda c, row: c.fold(lambda low, high: low[:3], row)),
        (
            "energies of the ARF and of RMF .* differ",
            lambda c, row: c.fold(np.subtract, row | {"arf": {key: value[1:] for key, value in row["arf"].items()}}),
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folding: Calibration, counts: Dataset, message: str, wrong: Any) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        wrong(folding, counts[0])
    assert "\n" not in str(caught.value)


def test_a_folder_without_responses_says_how_to_get_them(sample: Path, counts: Dataset) -> None:
    with pytest.raises(SettingError, match=r"chandra_spectra has no config responses: prepare .* --with-responses"):
        Calibration.load(str(sample)).fold(np.subtract, counts[0])
    with pytest.raises(SettingError, match="takes config responses"):
        Calibration([]).fold(np.subtract, counts[0])


@pytest.mark.parametrize("option", [{"streaming": True}, {"split": "train"}, {"name": "counts"}], ids=str)
def test_the_tables_are_loaded_whole(sample: Path, option: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"loaded whole.* leave out {next(iter(option))}"):
        Calibration.load(str(sample), **option)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([1.0, 0.5], [1.5, 1.0]),
        ([0.5, 1.0], [0.5, 1.5]),
        ([0.5, 1.0], [1.0, np.nan]),
        ([0.5, 1.0], [1.1, 1.5]),
        ([0.5, 1.0], [0.9, 1.5]),
    ],
    ids=["falling", "no width", "no number", "overlap", "gap"],
)
def test_a_bad_grid_is_refused_where_it_is_used_and_not_where_a_folder_is_loaded(
    low: list[float], high: list[float]
) -> None:
    good = {"ebounds_id": "good", "energy_lo": [0.5, 1.0], "energy_hi": [1.0, 1.5]}
    calibration = Calibration([good, {"ebounds_id": "bad", "energy_lo": low, "energy_hi": high}])
    assert calibration.energies("good")[0].tolist() == [0.5, 1.0]
    with pytest.raises(SettingError, match="channel grid bad: the grid has a bin"):
        calibration.energies("bad")


def test_a_response_that_could_not_be_kept_says_why(full_sample: Path, counts: Dataset) -> None:
    responses = load_dataset(str(full_sample), "responses", split="train")
    row = responses[0]
    null = dict.fromkeys(row) | {name: row[name] for name in ("rmf_sha256", "ebounds_id")}
    table = Dataset.from_list([null | {"fault": "its matrix is damaged"}], features=responses.features)
    with pytest.raises(SettingError, match="could not be kept: its matrix is damaged"):
        Calibration([], table).fold(np.subtract, counts[0] | {"rmf_sha256": row["rmf_sha256"]})


def test_importing_the_module_imports_neither_torch_nor_sherpa() -> None:
    code = "import chandra_spectra, sys; print(sorted({'sherpa', 'torch'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")
