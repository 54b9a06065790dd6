"""Pictures of the dataset for its card, drawn from the Parquet shards.

The same data and the same matplotlib give the same bytes: the user's style does not enter, and no picture names a time
or a version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.dataset.read import read_rows
from builder.dataset.summary import Histogram, Summary, galactic_plane, summarize
from builder.model.errors import ChandraSpectraError, require
from builder.model.text import one_line, several

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_GALLERY = (3, 3)
_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)  # keV
SIGMA = 3
"""Rate over error from which on a bin is drawn by itself."""

_WIDEST = 1.25
"""Ratio of the edges of a bin that is put together for display: about the resolution that is left to see."""

_FEW = 2000
"""Spectra up to which the plane of hardness ratios has a point for each."""

Floats = NDArray[np.float64]
Bins = tuple[Floats, Floats, Floats, Floats]

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.85",
    "grid.linewidth": 0.6,
    "figure.dpi": 100,
    "svg.hashsalt": "chandra-spectra",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture.

    Attributes
    ----------
    path : str
        Within the prepared folder.
    title, caption : str
        What it shows, in a word and in a sentence.
    """

    path: str
    title: str
    caption: str


def draw_pictures(folder: Path, scalars: pa.Table) -> list[Picture]:
    """Draw ``images/*.png`` into a prepared folder.

    Parameters
    ----------
    folder : Path
        Holds the shards of config ``spectra``, of which a few row groups are read.
    scalars : pyarrow.Table
        The columns `builder.dataset.summary.SCALARS` of all rows.

    Returns
    -------
    list of Picture
        Those that there is something to show in; none of them without rows.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    OSError
        If one cannot be written.
    """
    require("matplotlib", "plots", "a picture")
    from matplotlib import style
    from matplotlib.figure import Figure

    summary = summarize(scalars)
    wanted: tuple[tuple[str, str, Callable[[Figure], str]], ...] = (
        ("spectra", "Spectra", lambda figure: _gallery(figure, folder, scalars)),
        ("sky", "Sky map", lambda figure: _sky(figure, summary)),
        ("distributions", "Distributions", lambda figure: _distributions(figure, summary)),
        ("hardness", "Hardness ratios", lambda figure: _hardness(figure, summary)),
    )
    drawn = []
    with style.context(["default", STYLE]):
        for name, title, draw in wanted if len(scalars) else ():
            figure = Figure()
            path = folder / "images" / f"{name}.png"
            try:
                if caption := draw(figure):
                    path.parent.mkdir(exist_ok=True)
                    _save(figure, path)
                    drawn.append(Picture(f"images/{name}.png", title, caption))
            except (OSError, ChandraSpectraError):  # of the disk, which the data need, too
                raise
            except Exception as error:  # noqa: BLE001  matplotlib raises what it likes, and no picture is worth a run
                path.unlink(missing_ok=True)
                logger.warning("the card has no picture %r: %s", title, error)
    return drawn


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG without metadata, in 256 colours: half of the bytes that matplotlib's own would have."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    image.quantize(256, dither=Image.Dither.NONE).save(path)


def energy_axis(axes: Axes, low: float, high: float, ticks: tuple[float, ...]) -> None:
    """Make the abscissa logarithmic, from `low` to `high` (keV), with those of `ticks`; with others if they are few."""
    from matplotlib.ticker import AutoLocator

    axes.set(xscale="log", xlim=(low, high))
    within = [tick for tick in ticks if low <= tick <= high]
    if len(within) > 1:
        axes.set_xticks(within)
    else:
        axes.xaxis.set_major_locator(AutoLocator())
    axes.xaxis.set(major_formatter="{x:g}", minor_formatter="")


def _power_of_ten(value: float, _: float) -> str:
    """Write 0.001 as 10⁻³: what matplotlib has for it typesets formulas, which takes longer than all else."""
    return "10" + f"{np.log10(value):.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def merged_bins(low: Floats, high: Floats, rate: Floats, error: Floats) -> tuple[NDArray[np.intp], Bins]:
    """Put neighbouring bins together until the rate is `SIGMA` times its error, for display only.

    Errors are added in quadrature. A bin does not become wider than `_WIDEST`, where there is only background.

    Returns
    -------
    begin : ndarray of int, shape (n,)
        Number of the first bin of each that is drawn.
    bins : tuple of four ndarrays, shape (n,)
        Low and high edges, rates and errors.
    """
    width = high - low
    counted, variance = rate * width, (error * width) ** 2
    begin, total, square = [0], 0.0, 0.0
    for number in range(low.size):
        if number > begin[-1] and (total >= SIGMA * np.sqrt(square) or high[number] > _WIDEST * low[begin[-1]]):
            begin.append(number)
            total = square = 0.0
        total, square = total + counted[number], square + variance[number]
    end = np.array([*begin[1:], low.size]) - 1
    wide = high[end] - low[begin]
    summed, spread = np.add.reduceat(counted, begin), np.sqrt(np.add.reduceat(variance, begin))
    return np.array(begin), (low[begin], high[end], summed / wide, spread / wide)


def _sky(figure: Figure, summary: Summary) -> str:
    """Draw rows by sky cell, in the Mollweide projection with right ascension rising to the left."""
    from matplotlib.colors import LogNorm

    if not summary.cells.size:
        return ""
    figure.set_size_inches(8, 3.8)
    axes = figure.add_axes((0.05, 0.04, 0.83, 0.92), projection="mollweide")
    around = np.linspace(-np.pi, np.pi, 361)
    axes.plot(around, galactic_plane(-around), color="0.6", lw=1, label="Galactic plane")
    dots = axes.scatter(
        -((summary.ra + np.pi) % (2 * np.pi) - np.pi),
        summary.dec,
        24,
        summary.rows,
        cmap="viridis",
        lw=0,
        norm=LogNorm(1, max(summary.rows.max(), 10)),
    )
    axes.set_xticks(np.radians(range(-120, 121, 60)), [""] * 5)
    axes.set_yticks(np.radians(range(-60, 61, 30)))
    for angle in range(-120, 121, 60):  # a label of an axis would lie below the dots
        axes.text(
            np.radians(angle),
            0,
            f"{-angle % 360}°",
            color="0.3",
            ha="center",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
        )
    axes.grid(visible=True)
    axes.legend(loc="lower right", bbox_to_anchor=(1.06, -0.04), frameon=False)
    figure.colorbar(dots, cax=figure.add_axes((0.91, 0.2, 0.02, 0.6)), label="spectra in a cell", format="%d")
    return (
        f"Where the spectra are, in cells of `healpix` ({len(summary.cells):,} hold one or more), "
        "equatorial coordinates. The sky is covered where Chandra pointed."
    )


def _distributions(figure: Figure, summary: Summary) -> str:
    figure.set_size_inches(8, 2.9)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.19, top=0.96, wspace=0.22)
    panels = figure.subplots(1, 3)
    for axes, histogram in zip(panels, summary.histograms, strict=True):
        _histogram(axes, histogram)
    panels[0].set_ylabel("spectra")
    return (
        "Net counts of the source (`src_cnts_aper_b`), off-axis angle (`theta`) and length of the spectrum (`n_bins`)."
    )


def _histogram(axes: Axes, histogram: Histogram) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    bins = histogram.edges
    if not bins.size:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set(xticks=[], yticks=[], xlabel=histogram.label)
        return
    if histogram.logarithmic:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(_power_of_ten)
    axes.stairs(histogram.rows, bins, fill=True, color="C0")
    axes.set(xlabel=histogram.label, xlim=(bins[0], bins[-1]))
    axes.yaxis.set(major_locator=MaxNLocator(5, integer=True), major_formatter=EngFormatter(sep=""))
    axes.grid(visible=True)


def _hardness(figure: Figure, summary: Summary) -> str:
    if not summary.soft.size:
        return ""
    figure.set_size_inches(5.6, 4.6)
    axes = figure.add_axes((0.12, 0.12, 0.7, 0.85))
    few = summary.soft.size <= _FEW
    if few:
        figure.set_size_inches(4.7, 4.6)
        axes.set_position((0.15, 0.12, 0.82, 0.85))
        size = 16 if summary.soft.size <= _FEW / 10 else 6
        axes.scatter(summary.soft, summary.hard, size, "C0", alpha=0.6, lw=0)
    else:
        options: dict[str, Any] = {"mincnt": 1, "bins": "log", "cmap": "viridis", "lw": 0.2}
        cells = axes.hexbin(summary.soft, summary.hard, gridsize=(40, 23), extent=(-1, 1, -1, 1), **options)
        cells.set_clim(1, max(np.asarray(cells.get_array()).max(), 10))
        figure.colorbar(cells, cax=figure.add_axes((0.85, 0.2, 0.03, 0.6)), label="spectra in a cell", format="%d")
    axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    axes.axvline(0, color="0.6", lw=0.8, zorder=0)
    ticks = np.linspace(-1, 1, 5)
    axes.set(
        xlim=(-1.03, 1.03),
        ylim=(-1.03, 1.03),
        xticks=ticks,
        yticks=ticks,
        xlabel="hard_ms   (medium - soft) / (medium + soft)",
        ylabel="hard_hm   (hard - medium) / (hard + medium)",
    )
    left_out = f" {several(summary.outside, 'row')} outside of -1 and 1 not drawn." if summary.outside else ""
    return (
        f"Hardness ratios `hard_ms` and `hard_hm` of the {len(summary.soft):,} spectra that have both; "
        f"soft 0.5-1.2, medium 1.2-2, hard 2-7 keV.{left_out}"
    )


def _gallery(figure: Figure, folder: Path, scalars: pa.Table) -> str:
    """Draw a few spectra, evenly spaced in the logarithm of their counts."""
    lines, columns = _GALLERY
    counts = scalars["source_counts"].to_numpy()
    order = np.argsort(counts, kind="stable")
    steps = np.geomspace(max(counts.min(), 1), counts.max(), lines * columns).round()
    chosen = np.unique(np.searchsorted(counts[order], steps).clip(max=len(counts) - 1))
    detections = scalars["detection_id"].take(order[chosen]).to_pylist()
    rows = read_rows(folder, detections, ("name", "detection_id", "source_counts", "spectrum"))
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    width, height = max(2.7 * columns, 4), 0.6 + 1.9 * lines
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.1 / width, bottom=0.6 / height, top=1 - 0.45 / height, hspace=0.5, wspace=0.24
    )
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    bins = [[np.array(row["spectrum"][f"ene_{edge}_bin"], float) for edge in ("low", "high")] for row in rows]
    # A channel at 0 keV has no place on a logarithmic axis, and ACIS sees nothing below 0.1.
    limits = max(0.1, 0.96 * min(low[0] for low, _ in bins)), 1.04 * max(high[-1] for _, high in bins)
    for row, (low, high), axes in zip(rows, bins, panels, strict=False):
        _spectrum(axes, row, low, high)
        axes.minorticks_off()  # most of the time of drawing, and too fine to read
    energy_axis(axes, *limits, _TICKS)  # of all, as they share it
    axes.minorticks_off()
    for number in range(len(rows), lines * columns):  # those that are left
        panels[number].set_axis_off()
        panels[number - columns].tick_params(labelbottom=True)
    figure.text(0.5, 0.12 / height, "energy (keV)", ha="center")
    figure.text(0.12 / width, 0.5, "counts / s / keV", va="center", rotation=90)
    return (
        f"A few spectra, from the fewest counts to the most: all bins (pale), and put together to about {SIGMA}σ, for "
        "display only, with errors. What is not above zero has no place on the logarithmic axis."
    )


def _spectrum(axes: Axes, row: dict[str, Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import LogLocator

    rate, error = (np.array(row["spectrum"][name], float) for name in ("flux", "flux_error"))
    axes.step(np.append(low, high[-1]), np.append(rate, rate[-1]), where="post", color="C0", alpha=0.5, lw=0.6)
    _, (low, high, rate, error) = merged_bins(low, high, rate, error)
    middle = (low + high) / 2
    bars = np.array([(low, rate, high, rate), (middle, rate - error, middle, rate + error)])
    axes.add_collection(LineCollection([*np.moveaxis(bars, 1, -1).reshape(-1, 2, 2)], colors="C0", linewidths=1))
    axes.set_yscale("log", nonpositive="clip")
    axes.yaxis.set(major_locator=LogLocator(numticks=4), major_formatter=_power_of_ten)
    if (positive := rate[rate > 0]).size:
        bottom, top = np.log10([positive.min() / 2, (rate + error).max() * 1.5])
        bottom = bottom if np.ceil(bottom) <= top else np.floor(bottom)  # a power of ten is what is labelled
        axes.set_ylim(10**bottom, 10**top)
    counts = several(row["source_counts"], "count")
    title = f"{one_line(row['name'])}\n{row['detection_id']}, {counts}"
    axes.set_title(title, fontsize=8, y=1, parse_math=False)
    axes.tick_params(labelsize=8)
