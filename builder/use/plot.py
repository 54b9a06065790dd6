"""Quick looks at single spectra: in the terminal, and as PNG, PDF or SVG."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from builder.dataset.pictures import SIGMA, STYLE, Bins, energy_axis, merged_bins
from builder.dataset.read import check_outside, read_rows, read_scalars
from builder.files import write_whole
from builder.model.errors import SettingError, require
from builder.model.text import one_line, several

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (*(f"C{number}" for number in range(10)), "black", "gold")
MOST = len(_COLOURS)
"""Spectra in one plot: more cannot be told apart."""

_ERRORS = 4
"""Spectra in one plot up to which their errors are drawn, too."""

_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)  # keV
_LOWEST = 0.1
"""Latest begin of a logarithmic energy axis, keV: a channel may begin at 0, but ACIS sees nothing there."""

_TOGETHER = f"put together to about {SIGMA}σ, for display only"

_PALE = 0.35
"""Opacity of the bins as they are, behind those that are put together for display."""

_MARGIN = 22
"""Columns of a terminal that the labels of the axes take from a plot."""

# No metadata that names a time, a program or a version: the same data and the same matplotlib give the same bytes.
_METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".svg": {"Date": None, "Creator": None},
}


def title(row: Mapping[str, Any]) -> str:
    """Write the title of a row's plot: source (if it has a name), detection, exposure and counts."""
    exposure, counts = f"{row['exposure'] / 1000:,.1f} ks", several(row["source_counts"], "count")
    parts = one_line(row["name"]), row["detection_id"], exposure, counts
    return ", ".join(filter(None, parts))


def terminal_plot(row: dict[str, Any]) -> str:
    """Return the spectrum as text, as wide as the terminal: counts/s/keV against keV, both axes logarithmic."""
    import plotille

    energy, rate = (np.asarray(row["spectrum"][name]) for name in ("ene_center_bin", "flux"))
    positive = rate > 0  # a logarithm has no place for bins that the background outweighs
    if not positive.any():
        return f"{title(row)}\nno bin is above zero"
    logarithms = np.log10(rate[positive])
    low, high = logarithms.min(), logarithms.max()
    figure = plotille.Figure()
    columns = shutil.get_terminal_size().columns
    figure.width, figure.height, figure.with_colors = max(columns - _MARGIN, 20), 12, False
    figure.origin = False  # no lines where an axis is 0
    figure.x_label, figure.y_label = "keV", "counts/s/keV"
    figure.x_ticks_fkt = lambda value, following: f"{10**value:.2g}"
    figure.y_ticks_fkt = lambda value, following: f"{10**value:.2g}".rjust(10)
    figure.set_x_limits(*(float(limit) for limit in np.log10([energy[0] / 1.04, energy[-1] * 1.04])))
    figure.set_y_limits(float(low - 0.1), float(high + 0.1))
    figure.plot(np.log10(energy[positive]), logarithms)
    missing = len(rate) - len(logarithms)
    left_out = f"\nleft out: {missing:,} of {len(rate):,} bins, not above zero" if missing else ""
    drawn = "\n".join(map(str.rstrip, figure.show().splitlines()))
    return f"{title(row)}\n{drawn}{left_out}"


def binned_counts(folder: Path, rows: Iterable[dict[str, Any]]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return the counts of the source region, and background counts scaled to it, in the bins of each row's spectrum.

    Parameters
    ----------
    folder : Path
        A prepared folder; its configs ``counts`` and ``ebounds`` are read.
    rows : iterable of dict
        Rows of config ``spectra`` with ``detection_id``, ``background_scale`` and ``spectrum``.

    Returns
    -------
    list of (ndarray of int64, ndarray of float64), both of shape (n_bins,)
        The edges of bins are those of channels, so that no count is divided.

    Raises
    ------
    OutputError
        If the folder has not the counts of a row.
    """
    rows = list(rows)
    columns = ("detection_id", "ebounds_id", "counts", "background_counts")
    channels = read_rows(folder, [row["detection_id"] for row in rows], columns, "counts")
    table = read_scalars(folder, ("ebounds_id", "energy_lo", "energy_hi"), "ebounds").to_pylist()
    middles = {grid["ebounds_id"]: (np.array(grid["energy_lo"]) + grid["energy_hi"]) / 2 for grid in table}
    binned = []
    for row, channel in zip(rows, channels, strict=True):
        # The middles of channels tell which lie in a bin, whatever was rounded in single precision.
        edges = (np.asarray(row["spectrum"][f"ene_{side}_bin"]) for side in ("low", "high"))
        begin, end = (np.searchsorted(middles[channel["ebounds_id"]], edge) for edge in edges)
        source, background = (np.concatenate([[0], np.cumsum(channel[name], dtype=np.int64)]) for name in columns[2:])
        binned.append((source[end] - source[begin], (background[end] - background[begin]) * row["background_scale"]))
    return binned


def check_number(detections: list[str]) -> list[str]:
    """Return the same detections; SettingError if they are more than `MOST`."""
    if len(detections) > MOST:
        raise SettingError(
            f"{len(detections)} spectra cannot be told apart in one plot: choose up to {MOST} with --detection"
        )
    return detections


def _check_ending(path: Path) -> None:
    if path.suffix.lower() not in _METADATA:
        raise SettingError(f"cannot draw {path}: give a name that ends in .png, .pdf or .svg")


def save_plot(folder: Path, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw spectra: one with its counts and background below, or several over each other, up to 4 with errors.

    Up to 4 are shown with bins put together until they stand out of their errors, see
    `builder.dataset.pictures.merged_bins`; a single one with all its bins behind.

    Parameters
    ----------
    folder : Path
        The prepared folder that the rows are of.
    rows : list of dict
        Rows of config ``spectra``, from 1 to `MOST`.
    path : Path
        Its ending chooses PNG, PDF or SVG. The same rows and the same matplotlib give the same bytes.

    Raises
    ------
    SettingError
        If the ending is another.
    MissingExtraError
        Without matplotlib.
    OutputError
        If the file would lie in the folder or cannot be written.
    """
    _check_ending(path)
    check_outside(folder, path)
    require("matplotlib", "plots", "a plot")
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):  # the user's own style does not enter
        figure = Figure(figsize=(7.2, 5.8), layout="constrained")
        if len(rows) == 1:
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            _rates(upper, rows)
            _counts(lower, rows[0], *binned_counts(folder, rows)[0])
            upper.set_title(title(rows[0]), fontsize=11, parse_math=False)
        else:
            lower = figure.subplots()
            _rates(lower, rows)
            lower.set_title(f"{len(rows)} spectra{_of(rows)}", fontsize=11, parse_math=False)
            figure.set_figheight(5 + 0.2 * len(rows))
            legend = figure.legend(loc="outside lower left", frameon=False, fontsize=9)
            for text, row in zip(legend.get_texts(), rows, strict=True):
                text.set(text=title(row), parse_math=False)
        _energies(lower, rows)
        with write_whole(path) as partial:
            figure.savefig(partial, dpi=150, format=path.suffix[1:].lower(), metadata=_METADATA[path.suffix.lower()])


def plot(row: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw the spectrum of one row, in a notebook for instance.

    Parameters
    ----------
    row : dict
        A row of config ``spectra``, plain or in any format, with ``detection_id`` and ``spectrum``. With ``name``,
        ``exposure`` and ``source_counts`` as well it has a title.
    ax : matplotlib.axes.Axes, optional
        Axes to draw into, by default those of a new figure of pyplot.

    Raises
    ------
    SettingError
        If it is no such row.
    MissingExtraError
        Without matplotlib.
    """
    if missing := {"detection_id", "spectrum"} - set(row):
        raise SettingError(f"no {min(missing)} in the row: give a row of config spectra")
    require("matplotlib", "plots", "a plot")
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    ax.set_axisbelow(True)
    _rates(ax, [row])
    _energies(ax, [row])
    if {"name", "exposure", "source_counts"} <= set(row):
        ax.set_title(title(row), fontsize=11, parse_math=False)
    return ax


def _of(rows: list[dict[str, Any]]) -> str:
    """Name the source or the number of sources; nothing if one of them has no name."""
    names = {one_line(row["name"]) for row in rows}
    if "" in names:
        return ""
    return f" of {names.pop() if len(names) == 1 else f'{len(names)} sources'}"


def _bins(row: Mapping[str, Any]) -> Bins:
    names = ("ene_low_bin", "ene_high_bin", "flux", "flux_error")
    low, high, rate, error = (np.asarray(row["spectrum"][name], dtype=np.float64) for name in names)
    return low, high, rate, error


def _steps(
    axes: Axes, low: NDArray[np.float64], high: NDArray[np.float64], values: NDArray[Any], **options: Any
) -> None:
    """Draw a line along the bins, which touch each other; a logarithmic axis leaves out what is not above zero."""
    axes.stairs(values, np.append(low, high[-1]), baseline=None, **options)


def _rates(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    tops, bottoms = [], []
    for row, colour in zip(rows, _COLOURS, strict=False):
        low, high, rate, error = _bins(row)
        # A name that begins with _ would be kept out of the legend: the titles are written there in the end.
        label = row["detection_id"]
        if len(rows) == 1:
            _steps(axes, low, high, rate, color=colour, lw=0.8, alpha=_PALE, label=f"all {rate.size:,} bins")
            label = _TOGETHER
        if len(rows) <= _ERRORS:
            _, (low, high, rate, error) = merged_bins(low, high, rate, error)
            axes.errorbar((low + high) / 2, rate, error, fmt="none", ecolor=colour, elinewidth=0.9)
        _steps(axes, low, high, rate, color=colour, lw=1.2 if len(rows) <= _ERRORS else 0.9, label=label)
        shown = rate if (rate > 0).any() else rate + error
        bottoms += shown[shown > 0].tolist()
        tops += (rate + error)[shown > 0].tolist()
    if bottoms:
        axes.set_ylim(min(bottoms) / 2, max(tops) * 1.5)
        axes.set_yscale("log", nonpositive="clip")
    axes.set_ylabel("counts / s / keV")
    axes.grid(visible=True)
    if len(rows) == 1:
        axes.legend(frameon=False, fontsize=9)
    elif len(rows) <= _ERRORS:
        axes.text(0.99, 0.99, f"bins {_TOGETHER}", fontsize=9, ha="right", va="top", transform=axes.transAxes)


def _counts(axes: Axes, row: dict[str, Any], source: NDArray[np.int64], background: NDArray[np.float64]) -> None:
    low, high, *_ = bins = _bins(row)
    for values, colour in ((source, "C0"), (background, "C1")):
        _steps(axes, low, high, values, color=colour, lw=0.8, alpha=_PALE)
    begin, (low, high, *_) = merged_bins(*bins)
    source, background = (np.add.reduceat(values, begin) for values in (source, background))
    scaled = f"background × {row['background_scale']:.3g}"
    _steps(axes, low, high, source, color="C0", lw=1.2, label="source region")
    _steps(axes, low, high, background, color="C1", lw=1.2, label=scaled if background.any() else f"{scaled}: none")
    shown = np.concatenate([source, background])
    if (positive := shown[shown > 0]).size:
        decades = np.floor(np.log10(positive.min())), np.ceil(np.log10(positive.max() * 1.05))
        axes.set_ylim(*(10.0**decade for decade in decades))
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set(major_formatter="{x:g}", minor_formatter="")
    axes.set_ylabel("counts in the bin")
    axes.grid(visible=True)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _energies(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    low = max(_LOWEST, 0.96 * min(_bins(row)[0][0] for row in rows))
    high = 1.04 * max(_bins(row)[1][-1] for row in rows)
    energy_axis(axes, low, high, _TICKS)
    axes.set_xlabel("energy (keV)")
