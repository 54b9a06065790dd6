"""Batches of a prepared folder or of a dataset on a hub, read as they come, in a way that always ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.dataset.layout import DATA_FILES
from builder.files import open_url, reported
from builder.model.columns import columns_of
from builder.model.errors import OutputError, SettingError, require

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset, get_worker_info

    _Tables = IterableDataset[pa.Table]
else:
    try:
        from torch.utils.data import IterableDataset as _Tables
        from torch.utils.data import get_worker_info
    except ImportError:  # a stream can be iterated without torch
        _Tables, get_worker_info = object, lambda: None

_POOL = 8
"""Row groups that are mixed at a time: some 8000 rows, 160 MB of config ``counts`` in memory."""

_CONNECTIONS = 8
"""Files whose row groups are looked up at once."""


class Stream(_Tables):
    """Batches of rows as Arrow tables, for a torch ``DataLoader`` with ``batch_size=None``, or to be iterated.

    Whole row groups are read, one after the other, and nothing is read ahead in threads. Therefore a program may leave
    off in the middle of a stream, while one that leaves off in the middle of
    ``load_dataset(..., streaming=True)`` may hang or abort when it ends (https://github.com/apache/arrow/issues/45214).

    The workers of a loader share out the row groups, of 1000 rows or 20 MB. With `shuffle` the row groups are taken in
    another order in each epoch and the rows of some at a time are mixed; the order follows from the random numbers of
    torch, as that of a ``DataLoader`` does.

    Parameters
    ----------
    path : str or Path
        A prepared folder, its URL, or the name of a dataset on a hub, with ``@`` and a revision if wanted.
    split : str
        One of the splits, or several as ``train+validation``.
    columns : sequence of str, optional
        Those to read, all by default.
    where : pyarrow.compute.Expression, optional
        Rows to keep, by the columns that are read, such as ``pc.field("hard_hs").is_valid()``.
    batch_size : int
        Rows of a table; the last of each worker may have fewer.

    Raises
    ------
    SettingError
        If there is no such config, column or split, or the batch has no rows.
    MissingExtraError
        Without torch, to shuffle.
    OutputError
        If the files cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        config: str = "spectra",
        split: str = "train",
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        batch_size: int = 64,
        shuffle: bool = False,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"a batch has one row or more, not {batch_size}")
        columns_of(config)  # refuses an unknown one
        if shuffle:
            require("torch", "torch", "Stream(shuffle=True)")
        self._url, self._columns, self._where = _url(path), columns, where
        self._batch_size, self._shuffle, self._epochs = batch_size, shuffle, 0
        fs, root = open_url(self._url, OutputError)
        patterns = [f"{DATA_FILES[config]}/{name}-*.parquet" for name in split.split("+")]
        with reported(OutputError, f"cannot read {path}"):
            found = [sorted(fs.glob(f"{root}/{pattern}")) for pattern in patterns]
            for pattern, files in zip(patterns, found, strict=True):
                if not files:
                    raise SettingError(f"{path} has no files {pattern}: choose another config or split")
            files = [file for each in found for file in each]
            with ThreadPoolExecutor(_CONNECTIONS) as threads:
                self._metadata = dict(zip(files, threads.map(partial(_metadata, fs), files), strict=True))
        schema = next(iter(self._metadata.values())).schema.to_arrow_schema()
        if missing := [name for name in columns or () if name not in schema.names]:
            raise SettingError(f"config {config} has no column {missing[0]}: it has {', '.join(schema.names)}")
        if where is not None:
            kept = schema.empty_table().select(columns or schema.names)
            with reported(SettingError, "cannot choose rows", ": name columns that are read"):
                kept.filter(where)

    def __iter__(self) -> Iterator[pa.Table]:
        worker = get_worker_info()
        random = self._random(worker) if self._shuffle else None
        groups = [(file, group) for file, each in self._metadata.items() for group in range(each.num_row_groups)]
        if random is not None:
            groups = [groups[number] for number in random.permutation(len(groups))]
        if worker is not None:
            groups = groups[worker.id :: worker.num_workers]
        fs, _ = open_url(self._url, OutputError)
        size, pool, rest = self._batch_size, _POOL if random is not None else 1, None
        for first in range(0, len(groups), pool):
            tables = [self._read(fs, *group) for group in groups[first : first + pool]]
            table = pa.concat_tables(tables if rest is None else [rest, *tables])
            if random is not None:
                table = table.take(random.permutation(len(table)))
            whole = len(table) - len(table) % size
            for begin in range(0, whole, size):
                yield table.slice(begin, size)
            rest = table.slice(whole)
        if rest is not None and len(rest):
            yield rest

    def _random(self, worker: Any) -> np.random.Generator:
        """Return the random numbers that the workers of one epoch share, and no two epochs."""
        self._epochs += 1  # a worker that lives on has the same seed in each
        if worker is not None:
            return np.random.default_rng([worker.seed - worker.id, self._epochs])
        import torch

        return np.random.default_rng(int(torch.randint(2**62, ())))

    def _read(self, fs: Any, file: str, group: int) -> pa.Table:
        with (
            reported(OutputError, f"cannot read {file}"),
            fs.open(file, "rb") as opened,
            pq.ParquetFile(opened, metadata=self._metadata[file], pre_buffer=True) as parquet,
        ):
            table = parquet.read_row_group(group, columns=self._columns)
        return table if self._where is None else table.filter(self._where)


def _url(path: str | Path) -> str:
    """Return the place of the files: a folder of this machine goes before a dataset on a hub, as in `load_dataset`."""
    text = str(path)
    if "://" in text or Path(text).is_dir():
        return text
    name, _, revision = text.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SettingError(f"{text} is neither a folder nor the name of a dataset on a hub, such as organisation/name")
    return f"hf://datasets/{name}" + (f"@{revision}" if revision else "")


def _metadata(fs: Any, file: str) -> pq.FileMetaData:
    with reported(OutputError, f"cannot read {file}"), fs.open(file, "rb") as opened:
        return pq.read_metadata(opened)
