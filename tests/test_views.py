"""A shorter exposure of a row, and its spectrum by another recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from builder import Recipe
from builder.model.errors import SettingError
from builder.reduce.spectrum import group_starts
from chandra_spectra import Calibration, collate, regroup, thin
from tests import fits_files as ff

LISTS = ["counts", "background_counts", "exposure"]


@pytest.fixture(scope="module")
def loaded(sample: Path) -> dict[str, Dataset]:
    return {config: load_dataset(str(sample), config, split="train") for config in ("spectra", "counts")}


@pytest.fixture(scope="module")
def calibration(sample: Path) -> Calibration:
    return Calibration.load(str(sample))


# --- regroup


def test_the_recipe_of_the_folder_gives_its_spectra_bit_for_bit(
    loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    spectra, counts = (loaded[config].with_format("numpy") for config in ("spectra", "counts"))
    for row, channels in zip(spectra, counts, strict=True):
        again = regroup(channels, Recipe(), calibration)
        for name, values in again["spectrum"].items():
            assert values.dtype == np.float32 and np.array_equal(values, row["spectrum"][name]), name
        for name in ("n_bins", "source_counts", "background_counts_total"):
            assert again[name] == row[name], name


@pytest.mark.parametrize(
    "recipe", [Recipe(1, 7, 20), Recipe(subtract=False), Recipe(0.5, 2, group=False), Recipe(2, 8, 1)], ids=str
)
def test_another_recipe_gives_what_the_reduction_of_the_files_gives(
    recipe: Recipe, loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    from builder.reduce.spectrum import reduce_products

    ids = list(loaded["counts"]["detection_id"])
    for detection in ff.REAL:
        expected: Any = reduce_products(ff.real_products(detection), recipe)
        again = regroup(loaded["counts"][ids.index(str(detection))], recipe, calibration)
        assert np.array_equal(again["spectrum"]["flux"], expected.rate.astype(np.float32))
        assert np.array_equal(again["spectrum"]["flux_error"], expected.rate_error.astype(np.float32))
        assert np.array_equal(again["spectrum"]["ene_low_bin"], expected.energy_lo.astype(np.float32))
        assert again["source_counts"] == expected.source_counts


def test_a_row_without_counts_has_one_bin(loaded: dict[str, Dataset], calibration: Calibration) -> None:
    row = loaded["counts"].with_format("numpy")[0] | {"counts": np.zeros(1024, int)}
    again = regroup(row, Recipe(subtract=False), calibration)
    assert (again["n_bins"], again["source_counts"], again["spectrum"]["flux"].tolist()) == (1, 0, [0])


@pytest.mark.parametrize(
    ("change", "recipe", "words"),
    [
        ({}, Recipe(19, 20), "no channel lies within 19-20 keV"),
        ({"ebounds_id": "0" * 16}, Recipe(), "no channel grid"),
        ({"counts": np.zeros((2, 1024), int)}, Recipe(), "a batch is no row"),
    ],
)
def test_what_cannot_be_regrouped_is_told(
    change: dict[str, Any], recipe: Recipe, words: str, loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    with pytest.raises(SettingError, match=words):
        regroup(loaded["counts"].with_format("numpy")[0] | change, recipe, calibration)
    with pytest.raises(SettingError, match="no counts in the row"):
        regroup(loaded["spectra"][0], recipe, calibration)


# --- thin


@given(st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
@ff.stable(20)
def test_thinned_counts_are_binomial(fraction: float, seed: int) -> None:
    """Mean and variance over many draws within 5 standard errors; source and background are independent."""
    draws, number = 4000, np.array([0, 1, 7, 300])
    batch = {
        "counts": np.tile(number, (draws, 1)),
        "background_counts": np.tile(number[::-1], (draws, 1)),
        "exposure": np.full(draws, 1e4),
    }
    made = thin(batch, fraction, np.random.default_rng(seed))
    assert (made["exposure"] == 1e4 * fraction).all()
    for name, whole in (("counts", number), ("background_counts", number[::-1])):
        found, variance = made[name], whole * fraction * (1 - fraction)
        assert ((found >= 0) & (found <= whole)).all()
        assert (np.abs(found.mean(axis=0) - whole * fraction) <= 5 * np.sqrt(variance / draws)).all()
        fourth = variance * (1 + 3 * variance)  # above the fourth central moment, from which the variance's error is
        assert (np.abs(found.var(axis=0) - variance) <= 5 * np.sqrt(fourth / draws)).all()
    assert abs(np.corrcoef(made["counts"][:, 3], made["background_counts"][:, 1])[0, 1]) < 5 / np.sqrt(draws)


def test_a_thinned_poisson_process_is_one_of_a_fraction_of_the_rate() -> None:
    random = np.random.default_rng(5)
    rows = random.poisson(4.0, (20_000, 1))
    made = thin({"counts": rows, "background_counts": rows, "exposure": np.ones(20_000)}, 0.5, random)["counts"]
    assert made.mean() == pytest.approx(2, abs=0.05) and made.var() == pytest.approx(2, abs=0.1)


def test_what_follows_from_the_counts_is_made_again(loaded: dict[str, Dataset], calibration: Calibration) -> None:
    rows = loaded["counts"].with_format("numpy")
    batch = rows[:]
    made = thin(batch, 0.3, np.random.default_rng(1), calibration)
    assert made.keys() == batch.keys()
    for number in range(len(rows)):
        row = rows[number] | {name: made[name][number] for name in (*LISTS, "background_scale")}
        again = regroup(row, Recipe(), calibration)
        for name in ("n_bins", "source_counts", "background_counts_total"):
            assert made[name][number] == again[name], name
    assert np.array_equal(made["background_scale"], batch["background_scale"])
    assert np.array_equal(made["flux_aper_b"], batch["flux_aper_b"], equal_nan=True)


def test_a_batch_keeps_its_types_and_a_fraction_may_be_that_of_each_row(
    loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    batch = collate(loaded["counts"].with_format("arrow")[:8])
    fractions = np.linspace(0.1, 1, 8)
    made = thin(batch, fractions, np.random.default_rng(2), calibration)
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            assert made[name].dtype == value.dtype and made[name].shape == value.shape, name
    assert torch.equal(made["counts"][-1], batch["counts"][-1])
    assert torch.allclose(made["exposure"] / batch["exposure"], torch.tensor(fractions, dtype=torch.float32))
    again = thin(batch, fractions, np.random.default_rng(2), calibration)
    assert torch.equal(made["counts"], again["counts"])


def test_rows_tables_and_maps_are_thinned_alike(loaded: dict[str, Dataset], calibration: Calibration) -> None:
    few = loaded["counts"].select(range(4)).select_columns([*LISTS, "source_counts", "ebounds_id"])
    options: dict[str, Any] = {"fraction": 0.5, "calibration": calibration}
    table = thin(few.with_format("arrow")[:], generator=np.random.default_rng(3), **options)
    mapped = few.map(lambda batch: thin(batch, generator=np.random.default_rng(3), **options), batched=True)
    assert mapped.features == few.features
    assert np.array_equal(mapped.with_format("numpy")[:]["counts"], table["counts"])
    one = thin(few[0], generator=np.random.default_rng(3), **options)
    assert one["exposure"] == few[0]["exposure"] / 2 and one["source_counts"] <= few[0]["source_counts"]


@pytest.mark.parametrize("fraction", [0, 1.1, -1, float("nan"), [0.5, 0.5, 0.5], "half"])
def test_a_fraction_that_is_none_is_refused(fraction: Any) -> None:
    batch = {"counts": np.ones((2, 3), int), "background_counts": np.ones((2, 3), int), "exposure": np.ones(2)}
    with pytest.raises(SettingError, match="fraction must be a number above 0"):
        thin(batch, fraction, np.random.default_rng(0))


def test_what_cannot_be_made_again_is_told(loaded: dict[str, Dataset]) -> None:
    row = loaded["counts"][0]
    with pytest.raises(SettingError, match=r"source_counts follows from the counts .* give calibration"):
        thin(row, 0.5, np.random.default_rng(0))
    with pytest.raises(SettingError, match="no exposure in the batch"):
        thin({"counts": [1], "background_counts": [1]}, 0.5, np.random.default_rng(0))


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
@ff.stable(200)
def test_groups_hold_the_least_counts_and_begin_as_early_as_they_can(counts: list[int], least: int) -> None:
    starts = group_starts(np.array(counts, dtype=int), least)
    ends = [*starts[1:], len(counts)] if starts else []
    assert bool(starts) == bool(counts) and starts[:1] == [0] * bool(counts)
    for begin, end in zip(starts[:-1], ends, strict=False):
        assert sum(counts[begin:end]) >= least > sum(counts[begin : end - 1])
