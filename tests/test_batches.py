"""Rows become batches of torch tensors, the same by every way that `datasets` and torch have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset

from builder.model.errors import MissingExtraError, SettingError
from builder.use.batches import collate
from tests.runs import python

LOADERS = """
import hashlib, json, sys
from datasets import load_dataset
from torch.utils.data import DataLoader
from chandra_spectra import collate

def digest(value):
    if isinstance(value, dict):
        return {name: digest(each) for name, each in value.items()}
    data = value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode()
    return hashlib.sha256(data).hexdigest()

def read(data):
    batches = list(DataLoader(data, batch_size=16, num_workers=2, collate_fn=collate))
    ids = [number for batch in batches for number in batch["object_id"].tolist()]
    return {"ids": ids, "first": digest(batches[0])}

found = {}
for config in ("spectra", "counts"):
    for form in (None, "numpy", "torch"):
        for streaming in (False, True):
            data = load_dataset(sys.argv[1], config, split="train", streaming=streaming).with_format(form)
            found[f"{config} {form} {streaming}"] = read(data)
mapped = load_dataset(sys.argv[1], split="train")
found["three shards"] = read(mapped.to_iterable_dataset(num_shards=3).with_format("torch"))
print(json.dumps(found))
"""
FORMS = [None, "numpy", "torch"]


@pytest.fixture(scope="module")
def loaded(sample: Path) -> dict[str, Any]:
    """What DataLoader(num_workers=2) gives for each config, format and way of reading."""
    found: dict[str, Any] = python(LOADERS, sample)
    return found


@pytest.fixture(scope="module")
def spectra(sample: Path) -> Dataset:
    return load_dataset(str(sample), split="train")


@pytest.fixture(scope="module")
def counts(sample: Path) -> Dataset:
    return load_dataset(str(sample), "counts", split="train")


def test_two_workers_give_each_row_once_mapped_and_streaming(loaded: dict[str, Any], spectra: Dataset) -> None:
    """The one shard of the sample has work for one of them, when it is streamed."""
    expected = list(spectra["object_id"])
    assert len(expected) == 62
    for way, found in loaded.items():
        assert (sorted(found["ids"]) if way == "three shards" else found["ids"]) == expected, way


@pytest.mark.parametrize("config", ["spectra", "counts"])
def test_workers_give_the_same_batch_in_every_format_mapped_and_streaming(loaded: dict[str, Any], config: str) -> None:
    first, *others = [found["first"] for way, found in loaded.items() if way.startswith(config)]
    assert len(others) == 5
    assert all(other == first for other in others)


@pytest.mark.parametrize("form", FORMS)
def test_the_ragged_spectrum_is_padded_with_its_lengths_and_mask(spectra: Dataset, form: Any) -> None:
    batch = collate([spectra.with_format(form)[number] for number in range(20)])
    plain = spectra[:20]
    struct = batch["spectrum"]
    longest = max(plain["n_bins"])
    assert struct["lengths"].dtype == torch.int64 and struct["lengths"].tolist() == plain["n_bins"]
    assert struct["mask"].dtype == torch.bool and struct["mask"].shape == (20, longest)
    assert struct.keys() == plain["spectrum"][0].keys() | {"lengths", "mask"}
    for name in plain["spectrum"][0]:
        assert struct[name].dtype == torch.float32 and struct[name].shape == (20, longest)
        assert not struct[name][~struct["mask"]].any()
        for number, spectrum in enumerate(plain["spectrum"]):
            assert struct[name][number][struct["mask"][number]].tolist() == spectrum[name]


@pytest.mark.parametrize("form", FORMS)
def test_channels_stack_and_the_effective_area_is_padded(counts: Dataset, form: Any) -> None:
    batch = collate([counts.with_format(form)[number] for number in range(5)])
    for name in ("counts", "background_counts"):
        assert batch[name].dtype == torch.int64
        assert batch[name].tolist() == counts[:5][name]
    assert batch["arf"]["specresp"].shape == batch["arf"]["mask"].shape == (5, 900)
    assert batch["arf"]["lengths"].tolist() == [900] * 5


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_is_null_in_all_rows_is_still_a_list(spectra: Dataset, form: Any) -> None:
    rows = [spectra.with_format(form)[number] | {"instrument": None} for number in range(2)]
    assert collate(rows)["instrument"] == [None, None]


def test_structs_of_the_users_own_are_lists(spectra: Dataset) -> None:
    own = [{"a": 1}, {"a": 2}]
    assert collate([spectra[number] | {"own": own[number]} for number in range(2)])["own"] == own


def test_effective_areas_of_different_lengths_are_padded_too(counts: Dataset) -> None:
    rows = [counts[0], counts[1]]
    rows[1]["arf"] = {name: values[:100] for name, values in rows[1]["arf"].items()}
    arf = collate(rows)["arf"]
    assert arf["lengths"].tolist() == [900, 100]
    assert arf["mask"].sum(dim=1).tolist() == [900, 100]
    assert arf["energy_lo"][1, 99] > 0 == arf["energy_lo"][1, 100]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chosen", [[0, 1], [2, 3], [1, 2]], ids=["all null", "no null", "both"])
def test_a_column_has_one_type_in_every_batch_and_nulls_are_as_in_hdf5(
    spectra: Dataset, form: Any, chosen: list[int]
) -> None:
    """The two real rows have no catalog values, the simulated ones have most of them."""
    batch = collate([spectra.with_format(form)[number] for number in chosen])
    plain = spectra.select(chosen)[:]
    types = {"bool": torch.int8, "int32": torch.int64, "int64": torch.int64}
    for name, feature in spectra.features.items():
        if name == "spectrum":
            continue
        if feature.dtype == "string":
            assert batch[name] == plain[name] and {type(text) for text in batch[name]} == {str}
            continue
        assert batch[name].dtype == types.get(feature.dtype, torch.float32), name
        null = -1 if feature.dtype in types else np.nan
        expected = [null if value is None else value for value in plain[name]]
        np.testing.assert_array_equal(batch[name].numpy(), np.array(expected).astype(batch[name].numpy().dtype))


def test_columns_that_a_user_adds_come_along(spectra: Dataset) -> None:
    def add(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "bright": row["theta"] < 3,
            "pair": [1.5, row["n_bins"]],
            "ragged": [1] * row["region_id"],
            "some": None if row["obsid"] < 10000 else 1,
        }

    batch = collate(list(spectra.select(range(4)).map(add)))
    assert batch["bright"].dtype == torch.bool
    assert batch["pair"].shape == (4, 2) and batch["pair"].dtype == torch.float32
    assert [len(values) for values in batch["ragged"]] == batch["region_id"].tolist()
    assert batch["some"].isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_with_format_alone_gives_usable_tensors(sample: Path, counts: Dataset, streaming: bool, form: str) -> None:
    """Channels stack in a batch without `collate`; a struct stays a list of dicts."""
    data = load_dataset(str(sample), "counts", split="train", streaming=streaming).with_format(form)
    batch = next(data.iter(batch_size=6))
    plain = counts[:6]
    kind = torch.Tensor if form == "torch" else np.ndarray
    for name in ("counts", "background_counts"):
        assert isinstance(batch[name], kind) and batch[name].shape == (6, 1024)
        assert batch[name].tolist() == plain[name]
    for area, expected in zip(batch["arf"], plain["arf"], strict=True):
        assert isinstance(area["specresp"], kind) and area["specresp"].tolist() == expected["specresp"]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(SettingError, match="got none"):
        collate([])


def test_without_torch_collate_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'chandra-spectra\[torch\]'"):
        collate([{"theta": 1.0}])
