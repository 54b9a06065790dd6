"""Parquet shards have the names and the content that `datasets` and the hub look for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, List, Value, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from builder.dataset import shards
from builder.dataset.shards import ShardWriter
from tests.fits_files import stable

FEATURES = Features({"number": Value("int64"), "text": Value("string"), "values": List(Value("float32"))})
SCHEMA = FEATURES.arrow_schema


def table(start: int, rows: int) -> pa.Table:
    """In the types that come before the cast to the schema: float64 lists."""
    numbers = range(start, start + rows)
    return pa.table(
        {
            "number": pa.array(list(numbers), pa.int64()),
            "text": [f"row {n}" for n in numbers],
            "values": pa.array([[n / 4.0] * (n % 3) for n in numbers], pa.list_(pa.float64())),
        }
    )


def write(folder: Path, sizes: list[int], **options: Any) -> ShardWriter:
    with ShardWriter(folder, SCHEMA, **options) as writer:
        start = 0
        for size in sizes:
            writer.append(table(start, size).cast(SCHEMA))
            start += size
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(writer: ShardWriter) -> list[int]:
    return [number for path in writer.paths for number in pq.read_table(path)["number"].to_pylist()]


def test_one_shard(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    writer = write(folder, [3, 0, 4])
    assert names(folder) == ["train-00000-of-00001.parquet"]
    assert writer.paths == [folder / "train-00000-of-00001.parquet"]
    assert writer.rows == [7]
    assert pq.read_table(writer.paths[0]).equals(table(0, 7).cast(SCHEMA))


def test_the_split_is_in_the_name(tmp_path: Path) -> None:
    write(tmp_path, [1], split="test")
    assert names(tmp_path) == ["test-00000-of-00001.parquet"]


def test_rows_are_cast_to_the_schema(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, SCHEMA) as writer:
        writer.append(table(0, 5))
    assert pq.read_schema(writer.paths[0]).field("values").type.value_type == pa.float32()


def test_a_large_set_is_split_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_ROWS", 10)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 500)
    writer = write(tmp_path, [7] * 20)
    total = len(writer.paths)
    assert total > 2
    assert names(tmp_path) == [f"train-{number:05d}-of-{total:05d}.parquet" for number in range(total)]
    assert content(writer) == list(range(140))
    assert writer.rows == [pq.read_metadata(path).num_rows for path in writer.paths]
    assert sum(writer.rows) == 140


@stable(25)
@given(sizes=st.lists(st.integers(0, 40), max_size=12), group=st.integers(1, 50), size=st.sampled_from([1, 300, 10**6]))
def test_no_row_is_lost_or_moved(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], group: int, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_GROUP_ROWS", group)
        patch.setattr(shards, "_SHARD_BYTES", size)
        writer = write(tmp_path_factory.mktemp("shards"), sizes)
    assert content(writer) == list(range(sum(sizes)))
    assert writer.rows == [pq.read_metadata(path).num_rows for path in writer.paths]
    assert sorted(writer.paths[0].parent.iterdir()) == writer.paths


def test_no_shard_is_empty_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of which nothing was kept, last and just behind a full shard."""
    monkeypatch.setattr(shards, "_GROUP_ROWS", 10)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    assert write(tmp_path / "data", [10, 0]).rows == [10]
    loaded = load_dataset("parquet", data_dir=str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 10


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second, other = (write(tmp_path / str(number), [50, 2000 + (number == 2), 3]) for number in range(3))
    assert first.paths[0].read_bytes() == second.paths[0].read_bytes()
    assert first.paths[0].read_bytes() != other.paths[0].read_bytes()


def test_a_reader_can_skip_and_a_hub_can_share(tmp_path: Path) -> None:
    """Row groups of about a thousand rows, a page index, zstd, and the features for `datasets`."""
    writer = write(tmp_path, [50] * 60)
    metadata = pq.read_metadata(writer.paths[0])
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [1000, 1000, 1000]
    column = metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert column.has_offset_index
    assert column.has_column_index
    assert Features.from_arrow_schema(pq.read_schema(writer.paths[0])) == FEATURES
    assert b"huggingface" in pq.read_schema(writer.paths[0]).metadata


def test_large_rows_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_BYTES", 2000)
    metadata = pq.read_metadata(write(tmp_path, [1] * 200).paths[0])
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(sizes) == 200
    assert 20 < max(sizes) < 100


def test_a_row_put_in_front_leaves_most_of_a_shard_as_it_was(tmp_path: Path) -> None:
    """A hub stores only what is new."""
    numbers = np.random.default_rng(0).normal(size=300_000)
    found = []
    for values in (numbers, np.concatenate([[0.5], numbers])):
        with ShardWriter(tmp_path / str(len(values)), pa.schema([("number", pa.float64())])) as writer:
            writer.append(pa.table({"number": values}))
        found.append(writer.paths[0].read_bytes())
    before, after = found
    pieces = [after[start : start + 32] for start in range(0, len(after) - 32, 20_000)]
    assert sum(piece in before for piece in pieces) > len(pieces) / 3  # half of them; a seventh in pages of one size


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]], ids=str)
def test_a_set_without_rows_is_one_shard_that_loads(tmp_path: Path, sizes: list[int]) -> None:
    writer = write(tmp_path / "data", sizes)
    assert names(tmp_path / "data") == ["train-00000-of-00001.parquet"]
    assert writer.rows == [0]
    assert len(pq.read_table(writer.paths[0])) == 0
    options = {"data_dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache"), "split": "train"}
    loaded = load_dataset("parquet", streaming=True, **options)  # without streaming `datasets` refuses any empty set
    assert list(loaded) == []
    assert loaded.features == FEATURES


def test_shards_load_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_ROWS", 10)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 1)
    writer = write(tmp_path / "data", [10] * 12)
    assert len(writer.paths) == 12
    loaded = load_dataset("parquet", data_dir=str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["number"][:] == list(range(120))
    assert loaded[4] == {"number": 4, "text": "row 4", "values": [1.0]}


def test_a_failed_run_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with ShardWriter(tmp_path, SCHEMA) as writer:
            writer.append(table(0, 2000))
            raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        fail_half_way()
    assert not list(tmp_path.glob("*.parquet"))
