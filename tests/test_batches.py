"""Rows become batches of torch tensors, the same by every way that `datasets` and torch have."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from builder.model.errors import MissingExtraError, SettingError
from builder.use.batches import Buckets, collate
from tests.fits_files import stable
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
FORMS = [None, "numpy", "torch", "arrow"]


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


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
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
            assert batch[name] == plain[name] and {type(text) for text in batch[name]} <= {str, type(None)}
            continue
        assert batch[name].dtype == types.get(feature.dtype, torch.float32), name
        null = -1 if feature.dtype in types else np.nan
        expected = [null if value is None else value for value in plain[name]]
        np.testing.assert_array_equal(batch[name].numpy(), np.array(expected).astype(batch[name].numpy().dtype))


@pytest.mark.parametrize("form", FORMS)
def test_columns_that_a_user_adds_come_along(spectra: Dataset, form: Any) -> None:
    def add(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "bright": row["theta"] < 3,
            "pair": [1.5, row["n_bins"]],
            "ragged": [1] * row["region_id"],
            "label": None if row["obsid"] < 10000 else row["obi"],
        }

    added = spectra.select(range(4)).map(add)
    batch = collate([added.with_format(form)[number] for number in range(4)])
    assert batch["bright"].dtype == torch.int8 and batch["bright"].tolist() == [int(v) for v in added["bright"]]
    assert batch["pair"].tolist() == added["pair"][:] and batch["pair"].dtype == torch.float32
    assert batch["ragged"].dtype == torch.int64 and batch["ragged_lengths"].tolist() == added["region_id"][:]
    assert batch["ragged"].sum(dim=1).tolist() == added["region_id"][:]
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [-1 if value is None else value for value in added["label"]]


@pytest.mark.parametrize("form", FORMS)
def test_class_labels_are_integers_by_their_own_names_or_others(spectra: Dataset, form: Any) -> None:
    """Whatever the column is called, and though column detnam of the dataset is a text."""
    labelled = spectra.class_encode_column("detnam").add_column("kind", ["a", None] * 31)
    labelled = labelled.cast_column("kind", ClassLabel(names=["b", "a"])).with_format(form)
    batch = collate([labelled[number] for number in range(6)])
    assert batch["kind"].dtype == batch["detnam"].dtype == torch.int64
    assert batch["kind"].tolist() == [1, -1] * 3
    assert batch["detnam"].tolist() == labelled.with_format(None)["detnam"][:6]


def test_a_table_of_nulls_only_has_the_types_of_its_schema(spectra: Dataset) -> None:
    """Rows that are no tables cannot tell what a column of the user's own holds, if it is null in all of them."""
    kinds = {"whole": pa.int32(), "real": pa.float64(), "flag": pa.bool_(), "text": pa.string()}
    lists = {"ragged": pa.list_(pa.int16()), "fixed": pa.list_(pa.float32(), 3), "counts": pa.list_(pa.int8(), 2)}
    table = pa.table({name: pa.nulls(2, kind) for name, kind in (kinds | lists).items()})
    batch = collate(table)
    assert batch["whole"].tolist() == [-1, -1] and batch["whole"].dtype == torch.int64
    assert batch["real"].isnan().all() and batch["real"].dtype == torch.float32
    assert batch["flag"].tolist() == [-1, -1] and batch["flag"].dtype == torch.int8
    assert batch["text"] == [None, None]
    assert batch["ragged"].shape == (2, 0) and batch["ragged_lengths"].tolist() == [0, 0]
    assert batch["fixed"].shape == (2, 3) and batch["fixed"].isnan().all()
    assert batch["counts"].tolist() == [[-1, -1]] * 2


@stable(40)
@given(data=st.data())
def test_a_table_is_collated_as_its_rows_are_however_it_is_cut(data: st.DataObject) -> None:
    """Chunks, offsets, nulls: the tables that come from files, filters and shuffles."""
    rows: list[dict[str, Any]] = data.draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "a": st.none() | st.integers(-(2**40), 2**40),
                    "b": st.none() | st.booleans(),
                    "c": st.none() | st.floats(width=32, allow_nan=False),
                    "l": st.none() | st.lists(st.integers(0, 9), max_size=4),
                    "s": st.lists(st.integers(0, 9), max_size=4).map(lambda v: {"x": v, "y": [n / 2 for n in v]}),
                }
            ),
            min_size=1,
            max_size=12,
        )
    )
    struct = pa.struct({"x": pa.list_(pa.int32()), "y": pa.list_(pa.float32())})
    kinds = {"a": pa.int64(), "b": pa.bool_(), "c": pa.float32(), "l": pa.list_(pa.int32()), "s": struct}
    table = pa.Table.from_pylist(rows, schema=pa.schema(kinds))
    begin = data.draw(st.integers(0, len(rows) - 1))
    cuts = sorted({begin, len(rows)} | data.draw(st.sets(st.integers(begin, len(rows)))))
    pieces = [table.slice(first, last - first) for first, last in itertools.pairwise(cuts)]
    rows = rows[begin:]
    for batch in (collate(pieces), collate(pa.concat_tables(pieces))):
        assert batch["a"].tolist() == [-1 if row["a"] is None else row["a"] for row in rows]
        assert batch["b"].tolist() == [-1 if row["b"] is None else int(row["b"]) for row in rows]
        np.testing.assert_array_equal(batch["c"], [np.nan if row["c"] is None else row["c"] for row in rows])
        for name, values in {"l": [row["l"] or [] for row in rows], "x": [row["s"]["x"] for row in rows]}.items():
            lengths = batch["l_lengths"] if name == "l" else batch["s"]["lengths"]
            padded = batch["l"] if name == "l" else batch["s"]["x"]
            assert lengths.tolist() == [len(each) for each in values]
            longest = max(map(len, values))
            assert padded.tolist() == [each + [0] * (longest - len(each)) for each in values]
        assert (batch["s"]["y"] * 2).tolist() == batch["s"]["x"].tolist()
        assert batch["s"]["mask"].sum(dim=1).tolist() == batch["s"]["lengths"].tolist()


@stable(40)
@given(lengths=st.lists(st.integers(0, 500), max_size=900), size=st.integers(1, 9))
def test_batches_by_length_have_each_row_once_in_another_order_each_time(lengths: list[int], size: int) -> None:
    buckets = Buckets(lengths, size, torch.Generator().manual_seed(0))
    first, second = list(buckets), list(buckets)
    for epoch in (first, second):
        assert sorted(number for batch in epoch for number in batch) == list(range(len(lengths)))
        assert {len(batch) for batch in epoch} <= {size, *range(1, size)}
        assert len(epoch) >= len(buckets)
    assert first == list(Buckets(lengths, size, torch.Generator().manual_seed(0)))
    assert len(lengths) < 50 or first != second


def test_batches_by_length_hardly_pad() -> None:
    """The lengths spread as those of the catalog's spectra do: most are short, some are long."""
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000).astype(int) + 1
    padded = sum(lengths[batch].max() * len(batch) for batch in Buckets(lengths, 64))
    assert padded < 1.1 * lengths.sum()
    plain = BatchSampler(SequentialSampler(lengths), 64, drop_last=False)
    assert sum(lengths[batch].max() * len(batch) for batch in plain) > 3 * lengths.sum()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_tables_takes_batches_by_length(spectra: Dataset, workers: int) -> None:
    data = spectra.select_columns(["object_id", "n_bins", "spectrum"]).with_format("arrow")
    sampler = Buckets(spectra["n_bins"], 8)
    found = list(DataLoader(data, sampler=sampler, batch_size=None, collate_fn=collate, num_workers=workers))
    assert sorted(number for batch in found for number in batch["object_id"].tolist()) == spectra["object_id"][:]
    for batch in found:
        assert batch["spectrum"]["lengths"].tolist() == batch["n_bins"].tolist()


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
