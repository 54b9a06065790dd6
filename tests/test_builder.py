"""The builder class, used directly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset

from builder.model.errors import SettingError
from builder.model.selection import Selection
from chandra_spectra import ChandraSpectra, ChandraSpectraConfig


def built(config: str, cache: Path, splits: str = "none", **options: object) -> ChandraSpectra:
    builder = ChandraSpectra(config_name=config, archive="embedded", splits=splits, cache_dir=str(cache))
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


def test_what_many_rows_share_is_there_once_though_several_processes_are_asked_for(tmp_path: Path) -> None:
    grids = built("ebounds", tmp_path, num_proc=2).as_dataset(split="train")["ebounds_id"][:]
    assert len(grids) == len(set(grids)) > 0


def test_what_is_left_out_is_said_once_however_many_splits_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(built("spectra", tmp_path, splits="source").as_dataset()) == 3
    (message,) = (record.message for record in caplog.records if record.name == "chandra_spectra")
    assert "detections have no usable spectrum and are left out" in message


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
def test_a_wrong_setting_is_refused_on_construction_in_one_sentence(setting: dict[str, Any], words: str) -> None:
    for construct in (ChandraSpectra, ChandraSpectraConfig):
        with pytest.raises(SettingError, match=words) as caught:
            construct(**setting)
        assert "\n" not in str(caught.value)


def test_the_named_configs_hold_the_recommended_cuts() -> None:
    default, short = ChandraSpectra().config, ChandraSpectra(config_name="spectra_short").config
    assert default.settings.selection == Selection(40, 4, 10)
    assert short.settings.selection == Selection(4000, 80, 1)
