"""The canonical HDF5 file: one dataset a column, float64, strings as UTF-8, units and meanings as attributes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.archive.values import Found
from builder.model.column import RAGGED, Column
from builder.model.columns import COLUMNS, EBOUNDS

_CHUNK = 256
"""Rows in a chunk: few enough to hold one of each column in memory, enough to read fast."""

_BATCH = 4 * _CHUNK
"""Rows that are written at once: each of the fifty datasets costs a call, whatever the number of rows."""


def _type(column: Column) -> Any:
    value = column.full_type if column.length is None else column.full_type.value_type
    if pa.types.is_string(value):
        return h5py.string_dtype()
    # A boolean with nulls needs a third value.
    numpy = np.dtype(np.int8 if pa.types.is_boolean(value) else value.to_pandas_dtype())
    return h5py.vlen_dtype(numpy) if column.length == RAGGED else numpy


def _values(column: Column, array: pa.ChunkedArray) -> Any:
    array = array.combine_chunks()
    if column.length == RAGGED:
        offsets, flat = array.offsets.to_numpy(), array.values.to_numpy(zero_copy_only=False)
        values = np.empty(len(array), dtype=_type(column))
        for index in range(len(array)):
            values[index] = flat[offsets[index] : offsets[index + 1]]
        return values
    if column.length is not None:
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), column.length)
    if pa.types.is_string(array.type):
        return np.array(array.fill_null("").to_pylist(), dtype=object)
    if pa.types.is_floating(array.type):
        return array.to_numpy(zero_copy_only=False)  # null becomes NaN
    return array.cast(pa.int64()).fill_null(column.stand_in).to_numpy()


class _Sink(io.FileIO):
    """The file that HDF5 writes to, which keeps to itself that a write has failed.

    HDF5 cannot give up a file that it cannot write, and ends in a segmentation fault: so it is let go on, into nothing,
    until it has closed the file.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        try:
            while rest and self.error is None:  # a disk that fills up takes a part first
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else 0
        except OSError as error:
            self.error = error
            return 0


class HDF5Writer:
    """Writes rows to an HDF5 file, a table at a time; the same rows give the same bytes.

    Parameters
    ----------
    columns : tuple of Column
        What the tables hold; `builder.model.columns.COLUMNS` by default.
    attributes : dict, optional
        Written to the file as attributes, dicts as JSON.
    chunk : int
        Rows in a chunk, which takes its whole room in the file: no more than there are rows.

    Raises
    ------
    OSError
        If the file cannot be written: at once, or from `append` and the end of the block.
    """

    def __init__(
        self,
        path: Path,
        attributes: dict[str, Any] | None = None,
        columns: tuple[Column, ...] = COLUMNS,
        chunk: int = _CHUNK,
    ) -> None:
        self._columns = columns
        self._waiting: list[pa.Table] = []
        self._sink = _Sink(path, "w+")
        self._file = h5py.File(self._sink, "w", libver=("v110", "v110"))
        for name, value in (attributes or {}).items():
            self._file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        for column in columns:
            channels = column.length not in (None, RAGGED)
            shape = (column.length,) if channels else ()
            dataset = self._file.create_dataset(
                column.hdf5_name,
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(min(chunk, _CHUNK), *shape),
                dtype=_type(column),
                track_times=False,
                **({"compression": "gzip", "compression_opts": 1, "shuffle": True} if channels else {}),
            )
            dataset.attrs["description"] = column.meaning
            dataset.attrs["source"] = column.source
            if column.unit:
                dataset.attrs["unit"] = column.unit
            if column.own and column.dtype in ("int64", "bool"):
                dataset.attrs["null"] = column.stand_in
            if column.classes:
                dataset.attrs["classes"] = json.dumps(column.classes, ensure_ascii=False)

    def append(self, rows: pa.Table) -> None:
        """Add the rows of a table that has every column under its public name, nothing rounded."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows, self._waiting = pa.concat_tables(self._waiting), []
        for column in self._columns:
            dataset = self._file[column.hdf5_name]
            start = len(dataset)
            dataset.resize(start + len(rows), axis=0)
            if not len(rows):
                continue
            values = _values(column, rows[column.name])
            if column.length == RAGGED:
                # Assigning would go through Python lists, and takes rows of one length for a matrix.
                place = dataset.id.get_space()
                place.select_hyperslab((start,), (len(rows),))
                dataset.id.write(h5py.h5s.create_simple((len(rows),)), place, values)
            else:
                dataset[start:] = values
            self._check()

    def _check(self) -> None:
        if self._sink.error is not None:
            raise self._sink.error

    def append_ebounds(self, grids: pa.Table) -> None:
        """Write the distinct channel energy grids as group ``ebounds``."""
        group = self._file.create_group("ebounds")
        for column in EBOUNDS:
            dataset = group.create_dataset(
                column.name, data=_values(column, grids[column.name]), dtype=_type(column), track_times=False
            )
            dataset.attrs["description"] = column.meaning
            if column.unit:
                dataset.attrs["unit"] = column.unit

    def __enter__(self) -> HDF5Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._sink:
            try:
                if kind is None:
                    self._flush()
            finally:
                self._file.close()
        if kind is None:
            self._check()


def read_datasets(path: Path, columns: tuple[Column, ...]) -> dict[str, Found]:
    """Read the datasets of an HDF5 file as columns, those of `columns` under their public names.

    What stands for a null is null: in a dataset of another name only what its attribute ``null`` says, and NaN.
    Fixed-length bytes are read as text too: older files hold strings so.
    """
    known = {column.hdf5_name.lower(): column for column in columns}
    found = {}
    with h5py.File(path) as file:
        for name, dataset in file.items():
            if not isinstance(dataset, h5py.Dataset):
                continue
            if column := known.get(name.lower()):
                found[column.name] = Found(pa.chunked_array([_array(column, dataset[:])]), {})
                continue
            said = {key: str(dataset.attrs[key]) for key in ("unit", "description", "source") if key in dataset.attrs}
            found[name] = Found(pa.chunked_array([_own_array(dataset)]), said)
    return found


def _own_array(dataset: h5py.Dataset) -> pa.Array:
    """Read a dataset by its own type."""
    if dataset.ndim != 1 or h5py.check_vlen_dtype(dataset.dtype):
        return pa.array([[]] * len(dataset), pa.list_(pa.float64()))
    values = dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]
    if values.dtype.kind in "OSU":
        return pa.array([text or None for text in values.tolist()], pa.string())
    null = dataset.attrs.get("null")
    array = pa.array(values, mask=None if null is None else values == null)
    return array.cast(pa.bool_()) if null == -1 else array  # only a boolean's null is -1


def table_path(path: Path) -> str | None:
    """Find a table of astropy's in an HDF5 file, a dataset of records; None where there is none."""
    with h5py.File(path) as file:
        for name, dataset in file.items():
            if isinstance(dataset, h5py.Dataset) and dataset.dtype.names and "__table_column_meta__" not in name:
                return str(name)
    return None


def read_rows(file: h5py.File, columns: tuple[Column, ...], rows: NDArray[np.int64]) -> pa.Table:
    """Read some rows of a canonical file, each run of neighbours in one go.

    Parameters
    ----------
    rows : ndarray of int64
        Row numbers; they rise.

    Returns
    -------
    pyarrow.Table
        The columns under their public names, nothing rounded; what stands for a null is null.
    """
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return pa.table(
        {
            column.name: pa.chunked_array(
                [_array(column, dataset[run[0] : run[-1] + 1]) for run in runs], column.full_type
            ).combine_chunks()
            for column in columns
            for dataset in (file[column.hdf5_name],)
        }
    )


def _array(column: Column, values: Any) -> pa.Array:
    """Read the values of a dataset as Arrow has them."""
    if column.length == RAGGED:
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        missing = pa.array([column.nullable and not len(value) for value in values])
        return pa.ListArray.from_arrays(offsets, np.concatenate(values), mask=missing)
    if column.length is not None:
        return pa.FixedSizeListArray.from_arrays(values.reshape(-1), column.length)
    if column.dtype == "string":
        texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        return pa.array([text or (None if column.nullable else "") for text in texts], pa.string())
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else values == column.stand_in
    return pa.array(values, mask=missing).cast(column.full_type)
