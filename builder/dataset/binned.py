"""Rows in fixed bins: what the channels of config ``counts`` add up to, beside their compact responses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from builder.model.columns import binned_columns
from builder.model.folding import Bins, Floats, bin_edges, photon_edges
from builder.model.records import N_CHANNELS
from builder.model.settings import Recipe
from builder.store.packages import PackageResult


def binned(rows: pa.Table, result: PackageResult, recipe: Recipe, bins: int) -> pa.Table:
    """Return the rows of config ``binned``.

    Parameters
    ----------
    rows : pyarrow.Table
        All columns of the package's spectra, see `builder.dataset.rows.join`.
    result : PackageResult
        Of the same package, with compact responses.
    """
    grids = {
        row["ebounds_id"]: (np.array(row["energy_lo"]), np.array(row["energy_hi"]))
        for row in result.ebounds.to_pylist()
    }
    columns = dict(zip(rows.column_names, rows.columns, strict=True)) | bin_channels(rows, grids, recipe, bins)
    return pa.table(columns | {name: result.spectra[name] for name in ("response", "response_fault")})


def bin_channels(
    rows: pa.Table, grids: dict[str, tuple[Floats, Floats]], recipe: Recipe, bins: int
) -> dict[str, pa.Array]:
    """Sum the channels of each row into the bins of config ``binned``, as `Calibration.rebin` sums them.

    Parameters
    ----------
    rows : pyarrow.Table
        With the columns of config ``counts``, flat.
    grids : dict of str to (ndarray, ndarray)
        Low and high energies of the channels by ``ebounds_id``, keV.

    Returns
    -------
    dict of str to pyarrow.Array
        All columns of config ``binned`` but the scalars and the response, in their public types.
    """
    edges, photons = bin_edges(recipe, bins), photon_edges(bins)
    known = {key: Bins.of(*grid, edges) for key, grid in grids.items()}
    counts = {
        name: rows[name].combine_chunks().flatten().to_numpy().reshape(-1, N_CHANNELS)
        for name in ("counts", "background_counts")
    }
    made: dict[str, list[Any]] = {name: [] for name in (*counts, "energy_lo", "energy_hi", "effective_area")}
    for number, key in enumerate(rows["ebounds_id"].to_pylist()):
        own = known[key]
        for name, values in counts.items():
            made[name].append(own.total(values[number : number + 1])[0])
        low, high, area = (
            rows[f"arf.{name}"][number].values.to_numpy().astype(np.float64)
            for name in ("energy_lo", "energy_hi", "specresp")
        )
        made["effective_area"].append(own.mean_area(low, high, area[np.newaxis])[0])
        made["energy_lo"].append(own.low)
        made["energy_hi"].append(own.high)
    made["photon_energy_lo"], made["photon_energy_hi"] = [photons[:-1]] * len(rows), [photons[1:]] * len(rows)
    types = {column.name: column.public_type for column in binned_columns(bins)}
    return {name: _lists(values, types[name]) for name, values in made.items()}


def _lists(values: list[Any], kind: pa.DataType) -> pa.Array:
    flat = np.concatenate(values) if values else np.empty(0)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(kind.value_type.to_pandas_dtype())), type=kind)
