"""Parquet shards, written as the data come by."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_ROWS = 1000
"""Rows in a row group: what a reader that streams or filters holds at once (about 20 MB of `counts`)."""

_GROUP_BYTES = 20 * 10**6
"""Bytes in a row group, for rows that are large (a row of `responses` is 1 to 2 MB)."""

_SHARD_BYTES = 50 * 10**6
"""Uncompressed bytes after which a new shard begins: a worker of a streaming loader takes a whole number of shards."""

_MOST_BYTES = 500 * 10**6
"""The same for rows so large that 50 MB are less than a row group: a hub serves few files better than many."""


class ShardWriter:
    """Writes ``<split>-00000-of-0000N.parquet`` files into a folder; the same rows give the same bytes.

    Content-defined chunks let a hub store only what changed between versions, and a page index lets a reader skip
    pages: `datasets` writes its own shards so.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    schema : pyarrow.Schema
        With the `datasets` features in its metadata, and perhaps a header of VOParquet.
    """

    def __init__(self, folder: Path, schema: pa.Schema, split: str = "train") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        said = schema.metadata or {}
        # In the file's metadata alone: within the schema, pyarrow would write it twice.
        self._header = {key: text for key, text in said.items() if key.startswith(b"IVOA.")}
        self._schema = schema.with_metadata({key: text for key, text in said.items() if key not in self._header})
        self._folder, self._split = folder, split
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._paths: list[Path] = []
        self.rows: list[int] = []
        self.paths: list[Path] = []

    def append(self, rows: pa.Table) -> None:
        """Add rows."""
        if len(rows):
            self._waiting.append(rows)
            self._waiting_rows += len(rows)
            self._waiting_bytes += rows.nbytes
        if self._waiting_rows >= _GROUP_ROWS or self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._paths.append(self._folder / f"{self._split}-{len(self._paths):05d}.partial")
            self.rows.append(0)
            self._writer = pq.ParquetWriter(
                self._paths[-1],
                self._schema,
                compression="zstd",
                use_content_defined_chunking=True,
                write_page_index=True,
            )
            self._writer.add_key_value_metadata(self._header)
        if self._waiting:  # `datasets` cannot read a row group without rows
            group = pa.concat_tables(self._waiting).cast(self._schema)
            self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
            self._writer.write_table(group)
            self.rows[-1] += len(group)
            self._bytes += group.nbytes
        if self._bytes > (_SHARD_BYTES if self.rows[-1] >= _GROUP_ROWS else _MOST_BYTES):
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0

    def close(self) -> None:
        """Write what is waiting and give the shards their names; with no rows at all there is one empty shard."""
        if self._waiting or not self._paths:
            self._flush()
        self._end_shard()
        total = len(self._paths)
        self.paths = [
            path.replace(self._folder / f"{self._split}-{number:05d}-of-{total:05d}.parquet")
            for number, path in enumerate(self._paths)
        ]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._end_shard()
