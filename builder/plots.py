"""Quick looks at single spectra, in the terminal and as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from builder.card import DATA_FILES
from builder.errors import OutputError, SettingError

__all__ = ["find_row", "save_plot", "terminal_plot"]


def find_row(folder: Path, detection: str = "") -> dict[str, Any]:
    """One row of config ``spectra``: that of `detection`, or the first; SettingError if there is none."""
    for path in sorted((folder / DATA_FILES["spectra"]).glob("*.parquet")):
        filters = [("detection_id", "=", detection)] if detection else None
        rows = pq.read_table(path, filters=filters) if filters else next(pq.ParquetFile(path).iter_batches(1), None)
        if rows is not None and rows.num_rows:
            return rows.slice(0, 1).to_pylist()[0]  # type: ignore[no-any-return]
    raise SettingError(f"{folder} has no row {detection}" if detection else f"{folder} has no rows")


def title(row: dict[str, Any]) -> str:
    """What a plot of the row is headed with."""
    return f"{row['name']}   {row['detection_id']}   {row['exposure'] / 1000:.1f} ks   {row['source_counts']} counts"


def terminal_plot(row: dict[str, Any], width: int = 60, height: int = 12) -> str:
    """The spectrum as text: log10 of the count rate density (counts/s/keV) against energy (keV)."""
    import plotille

    energy = np.array(row["spectrum"]["ene_center_bin"])
    rate = np.array(row["spectrum"]["flux"])
    positive = rate > 0  # a logarithm has no place for bins that the background outweighs
    figure = plotille.Figure()
    figure.width, figure.height, figure.with_colors = width, height, False
    figure.x_label, figure.y_label = "keV", "log10 counts/s/keV"
    figure.register_label_formatter(float, lambda value, chars, delta, left=False: f"{value:.2f}".rjust(chars))
    figure.set_x_limits(0, float(np.ceil(energy.max())))
    figure.plot(energy[positive], np.log10(rate[positive]))
    return f"{title(row)}\n{figure.show()}"


def save_plot(row: dict[str, Any], path: Path) -> None:
    """The spectrum as a PNG: steps with errors on logarithmic axes; OutputError if it cannot be drawn or written."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OutputError("plots need matplotlib: pip install 'chandra-spectra[plots]'") from error
    low, high = (np.array(row["spectrum"][name]) for name in ("ene_low_bin", "ene_high_bin"))
    rate, rate_error = (np.array(row["spectrum"][name]) for name in ("flux", "flux_error"))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.stairs(rate, np.append(low, high[-1]), color="C0", baseline=None)
    axes.errorbar((low + high) / 2, rate, rate_error, fmt="none", ecolor="C0", alpha=0.4, lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel="energy (keV)", ylabel="counts / s / keV", title=title(row))
    axes.set_xlim(low[0], high[-1])
    axes.set_xticks([0.5, 1, 2, 5, 8], ["0.5", "1", "2", "5", "8"])
    axes.xaxis.set_minor_formatter("")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as failure:
        raise OutputError(f"cannot write {path}: {failure}") from failure
