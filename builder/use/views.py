"""Other views of the rows of a prepared folder: a shorter exposure, and the spectrum by another recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from builder.model.columns import COLUMNS
from builder.model.errors import SettingError
from builder.model.settings import Recipe
from builder.use.batches import arrays
from builder.use.calibration import Calibration

_COUNTED = {"source_counts": "counts", "background_counts_total": "background_counts"}
"""Totals over the kept channels, and what they are the totals of."""

_REMADE = (*_COUNTED, "n_bins")
_SPECTRUM = {column.name.partition(".")[2]: column.record for column in COLUMNS if column.name.startswith("spectrum.")}


def thin(
    batch: pa.Table | Mapping[str, Any],
    fraction: ArrayLike,
    generator: np.random.Generator,
    calibration: Calibration | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Make rows as of a shorter exposure: each count is kept with the probability `fraction`.

    Counts of a Poisson process that are kept so are those of a Poisson process with `fraction` times the rate, as if
    the source had been seen for that part of the time. What follows from them is made again: ``exposure``, and
    ``source_counts``, ``background_counts_total`` and ``n_bins`` where they are in the batch. All else stays as it is:
    what the catalog says is of the whole exposure, and ``background_scale``, area and response do not depend on it.

    Parameters
    ----------
    batch : pyarrow.Table or dict
        Rows of config ``counts``, ``binned`` or ``sources``, some of their columns, as `collate` or
        ``map(batched=True)`` gives them, or a table; or one row. With ``counts``, ``background_counts``, ``exposure``.
    fraction : float, or array_like of float, shape (rows,)
        Above 0, up to 1.
    generator : numpy.random.Generator
        Source of the random numbers.
    calibration : Calibration, optional
        Energies of the channels, by which the totals and ``n_bins`` are made again: needed where they are in the batch.
    recipe : Recipe, optional
        Kept energies and grouping, for the same; the default recipe by default.

    Returns
    -------
    dict
        The columns of the batch, of the same types.

    Raises
    ------
    SettingError
        If a fraction is none, a column is missing, or one cannot be made again.
    """
    columns = arrays(batch) if isinstance(batch, pa.Table) else dict(batch)
    if missing := [name for name in ("counts", "background_counts", "exposure") if name not in columns]:
        raise SettingError(f"no {missing[0]} in the batch: give rows of config counts, binned or sources")
    remade = [name for name in _REMADE if name in columns]
    if remade and (calibration is None or "ebounds_id" not in columns):
        raise SettingError(
            f"{remade[0]} follows from the counts by the energies of the channels: give calibration, and rows with "
            "ebounds_id, or leave it out of the batch"
        )
    exposure = _array(columns["exposure"]).astype(np.float64)
    try:
        part = np.asarray(fraction, dtype=np.float64)
    except (TypeError, ValueError):  # texts
        part = np.zeros(())
    if part.shape not in ((), exposure.shape) or not np.all((part > 0) & (part <= 1)):
        raise SettingError("fraction must be a number above 0, up to 1, or one for each row")
    made: dict[str, NDArray[Any]] = {"exposure": part * exposure}
    for name in ("counts", "background_counts"):
        made[name] = generator.binomial(_array(columns[name]).astype(np.int64), part[..., np.newaxis])
    if remade and calibration is not None:
        made |= _totals(columns["ebounds_id"], made, remade, calibration, recipe or Recipe())
    return columns | {name: _like(columns[name], values) for name, values in made.items()}


def _totals(
    grids: Any, made: dict[str, NDArray[Any]], names: list[str], calibration: Calibration, recipe: Recipe
) -> dict[str, NDArray[Any]]:
    """Count what is kept of each row, and the bins."""
    from builder.reduce.spectrum import group_starts, kept_channels

    counts = {name: made[name].reshape(-1, made[name].shape[-1]) for name in _COUNTED.values()}
    keys = [grids] if isinstance(grids, str) else list(grids)
    kept = {key: kept_channels(calibration.energies(key), recipe) for key in dict.fromkeys(keys)}
    totals = {
        name: np.array([row[kept[key]].sum() for key, row in zip(keys, counts[of], strict=True)])
        for name, of in _COUNTED.items()
    }
    if "n_bins" in names:
        rows = zip(keys, counts["counts"], strict=True)
        kept_counts = [row[kept[key]] for key, row in rows]
        groups = (group_starts(each, recipe.min_counts) if recipe.group else each for each in kept_counts)
        totals["n_bins"] = np.array(list(map(len, groups)))
    shape = made["exposure"].shape
    return {name: totals[name].reshape(shape) for name in names}


def regroup(row: Mapping[str, Any], recipe: Recipe, calibration: Calibration) -> dict[str, Any]:
    """Make the spectrum of a row from its channels, by the steps of the recipe that do not need the files.

    Parameters
    ----------
    row : dict
        A row of config ``counts`` or ``sources``, plain or in any format, as it is or made by `thin`.
    recipe : Recipe
        Kept energies, grouping and subtraction.
    calibration : Calibration
        Energies of the channels.

    Returns
    -------
    dict
        ``spectrum``, ``n_bins``, ``source_counts`` and ``background_counts_total`` as in config ``spectra``: by the
        recipe of the folder, the same numbers bit for bit.

    Raises
    ------
    SettingError
        If a column is missing, or no channel lies within the kept range.
    """
    from builder.reduce.spectrum import regroup_channels

    wanted = ("counts", "background_counts", "exposure", "background_scale", "ebounds_id")
    if missing := [name for name in wanted if name not in row]:
        raise SettingError(f"no {missing[0]} in the row: give a row of config counts or sources")
    counts, background = (_array(row[name]) for name in wanted[:2])
    if counts.ndim != 1:
        raise SettingError("regroup takes one row: a batch is no row")
    energies = calibration.energies(row["ebounds_id"])
    exposure, scale = (float(row[name]) for name in ("exposure", "background_scale"))
    bins = regroup_channels(counts, background, exposure, scale, energies, recipe)
    return {
        "spectrum": {field: getattr(bins, record).astype(np.float32) for field, record in _SPECTRUM.items()},
        "n_bins": bins.rate.size,
        "source_counts": int(counts[bins.kept].sum()),
        "background_counts_total": int(background[bins.kept].sum()),
    }


def _array(values: Any) -> NDArray[Any]:
    return np.asarray(values.numpy() if hasattr(values, "numpy") else values)


def _like(old: Any, values: NDArray[Any]) -> Any:
    """Give values the type of what they take the place of."""
    if hasattr(old, "numpy"):
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(old.dtype)
    return values.astype(old.dtype) if isinstance(old, (np.ndarray, np.generic)) else values
