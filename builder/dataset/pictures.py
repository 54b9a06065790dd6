"""Pictures of the dataset for its card, drawn from the Parquet shards.

The same data and the same matplotlib give the same bytes: the user's style does not enter, and no picture names a time
or a version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder.dataset.rows import HEALPIX_NSIDE
from builder.model.errors import require
from builder.model.text import one_line, several

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALARS = ("healpix", "src_cnts_aper_b", "theta", "n_bins", "hard_hm", "hard_ms", "source_counts")
"""Columns that `draw_pictures` wants of every row: 56 bytes a row."""

Floats = NDArray[np.float64]

_GALLERY = (3, 3)
_TICKS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)  # keV
_POLE = np.radians([192.859, 27.128])
"""Right ascension and declination (J2000) of the north Galactic pole; IAU 1958, Blaauw et al. 1960."""

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


def draw_pictures(folder: Path, shards: list[Path], scalars: pa.Table) -> list[Picture]:
    """Draw ``images/*.png`` into a prepared folder.

    Parameters
    ----------
    folder : Path
    shards : list of Path
        The shards of config ``spectra``; a few row groups are read.
    scalars : pyarrow.Table
        The columns `SCALARS` of all rows.

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

    values = {name: finite(scalars[name]) for name in SCALARS}
    wanted: tuple[tuple[str, str, Callable[[Figure], str]], ...] = (
        ("spectra", "Spectra", lambda figure: _gallery(figure, shards, values["source_counts"])),
        ("sky", "Sky map", lambda figure: _sky(figure, values["healpix"])),
        ("distributions", "Distributions", lambda figure: _distributions(figure, values)),
        ("hardness", "Hardness ratios", lambda figure: _hardness(figure, values["hard_ms"], values["hard_hm"])),
    )
    drawn = []
    with style.context(["default", STYLE]):
        for name, title, draw in wanted if len(scalars) else ():
            figure = Figure()
            if caption := draw(figure):
                path = folder / "images" / f"{name}.png"
                path.parent.mkdir(exist_ok=True)
                _save(figure, path)
                drawn.append(Picture(f"images/{name}.png", title, caption))
    return drawn


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG without metadata, in 256 colours: half of the bytes that matplotlib's own would have."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


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


def finite(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values of a column, NaN for null and for anything that is not finite."""
    values = column.cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def rows_by_cell(healpix: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """The sky cells that hold rows, how many each, and right ascension and declination of their centres, rad."""
    from astropy_healpix import healpix_to_lonlat

    cells, rows = np.unique(healpix[~np.isnan(healpix)].astype(np.int64), return_counts=True)
    lon, lat = (angle.to_value("rad") for angle in healpix_to_lonlat(cells, HEALPIX_NSIDE, order="nested"))
    return cells, rows, lon, lat


def galactic_plane(ra: Floats) -> Floats:
    """Declination of the Galactic plane (rad) at right ascensions (rad): where the distance to its pole is 90 deg."""
    return np.asarray(np.arctan(-np.cos(ra - _POLE[0]) / np.tan(_POLE[1])))


def _sky(figure: Figure, healpix: NDArray[np.float64]) -> str:
    """Rows by sky cell, in the Mollweide projection with right ascension rising to the left."""
    from matplotlib.colors import LogNorm

    cells, rows, lon, lat = rows_by_cell(healpix)
    if not cells.size:
        return ""
    figure.set_size_inches(8, 3.8)
    axes = figure.add_axes((0.05, 0.04, 0.83, 0.92), projection="mollweide")
    around = np.linspace(-np.pi, np.pi, 361)
    axes.plot(around, galactic_plane(-around), color="0.6", lw=1, label="Galactic plane")
    dots = axes.scatter(
        -((lon + np.pi) % (2 * np.pi) - np.pi),
        lat,
        24,
        rows,
        cmap="viridis",
        lw=0,
        norm=LogNorm(1, max(rows.max(), 10)),
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
        f"Where the spectra are, in cells of `healpix` ({len(cells):,} hold one or more), equatorial coordinates. "
        "The sky is covered where Chandra pointed."
    )


def _distributions(figure: Figure, values: dict[str, NDArray[np.float64]]) -> str:
    figure.set_size_inches(8, 2.9)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.19, top=0.96, wspace=0.22)
    left, middle, right = figure.subplots(1, 3)
    _histogram(left, values["src_cnts_aper_b"], "net counts, 0.5-7 keV", decades=True)
    _histogram(middle, values["theta"], "off-axis angle (arcmin)")
    _histogram(right, values["n_bins"], "bins in the spectrum", decades=True)
    left.set_ylabel("spectra")
    return (
        "Net counts of the source (`src_cnts_aper_b`), off-axis angle (`theta`) and length of the spectrum (`n_bins`)."
    )


def histogram_edges(values: Floats, *, decades: bool) -> Floats:
    """Edges of twenty bins between 0 and a round number, or of eight a decade for values that are all above 0."""
    if not decades:
        return np.linspace(0, np.floor(values.max()) + 1, 21)
    low, high = np.floor(np.log10(values.min())), np.floor(np.log10(values.max())) + 1
    return np.logspace(low, high, 8 * int(high - low) + 1)


def _histogram(axes: Axes, values: NDArray[np.float64], label: str, *, decades: bool = False) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    values = values[values > 0] if decades else values[~np.isnan(values)]
    if not values.size:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes, color="0.5")
        axes.set(xticks=[], yticks=[], xlabel=label)
        return
    bins = histogram_edges(values, decades=decades)
    if decades:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.hist(values, bins.tolist(), color="C0")
    axes.set(xlabel=label, xlim=(bins[0], bins[-1]))
    axes.yaxis.set(major_locator=MaxNLocator(5, integer=True), major_formatter=EngFormatter(sep=""))
    axes.grid(visible=True)


def _hardness(figure: Figure, soft: NDArray[np.float64], hard: NDArray[np.float64]) -> str:
    known = ~np.isnan(soft) & ~np.isnan(hard)
    if not known.any():
        return ""
    figure.set_size_inches(5.6, 4.6)
    axes = figure.add_axes((0.12, 0.12, 0.7, 0.85))
    cells = axes.hexbin(
        soft[known], hard[known], gridsize=(40, 23), extent=(-1, 1, -1, 1), mincnt=1, bins="log", cmap="viridis", lw=0.2
    )
    cells.set_clim(1, max(np.asarray(cells.get_array()).max(), 10))
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
    figure.colorbar(cells, cax=figure.add_axes((0.85, 0.2, 0.03, 0.6)), label="spectra in a cell", format="%d")
    return (
        f"Hardness ratios `hard_ms` and `hard_hm` of the {known.sum():,} spectra that have both; "
        "soft 0.5-1.2, medium 1.2-2, hard 2-7 keV."
    )


def _gallery(figure: Figure, shards: list[Path], counts: NDArray[np.float64]) -> str:
    """A few spectra, evenly spaced in the logarithm of their counts."""
    lines, columns = _GALLERY
    order = np.argsort(counts, kind="stable")
    steps = np.geomspace(max(counts.min(), 1), counts.max(), lines * columns).round()
    chosen = np.unique(np.searchsorted(counts[order], steps).clip(max=len(counts) - 1))
    rows = sorted(_read(shards, order[chosen]), key=lambda row: row["source_counts"])
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    width, height = max(2.7 * columns, 4), 0.6 + 1.9 * lines
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.1 / width, bottom=0.6 / height, top=1 - 0.45 / height, hspace=0.5, wspace=0.24
    )
    panels = iter(figure.subplots(lines, columns, squeeze=False).flat)
    bins = [(np.array(row["spectrum"]["ene_low_bin"]), np.array(row["spectrum"]["ene_high_bin"])) for row in rows]
    # A channel at 0 keV has no place on a logarithmic axis, and ACIS sees nothing below 0.1.
    limits = max(0.1, 0.96 * min(low[0] for low, _ in bins)), 1.04 * max(high[-1] for _, high in bins)
    for row, (low, high), axes in zip(rows, bins, panels, strict=False):
        _spectrum(axes, row, low, high)
        energy_axis(axes, *limits, _TICKS)
        axes.minorticks_off()  # most of the time of drawing, and too fine to read
    for axes in panels:  # those that are left
        axes.set_axis_off()
    figure.text(0.5, 0.12 / height, "energy (keV)", ha="center")
    figure.text(0.12 / width, 0.5, "counts / s / keV", va="center", rotation=90)
    return (
        "A few spectra with their errors, from the fewest counts to the most; a bin that is not above zero has no "
        "place on the logarithmic axis."
    )


def _spectrum(axes: Axes, row: dict[str, Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    rate, error = (np.array(row["spectrum"][name]) for name in ("flux", "flux_error"))
    axes.errorbar((low + high) / 2, rate, error, (high - low) / 2, fmt="none", ecolor="C0", elinewidth=0.8)
    axes.set_yscale("log", nonpositive="clip")
    if (positive := rate[rate > 0]).size:
        bottom, top = np.log10([positive.min() / 2, (rate + error).max() * 1.5])
        bottom = bottom if np.ceil(bottom) <= top else np.floor(bottom)  # a power of ten is what is labelled
        axes.set_ylim(10**bottom, 10**top)
    counts = several(row["source_counts"], "count")
    title = f"{one_line(row['name'])}\n{row['detection_id']}, {counts}"
    axes.set_title(title, fontsize=8, y=1, parse_math=False)
    axes.tick_params(labelsize=8)


def _read(shards: list[Path], rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """The rows with these numbers, one row group in memory at a time."""
    start = 0
    for path in shards:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                inside = np.sort(rows[(rows >= start) & (rows < start + size)]) - start
                if inside.size:
                    table = file.read_row_group(group, ["name", "detection_id", "source_counts", "spectrum"])
                    yield from table.take(inside).to_pylist()
                start += size
