"""A background of few counts is smoothed before a model is fitted on it, which recovers what was put in."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from sherpa.astro.data import DataPHA
from sherpa.models import Const1D
from sherpa.stats import WStat

from builder.model.errors import SettingError
from builder.use.background import smoothed
from builder.use.batches import collate
from builder.use.calibration import Calibration
from tests.fits_files import stable

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "likelihood.py"))


@pytest.fixture(scope="module")
def counts(sample: Path) -> Dataset:
    return load_dataset(str(sample), "counts", split="train")


@pytest.fixture(scope="module")
def calibration(sample: Path) -> Calibration:
    return Calibration.load(str(sample))


@stable(60)
@given(seed=st.integers(0, 2**32), width=st.integers(0, 511).map(lambda half: 2 * half + 1))
def test_each_channel_has_the_mean_of_those_about_it(seed: int, width: int) -> None:
    drawn = np.random.default_rng(seed).poisson(0.3, (2, 1024))
    found = smoothed(drawn, width)
    for channel in (0, 1, 500, 1022, 1023):
        about = drawn[:, max(0, channel - width // 2) : channel + width // 2 + 1]
        np.testing.assert_allclose(found[:, channel], about.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(smoothed(np.ones((1, 1024)), width), 1, rtol=1e-12)
    np.testing.assert_array_equal(smoothed(drawn, 1), drawn)


@pytest.mark.parametrize("width", [0, -1, 2, 1025, 51.0, True, "51"])
def test_a_width_that_has_no_middle_is_refused(width: Any) -> None:
    with pytest.raises(SettingError, match="width must be an odd number of channels"):
        smoothed(np.ones((1, 1024)), width)


def test_a_row_a_table_and_a_batch_have_the_same_background(counts: Dataset, calibration: Calibration) -> None:
    rows = list(counts.select(range(4)))
    single = np.array([calibration.background(row) for row in rows])
    assert single.shape == (4, 1024)
    table = counts.with_format("arrow")[:4]
    assert isinstance(table, pa.Table)
    for batch in (table, counts[:4], collate(rows)):
        np.testing.assert_allclose(calibration.background(batch), single, rtol=1e-6)  # collate gives single precision
    row = rows[0]
    np.testing.assert_array_equal(
        calibration.background(row, width=1), row["background_scale"] * np.array(row["background_counts"])
    )
    assert single[0].sum() == pytest.approx(row["background_scale"] * sum(row["background_counts"]), rel=0.05)


def test_a_row_of_another_config_is_refused(calibration: Calibration) -> None:
    with pytest.raises(SettingError, match="no background_counts in the row"):
        calibration.background({"ebounds_id": "x", "background_scale": 1.0})


def test_the_w_statistic_of_the_benchmark_is_sherpas() -> None:
    generator = np.random.default_rng(0)
    both = [generator.poisson(mean, 60).astype(float) for mean in (3, 0.7)]
    source, other = (
        DataPHA(name, np.arange(1.0, 61), drawn, exposure=100.0, backscal=size)
        for name, drawn, size in zip(("source", "background"), both, (0.1, 1.5), strict=True)
    )
    source.set_background(other)
    ours = BENCHMARK["wstat"](*both, source.get_background_scale())
    told = []
    for level in (0.5, 1.0, 4.0):
        model = Const1D()
        model.c0 = level
        told.append((WStat().calc_stat(source, model)[0], ours(np.full(60, level))))
    first = told[0]
    for theirs, own in told[1:]:
        assert own - first[1] == pytest.approx(theirs - first[0], rel=1e-9)


def test_the_true_index_is_recovered_with_a_smooth_background_and_not_channel_by_channel(full_sample: Path) -> None:
    """The mean of 30 draws, within 3.5 of its errors; channel by channel it is off by more than 4, and so can W be."""
    made = BENCHMARK["experiment"](str(full_sample), "4938.0.43")
    for net, background in BENCHMARK["CASES"]:
        found = made.recover(net, background, 30)
        off = {}
        for name, values in found.items():
            index, norm = values.T
            off[name] = (index.mean() - 1.7) / (index.std(ddof=1) / np.sqrt(len(index)))
            if name in ("smoothed over 51 channels", "in 32 bins"):
                assert abs(norm.mean() - 1) < 3.5 * norm.std(ddof=1) / np.sqrt(len(norm)), (name, net, background)
        assert abs(off["smoothed over 51 channels"]) < 3.5 and abs(off["in 32 bins"]) < 3.5, (net, background, off)
        if (net, background) in ((40, 20), (100, 50)):
            assert off["channel by channel"] < -4, off
        if (net, background) == (40, 4):
            assert off["W, in channels"] > 4, off
