"""Config `binned`: channels in fixed bins, and responses that make a likelihood one matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset

from builder.model.folding import PHOTON_ENERGIES
from builder.use.calibration import Calibration

BINS = 64


@pytest.fixture(scope="module")
def loaded(full_sample: Path) -> dict[str, Dataset]:
    """Both configs, all rows, in the same order."""
    return {
        config: concatenate_datasets(list(load_dataset(str(full_sample), config).values()))
        for config in ("counts", "binned")
    }


@pytest.fixture(scope="module")
def calibration(full_sample: Path) -> Calibration:
    return Calibration.load(str(full_sample))


def test_the_bins_hold_what_rebin_gives(loaded: dict[str, Dataset], calibration: Calibration) -> None:
    binned = loaded["binned"].with_format("numpy")[:]
    again = calibration.rebin(loaded["counts"].with_format("arrow")[:], np.geomspace(0.5, 8, BINS + 1))
    for name, expected in again.items():
        assert np.array_equal(binned[name], expected.astype(binned[name].dtype)), name
        assert binned[name].shape == (62, BINS)
    edges = np.geomspace(*PHOTON_ENERGIES, 2 * BINS + 1).astype(np.float32)
    assert (binned["photon_energy_lo"] == edges[:-1]).all() and (binned["photon_energy_hi"] == edges[1:]).all()
    assert loaded["binned"]["response_fault"] == [None] * 62
