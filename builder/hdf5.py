"""The canonical HDF5 file: one dataset a column, float64, strings as UTF-8, units and meanings as attributes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from builder.columns import COLUMNS, EBOUNDS, RAGGED, Column

__all__ = ["HDF5Writer", "read_columns"]

_CHUNK = 256
"""Rows in a chunk: few enough to hold one of each column in memory, enough to read fast."""

_INTEGER_NULL = -1
"""What a null becomes in an integer or boolean dataset, which has no NaN; no such column is negative otherwise."""


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
    return array.cast(pa.int64()).fill_null(_INTEGER_NULL).to_numpy()


class HDF5Writer:
    """Writes rows to an HDF5 file, a table at a time; the same rows give the same bytes.

    Parameters
    ----------
    path : Path
    columns : tuple of Column
        What the tables hold; `builder.columns.COLUMNS` by default.
    attributes : dict, optional
        Written to the file as attributes, dicts as JSON.
    """

    def __init__(
        self, path: Path, attributes: dict[str, Any] | None = None, columns: tuple[Column, ...] = COLUMNS
    ) -> None:
        self._columns = columns
        self._file = h5py.File(path, "w", libver=("v110", "v110"))
        for name, value in (attributes or {}).items():
            self._file.attrs[name] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else value
        for column in columns:
            channels = column.length not in (None, RAGGED)
            shape = (column.length,) if channels else ()
            dataset = self._file.create_dataset(
                column.hdf5_name,
                shape=(0, *shape),
                maxshape=(None, *shape),
                chunks=(_CHUNK, *shape),
                dtype=_type(column),
                track_times=False,
                **({"compression": "gzip", "compression_opts": 1, "shuffle": True} if channels else {}),
            )
            dataset.attrs["description"] = column.meaning
            dataset.attrs["source"] = column.source
            if column.unit:
                dataset.attrs["unit"] = column.unit

    def append(self, rows: pa.Table) -> None:
        """Add the rows of a table that has every column under its public name, nothing rounded."""
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
        self._file.close()


def read_columns(path: Path, columns: tuple[Column, ...]) -> pa.Table:
    """Read the scalar `columns` that an HDF5 file has, under their public names; what stands for a null is null.

    Fixed-length bytes are read as text too: older files hold strings so.
    """
    arrays = {}
    with h5py.File(path) as file:
        for column in columns:
            if column.hdf5_name not in file:
                continue
            values = file[column.hdf5_name][:]
            if column.dtype == "string":
                texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
                arrays[column.name] = pa.array([text or None for text in texts], pa.string())
            elif values.dtype.kind == "f":
                arrays[column.name] = pa.array(values, mask=~np.isfinite(values)).cast(column.full_type)
            else:
                arrays[column.name] = pa.array(values, mask=values == _INTEGER_NULL).cast(column.full_type)
    return pa.table(arrays)
