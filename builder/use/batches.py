"""Rows of a prepared folder as one batch of torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from builder.model.columns import COLUMNS
from builder.model.errors import SettingError, require

_NULL = -1
"""In integers and booleans, as in the HDF5 file."""

_WHOLE = {
    column.name: np.int8 if column.dtype == "bool" else np.int64
    for column in COLUMNS
    if column.length is None and column.dtype in ("bool", "int32", "int64")
}
"""Scalars that a null must not turn into floats in one batch and leave as integers in the next."""

_STRINGS = {column.name for column in COLUMNS if column.length is None and column.dtype == "string"}
_STRUCTS = {column.name.partition(".")[0] for column in COLUMNS if "." in column.name}

_TYPES = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}
"""Types that the formatters of `datasets` give to booleans, integers and floats."""


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of rows, for the `collate_fn` of a torch ``DataLoader``.

    The batch is the same whether the rows come plain or through ``with_format("numpy")`` or ``with_format("torch")``,
    and a column of the dataset has the same type in every batch.

    Parameters
    ----------
    rows : sequence of dict
        Rows of config ``spectra`` or ``counts``, or some of their columns, or columns added by `map`.

    Returns
    -------
    dict
        - numbers: tensors (batch,), floats as float32 (right ascension to 0.1 arcsec, times to minutes), integers as
          int64. A null is NaN, and -1 in the integer columns of the dataset.
        - booleans of the dataset: int8, 1 true, 0 false, -1 null; other booleans: bool.
        - strings: a list of str, None for a null.
        - lists of one length: (batch, length); ``counts`` is (batch, 1024).
        - ``spectrum`` and ``arf``: a dict of the same fields, float32 (batch, longest), padded with 0, and with them
          ``lengths``, int64 (batch,), and ``mask``, bool (batch, longest), True where there is a value.
        - anything else: a list.

    Raises
    ------
    SettingError
        Without rows.
    MissingExtraError
        Without torch.
    """
    if not rows:
        raise SettingError("collate makes a batch of one row or more, and got none")
    require("torch", "torch", "collate")
    import torch

    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in _STRUCTS:
            batch[name] = {field: torch.from_numpy(array) for field, array in _padded(values).items()}
        else:
            column = _column(name, values)
            batch[name] = torch.from_numpy(column) if isinstance(column, np.ndarray) else column
    return batch


def _padded(structs: list[Mapping[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the fields of structs of lists, padded to the longest, and where there is a value."""
    lengths = np.array([len(next(iter(struct.values()))) for struct in structs])
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    fields = {}
    for name in structs[0]:
        fields[name] = np.zeros(mask.shape, np.float32)
        fields[name][mask] = np.concatenate([np.asarray(struct[name], np.float32) for struct in structs])
    return fields | {"lengths": lengths, "mask": mask}


def _column(name: str, values: list[Any]) -> np.ndarray[Any, Any] | list[Any]:
    if name in _STRINGS or any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    arrays = [np.asarray(np.nan if value is None else value) for value in values]
    if len({array.shape for array in arrays}) > 1 or any(array.dtype.kind not in _TYPES for array in arrays):
        return values
    column = np.stack(arrays)
    if name in _WHOLE:
        return np.where(np.isnan(column), _NULL, column).astype(_WHOLE[name])
    return column.astype(_TYPES[column.dtype.kind])
