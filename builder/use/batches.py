"""Rows of a prepared folder as batches of torch tensors, and the order in which to take them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from builder.model.columns import COLUMNS
from builder.model.errors import SettingError, require

_NULL = -1
"""In integers and booleans, as in the HDF5 file."""

_DECLARED = {column.name: column.public_type for column in COLUMNS if "." not in column.name}
"""Types of columns that a batch of plain rows may not tell: nulls only, or lists that happen to be of one length."""

_POOL = 100
"""Batches among which `Buckets` sorts rows by length."""


def collate(rows: pa.Table | Sequence[pa.Table] | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of rows, as the `collate_fn` of a torch ``DataLoader``.

    Tables are the fast way, for no object is made of a row: ``with_format("arrow")``. Of plain rows, or rows of
    ``with_format("numpy")`` or ``with_format("torch")``, the same batch comes, only slower. What a column becomes
    depends on its type and never on its name or on the values of one batch; the types of rows that are no tables are
    those of the dataset's own columns, else found from the values.

    Parameters
    ----------
    rows : pyarrow.Table, or sequence of pyarrow.Table or of dict
        Of any config, some of its columns, or columns added by `map`.

    Returns
    -------
    dict
        - numbers: tensors (batch,), floats as float32 (right ascension to 0.1 arcsec, times to minutes), integers and
          class labels as int64. A null is NaN, and -1 in integers.
        - booleans: int8, 1 true, 0 false, -1 null.
        - texts: a list of str, None for a null.
        - lists of a fixed length: (batch, length); ``counts`` is (batch, 1024). Lists of them: (batch, outer, inner).
        - other lists of numbers: (batch, longest), padded with 0, and ``<name>_lengths``, int64 (batch,).
        - structs of lists, such as ``spectrum`` and ``arf``: a dict of the same fields, (batch, longest), padded with
          0, and with them ``lengths``, int64 (batch,), and ``mask``, bool (batch, longest), True where there is a
          value. A list that is null where the others are not, as ``psf_frac`` can be, is NaN, and -1 in integers.
        - anything else: a list.

    Raises
    ------
    SettingError
        Without rows.
    MissingExtraError
        Without torch.
    """
    table = _table(rows)
    if not len(table):
        raise SettingError("collate makes a batch of one row or more, and got none")
    require("torch", "torch", "collate")
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensors(each) for name, each in value.items()}
        if isinstance(value, np.ndarray):
            kind = np.float32 if value.dtype.kind == "f" else value.dtype
            return torch.from_numpy(value.astype(kind, copy=not value.flags.writeable))  # not Arrow's own memory
        return value

    return {name: tensors(value) for name, value in arrays(table).items()}


def arrays(table: pa.Table) -> dict[str, Any]:
    """Make of each column of a table what `collate` says, as numpy arrays, with floats as they are."""
    batch: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        # rows that are gathered from a file come as a chunk each
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        batch[name], lengths = _column(array)
        if lengths is not None:
            batch[f"{name}_lengths"] = lengths
    return batch


class Buckets:
    """Batches of rows of about the same length, so that little is padded: a sampler for a torch ``DataLoader``.

    Each epoch has all rows once, in another order: they are mixed, sorted by length among those of some batches at a
    time, and the batches are mixed again.

    Parameters
    ----------
    lengths : array_like of int, shape (rows,)
        Of each row of the dataset, such as its column ``n_bins``.
    batch_size : int
        Rows of a batch; the last that is made may have fewer.
    generator : torch.Generator, optional
        Source of the random numbers, torch's own by default.

    Examples
    --------
    >>> DataLoader(data, sampler=Buckets(data["n_bins"], 64), batch_size=None, collate_fn=collate)  # doctest: +SKIP
    """

    def __init__(self, lengths: ArrayLike, batch_size: int, generator: Any = None) -> None:
        self._lengths = np.asarray(lengths)
        if self._lengths.ndim != 1 or batch_size < 1:
            raise SettingError("batches by length take a length for each row, and have one row or more")
        self._batch_size, self._generator = batch_size, generator

    def __len__(self) -> int:
        return math.ceil(self._lengths.size / self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        import torch

        order = torch.randperm(self._lengths.size, generator=self._generator).numpy()
        size, batches = self._batch_size, []
        for begin in range(0, order.size, size * _POOL):
            pool = order[begin : begin + size * _POOL]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += [pool[first : first + size] for first in range(0, pool.size, size)]
        for number in torch.randperm(len(batches), generator=self._generator).tolist():
            yield batches[number].tolist()


def _column(array: pa.Array) -> tuple[Any, NDArray[np.int64] | None]:
    """Convert a column, and give its lengths where it is padded."""
    kind = array.type
    if _is_number(kind):
        return _numbers(array), None
    if _is_block(kind):
        return _block(array), None
    if _is_ragged(kind):
        lengths = _lengths(array)
        return _padded(array, _mask(lengths)), lengths
    if pa.types.is_struct(kind) and kind.num_fields and all(_is_ragged(field.type) for field in kind):
        fields = array.flatten()
        each = np.stack([_lengths(field) for field in fields])
        lengths, null = each.max(axis=0), np.stack([field.is_null().to_numpy(zero_copy_only=False) for field in fields])
        if np.all((each == lengths) | null):
            mask = _mask(lengths)
            padded = {
                field.name: _padded(values, mask, missing)
                for field, values, missing in zip(kind, fields, null, strict=True)
            }
            return padded | {"lengths": lengths, "mask": mask}, None
    return array.to_pylist(), None


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean))


def _is_block(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind) and (_is_number(kind.value_type) or _is_block(kind.value_type))


def _block(array: pa.Array) -> NDArray[Any]:
    """Return lists of a fixed length, and lists of such lists, as one array."""
    inner = array.flatten()  # without those that are null
    values = _block(inner) if _is_block(inner.type) else _numbers(inner)
    values = values.reshape(-1, array.type.list_size, *values.shape[1:])
    if not array.null_count:
        return values
    whole = np.full((len(array), *values.shape[1:]), np.nan if values.dtype.kind == "f" else _NULL, values.dtype)
    whole[array.is_valid().to_numpy(zero_copy_only=False)] = values
    return whole


def _is_ragged(kind: pa.DataType) -> bool:
    listed = any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list))
    return listed and _is_number(kind.value_type)


def _numbers(array: pa.Array) -> NDArray[Any]:
    """Return the values of one batch in a type that does not depend on whether there are nulls among them."""
    if pa.types.is_floating(array.type):
        floats: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return floats
    kind = np.int8 if pa.types.is_boolean(array.type) else np.int64
    if array.null_count:
        array = pc.fill_null(array.cast(pa.int64()), _NULL)
    whole: NDArray[Any] = array.to_numpy(zero_copy_only=False).astype(kind, copy=False)
    return whole


def _lengths(array: pa.Array) -> NDArray[np.int64]:
    if array.null_count:
        array = pc.fill_null(array, [])
    lengths: NDArray[np.int64] = np.diff(array.offsets.to_numpy()).astype(np.int64)
    return lengths


def _mask(lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.arange(lengths.max(initial=0)) < lengths[:, np.newaxis]


def _padded(array: pa.Array, mask: NDArray[np.bool_], missing: NDArray[np.bool_] | bool = False) -> NDArray[Any]:
    """Return the lists of one length; those that are `missing` hold what stands for a null."""
    values, null = _numbers(array.flatten()), mask & np.reshape(missing, (-1, 1))
    padded = np.zeros(mask.shape, values.dtype)
    padded[null] = np.nan if values.dtype.kind == "f" else _NULL
    padded[mask & ~null] = values
    return padded


def _table(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    if not rows or isinstance(rows[0], pa.Table):
        return pa.concat_tables(rows) if rows else pa.table({})
    names = list(rows[0])
    return pa.table([_inferred(name, [_plain(row[name]) for row in rows]) for name in names], names)


def _plain(value: Any) -> Any:
    """Return a value that Arrow knows: arrays for tensors, and None for the NaN that formatters make of a null."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def _inferred(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, _DECLARED.get(name), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of the user's own by one of the dataset's names
        return pa.array(values, from_pandas=True)
