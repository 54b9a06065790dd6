"""The builder class, used directly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from builder.errors import SettingError
from builder.selection import Selection
from chandra_spectra import ChandraSpectra, ChandraSpectraConfig


def built(config: str, cache: Path, **options: object) -> ChandraSpectra:
    builder = ChandraSpectra(config_name=config, archive="embedded", cache_dir=str(cache))
    builder.download_and_prepare(**options)
    return builder


@pytest.mark.parametrize("config", ["spectra", "counts", "ebounds"])
def test_the_builder_gives_the_rows_of_the_prepared_folder(config: str, sample: Path, tmp_path: Path) -> None:
    mine = built(config, tmp_path / "cache").as_dataset(split="train")
    theirs = load_dataset(str(sample), config, split="train", cache_dir=str(tmp_path / "other"))
    assert mine.features == theirs.features
    assert mine.to_list() == theirs.to_list()


def test_several_processes_give_the_same_rows(tmp_path: Path) -> None:
    one = built("spectra", tmp_path / "one").as_dataset(split="train")
    two = built("spectra", tmp_path / "two", num_proc=2).as_dataset(split="train")
    assert one.to_list() == two.to_list()


def test_the_builder_streams(sample: Path, tmp_path: Path) -> None:
    builder = ChandraSpectra(config_name="counts", archive="embedded", cache_dir=str(tmp_path))
    row = next(iter(builder.as_streaming_dataset(split="train").with_format("numpy")))
    assert row["counts"].shape == (1024,)
    assert row["arf"]["specresp"].dtype == np.float32


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"min_cnts": -1}, "min_cnts"),
        ({"max_theta": math.nan}, "max_theta"),
        ({"min_sig": "4"}, "min_sig"),
        ({"release": "rel3"}, "rel3"),
        ({"archive": ""}, "archive"),
    ],
)
def test_a_wrong_setting_is_refused_on_construction_in_one_sentence(setting: dict[str, object], words: str) -> None:
    for construct in (ChandraSpectra, ChandraSpectraConfig):
        with pytest.raises(SettingError, match=words) as caught:
            construct(**setting)
        assert "\n" not in str(caught.value)


def test_the_named_configs_hold_the_recommended_cuts() -> None:
    default, short = ChandraSpectra().config, ChandraSpectra(config_name="spectra_short").config
    assert default.settings.selection == Selection(40, 4, 10)
    assert short.settings.selection == Selection(4000, 80, 1)
