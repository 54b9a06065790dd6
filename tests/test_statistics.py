"""Mean, spread and quantiles of the rows to train on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from builder.dataset.layout import Manifest
from builder.model.errors import SettingError
from builder.use.verify import verify
from chandra_spectra import Statistics, collate
from tests.folders import rehash


@pytest.mark.parametrize("config", ["spectra", "counts", "binned"])
def test_they_are_those_of_the_rows_to_train_on(full_sample: Path, config: str) -> None:
    statistics = Statistics.load(full_sample, config)
    rows = load_dataset(str(full_sample), config, split="train").with_format("numpy")[:]
    assert statistics.rows == len(rows["name"]) == 46
    assert {"theta", "flux_aper_b", "n_bins", "source_counts", "powlaw_gamma"} <= set(statistics)
    assert not {"ra", "obsid", "healpix", "sat_src_flag"} & set(statistics)
    assert ("counts" in statistics) == (config != "spectra")
    for name, found in statistics.items():
        values = np.asarray(rows[name], dtype=float)
        np.testing.assert_allclose(found.mean, np.nanmean(values, axis=0), rtol=1e-5, atol=1e-30)
        np.testing.assert_allclose(
            found.std, np.nanstd(values, axis=0), rtol=1e-5, atol=1e-12 * np.abs(found.mean).max()
        )
        for level, value in found.quantiles.items():
            np.testing.assert_allclose(value, np.nanquantile(values, level, axis=0), rtol=1e-5)


def test_a_folder_with_and_one_without_splits_have_the_same(sample: Path, full_sample: Path) -> None:
    whole, divided = Manifest.read(sample).statistics, Manifest.read(full_sample).statistics
    assert whole == {name: value for name, value in divided.items() if name != "binned"}
    assert set(load_dataset(str(sample), split="train")["split"]) == {"train", "validation", "test"}


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_what_is_standardised_has_mean_0_and_spread_1(full_sample: Path, form: str) -> None:
    statistics = Statistics.load(full_sample, "binned")
    table = load_dataset(str(full_sample), "binned", split="train").with_format("arrow")[:]
    batch = collate(table)
    for name in ("theta", "counts", "powlaw_gamma"):
        values = batch[name] if form == "torch" else batch[name].numpy()
        made = statistics.standardise(name, values)
        assert isinstance(made, torch.Tensor) == (form == "torch") and made.shape == values.shape
        numbers = np.asarray(made)
        varied = np.atleast_1d(statistics[name].std > 0)
        mean, spread = (np.atleast_1d(of(numbers, axis=0))[varied] for of in (np.nanmean, np.nanstd))
        np.testing.assert_allclose(mean, 0, atol=1e-4)
        np.testing.assert_allclose(spread, 1, rtol=1e-4)
    with pytest.raises(SettingError, match="no statistics of a column 'nothing'"):
        statistics.standardise("nothing", [1.0])


def test_a_config_without_any_is_told(sample: Path) -> None:
    for config in ("binned", "ebounds"):
        with pytest.raises(SettingError, match=f"no statistics of config '{config}'"):
            Statistics.load(sample, config)


def test_the_manifest_has_a_list_of_numbers_in_a_line(full_sample: Path) -> None:
    text = (full_sample / "manifest.json").read_text()
    assert len(text.splitlines()) < 2000 and '"levels": [ 0.0, 0.05,' in text
    assert json.loads(text)["statistics"] == Manifest.read(full_sample).statistics


def test_verify_finds_statistics_that_are_not_those_of_the_rows(full_sample: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))
    rehash(folder, lambda manifest: manifest["statistics"]["spectra"]["theta"].update(mean=0.5))
    assert verify(folder, load=False).failures == ["manifest.json: statistics are not those of the rows"]
