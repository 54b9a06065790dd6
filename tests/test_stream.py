"""Streams of batches: each row once, shared out among workers, and a program may leave off anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from builder.model.errors import OutputError, SettingError
from builder.use.batches import collate
from builder.use.stream import Stream


@pytest.fixture(scope="module")
def folder(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample in three files of row groups of 5: many small ones, as large data have large ones."""
    folder = tmp_path_factory.mktemp("streams") / "chandra_spectra"
    for config in ("data", "counts"):
        table = pq.read_table(sample / config)
        (folder / config).mkdir(parents=True)
        for name, begin, end in (("train-00000-of-00002", 0, 40), ("train-00001-of-00002", 40, 55), ("test-0", 55, 62)):
            pq.write_table(table.slice(begin, end - begin), folder / config / f"{name}.parquet", row_group_size=5)
    return folder


def train(folder: Path, columns: list[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in sorted(folder.glob("data/train-*")))


def ids(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["object_id"].tolist()]


@pytest.mark.parametrize("config", ["spectra", "counts"])
def test_in_order_the_batches_are_the_table(folder: Path, sample: Path, config: str) -> None:
    expected = pq.read_table(sample / ("data" if config == "spectra" else config))
    tables = list(Stream(folder, config, "train+test", batch_size=8))
    assert [len(table) for table in tables] == [8] * 7 + [6]
    assert pa.concat_tables(tables).equals(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_each_row_once_in_an_order_of_its_own(folder: Path, workers: int) -> None:
    stream = Stream(folder, columns=["object_id"], batch_size=4, shuffle=True)
    loader = DataLoader(stream, batch_size=None, collate_fn=collate, num_workers=workers)
    torch.manual_seed(1)
    first, second = ids(loader), ids(loader)
    assert sorted(first) == sorted(second) == sorted(train(folder, ["object_id"])["object_id"].to_pylist())
    assert first != second
    torch.manual_seed(1)
    assert ids(loader) == first


def test_workers_that_live_on_shuffle_anew_as_well(folder: Path) -> None:
    stream = Stream(folder, columns=["object_id"], shuffle=True)
    loader = DataLoader(stream, batch_size=None, collate_fn=collate, num_workers=2, persistent_workers=True)
    first, second = ids(loader), ids(loader)
    assert sorted(first) == sorted(second) and first != second


def test_rows_are_chosen_by_an_expression(folder: Path) -> None:
    stream = Stream(folder, columns=["theta", "hard_hs"], where=pc.field("hard_hs").is_valid(), batch_size=3)
    found = pa.concat_tables(stream)
    plain = train(folder, ["theta", "hard_hs"]).to_pylist()
    assert found.to_pylist() == [row for row in plain if row["hard_hs"] is not None]
    assert {len(table) for table in list(stream)[:-1]} == {3}


def test_a_folder_at_a_url_streams(folder: Path) -> None:
    url = "memory://streams/chandra_spectra"
    fsspec.filesystem("memory").put(str(folder), url, recursive=True)
    assert pa.concat_tables(Stream(url, "counts")).equals(pa.concat_tables(Stream(folder, "counts")))


LEAVE = """
import sys
from torch.utils.data import DataLoader
from chandra_spectra import Stream, collate

kept = iter(Stream(sys.argv[1], "counts", batch_size=4, shuffle=True))
print(len(next(kept)), len(next(iter(Stream(sys.argv[1], batch_size=4)))))
loader = DataLoader(Stream(sys.argv[1], batch_size=4, shuffle=True), batch_size=None, collate_fn=collate)
for step, batch in enumerate(loader):
    if step == 2:
        break
batches = iter(DataLoader(Stream(sys.argv[1], batch_size=4), batch_size=None, collate_fn=collate, num_workers=2))
next(batches)
"""


def test_a_program_that_leaves_streams_early_ends_and_says_so(folder: Path) -> None:
    """With the one of `load_dataset` it hangs, or dies of SIGABRT, in most runs."""
    command = [sys.executable, "-c", LEAVE, str(folder)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        assert run.communicate(timeout=120) == ("4 4\n", "")
        assert run.returncode == 0


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("unknown config 'spectre'", {"config": "spectre"}),
        ("has no files data/validation-", {"split": "train+validation"}),
        ("has no files responses/train-", {"config": "responses"}),
        ("config counts has no column spectrum: it has name, ", {"config": "counts", "columns": ["spectrum"]}),
        (
            "cannot choose rows: .*theta.*: name columns that are read",
            {"columns": ["phi"], "where": pc.field("theta") < 2},
        ),
        ("one row or more, not 0", {"batch_size": 0}),
        ("neither a folder nor the name of a dataset", {"path": "./nothing"}),
    ],
)
def test_wrong_words_are_refused_in_one_line_before_anything_is_read(
    folder: Path, message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        Stream(**{"path": folder, **options})
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "data" / "train-0.parquet"
    path.parent.mkdir()
    path.write_bytes((folder / "data" / "test-0.parquet").read_bytes()[:-20])
    with pytest.raises(OutputError, match=f"cannot read {path}: "):
        Stream(tmp_path)


def test_without_torch_a_stream_can_be_read_but_not_shuffled(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torch.utils.data'] = None\n"
        "from chandra_spectra import Stream\n"
        "print(sum(map(len, Stream(sys.argv[1]))))\n"
        "try: Stream(sys.argv[1], shuffle=True)\n"
        "except Exception as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout == "55\nStream(shuffle=True) needs torch: pip install 'chandra-spectra[torch]'\n", run.stderr
