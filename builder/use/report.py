"""One self-contained HTML page about a prepared folder: nothing in it asks a network for anything.

What is drawn of all rows is binned here, and single rows are a sample, so that the page's size does not follow the
folder's.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder import __version__
from builder.dataset.layout import REJECTIONS_FILE, Counts, Manifest, unreadable
from builder.dataset.pictures import merged_bins
from builder.dataset.read import Overview, check_outside, date_text, overview, read_rows, read_scalars
from builder.dataset.summary import SCALARS, Floats, Summary, galactic_plane, summarize
from builder.dataset.words import command_line, reduction_words, release_words, selection_words
from builder.files import write_whole
from builder.model.column import Column
from builder.model.columns import columns_of
from builder.model.errors import OutputError, require
from builder.model.records import REASONS
from builder.model.settings import Recipe
from builder.model.splits import SPLITS
from builder.model.text import exposure_text
from builder.use.plot import binned_counts

SAMPLE = 2000
"""Most rows that the page holds one by one."""

_SAMPLE_BINS = 200_000
"""Most bins of all their spectra together, about 30 bytes each: the page stays below 12 MB."""

_REJECTIONS = 200
"""Rejections that the page lists one by one."""

_REJECTION = ("detection_id", "stage", "reason", "message")

_DIGITS = 4
"""Significant digits of what is drawn."""

_HARDNESS = 40
"""Bins of a hardness ratio, -1 to 1."""

_PAGE = Path(__file__).parent / "report.html"

# What is told of a single row.
_FACTS = tuple(
    column
    for column in columns_of("spectra")
    if column.length is None and not column.name.endswith(("_sha256", "_file"))
)


@dataclass(frozen=True, slots=True)
class Written:
    """The page: where it is, its bytes, and how many of all rows it holds one by one."""

    path: Path
    size: int
    shown: int
    rows: int


def write_report(folder: Path, path: Path) -> Written:
    """Write the page about a prepared folder.

    Parameters
    ----------
    path : Path
        File to write, outside of `folder`. The same folder and the same plotly give the same bytes.

    Raises
    ------
    MissingExtraError
        Without plotly.
    OutputError
        If the folder is no prepared one or cannot be read, or if the file cannot be written.
    """
    require("plotly", "report", "the report")
    from plotly.offline import get_plotlyjs

    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"cannot write the page to {path}: give a name that ends in .html")
    folder = folder.resolve()
    manifest = Manifest.read(folder)
    check_outside(folder, path)
    seen = overview(folder)
    scalars = read_scalars(folder, ("split", *SCALARS))
    summary = summarize(scalars)
    chosen = _sample(scalars["src_cnts_aper_b"].fill_null(np.nan).to_numpy(), scalars["n_bins"].to_numpy())
    shown = scalars["detection_id"].take(pa.array(chosen)).to_pylist()
    data = {
        "total": seen.rows,
        "folder": shlex.quote(folder.name),
        "sky": _sky(summary),
        "histograms": [
            {"label": one.label, "log": one.logarithmic, "edges": _rounded(one.edges), "rows": one.rows.tolist()}
            for one in summary.histograms
        ],
        "hardness": _hardness(summary),
        "rows": _rows(folder, shown, (*_FACTS, *manifest.own)),
    }
    words = {
        **_words(folder, manifest, seen, Counter(scalars["split"].to_pylist())),
        **_rejections(folder, manifest.counts),
        **(_PART if len(shown) < seen.rows else _WHOLE),
        "style": _PAGE.with_suffix(".css").read_text(encoding="utf-8"),
        "script": _PAGE.with_suffix(".js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        # What closes the element that the data are in must not be read in them.
        "data": json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    page = re.sub(r"@(\w+)@", lambda match: words[match[1]], _PAGE.read_text(encoding="utf-8")).encode()
    with write_whole(path) as partial:
        partial.write_bytes(page)
    return Written(path, len(page), len(shown), seen.rows)


def _sample(counts: Floats, n_bins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose rows evenly spaced in the order of their net counts, so that all brightnesses are there."""
    order = np.argsort(counts, kind="stable")  # those without a value come last
    number = min(len(order), SAMPLE)
    while number and n_bins[order[_evenly(len(order), number)]].sum() > _SAMPLE_BINS:
        number = number * 9 // 10
    return order[_evenly(len(order), number)][::-1]


def _evenly(length: int, number: int) -> NDArray[np.int64]:
    return np.linspace(0, length - 1, number).round().astype(np.int64)


def _words(folder: Path, manifest: Manifest, seen: Overview, splits: Counter[str]) -> dict[str, str]:
    """Write the words of the page above its pictures, as HTML."""
    settings = manifest.read_settings(folder)
    counts = manifest.counts
    numbers = [
        ("spectra", f"{seen.rows:,}", ""),
        ("sources", f"{seen.sources:,}", ""),
        ("observations", f"{seen.observations:,}", seen.dates),
        ("counts", f"{seen.counts:,}", f"{settings.recipe.energy_min:g}–{settings.recipe.energy_max:g} keV"),
        ("exposure", exposure_text(seen.exposure), "all spectra together"),
        ("rejected", f"{counts.rejected:,}", f"of {counts.selected:,} selected"),
    ]
    divided = ", ".join(f"<code>{name}</code> {splits[name]:,}" for name in SPLITS if splits[name])
    return {
        "folder": html.escape(folder.name),
        "release": html.escape(release_words(settings)),
        "version": __version__,
        "remark": f'<p class="remark">{_inline(remark)}</p>' if (remark := manifest.catalog.get("remark")) else "",
        "numbers": "".join(
            f'<div><dt>{name}</dt><dd>{number}</dd><dd class="note">{note}</dd></div>' for name, number, note in numbers
        ),
        "selected": _inline(selection_words(settings)),
        "reduced": _reduced(settings.recipe),
        "splits": divided or "none",
        "command": html.escape(command_line(settings, folder.resolve().name)),
    }


# What a click on the sky and the search come to, where all rows are in the page and where a sample is.
_WHOLE = {"listed_below": "its rows below", "search": "Search"}
_PART = {"listed_below": "below those of its rows that are in the sample", "search": "Search the sample"}


def _inline(markdown: str) -> str:
    """Turn the card's words into HTML: they have code and links beside plain text; links lead to the folder."""
    text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", html.escape(markdown, quote=False))
    return re.sub(r"`(.*?)`", r"<code>\1</code>", text)


def _reduced(recipe: Recipe) -> str:
    background, group = reduction_words(recipe)
    kept = f"{recipe.energy_min:g}–{recipe.energy_max:g} keV kept"
    return f"with Sherpa: PHA with its background, ARF and RMF; {kept}; {background}; {group}; Gehrels errors."


def _rejections(folder: Path, counts: Counts) -> dict[str, str]:
    """Return rejections by reason, and the first of them one by one, as HTML."""
    import pyarrow.parquet as pq

    most = max(counts.reasons.values(), default=0)
    reasons = [
        f"<tr><td><code>{html.escape(reason)}</code></td><td>{html.escape(REASONS.get(reason, ''))}</td>"
        f'<td class="number">{number:,}</td>'
        f'<td class="bar"><span style="width:{100 * number / most:.1f}%"></span></td></tr>'
        for reason, number in sorted(counts.reasons.items(), key=lambda item: -item[1])
    ]
    path = folder / REJECTIONS_FILE
    try:
        with pq.ParquetFile(path) as file:
            first = next(file.iter_batches(_REJECTIONS, columns=list(_REJECTION)), None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in _REJECTION) + "</tr>"
        for row in ([] if first is None else first.to_pylist())
    ]
    listed = f"The first {len(lines):,} of {counts.rejected:,}" if counts.rejected > len(lines) else "One by one"
    return {
        "rejected": "" if lines else "hidden",
        "none_rejected": "hidden" if lines else "",
        "reasons": "".join(reasons),
        "rejections": "".join(lines),
        "listed": listed,
    }


def _rounded(values: Any, digits: int = _DIGITS) -> list[float | None]:
    """Write numbers with few significant digits, None for what is not finite."""
    return [_number(value, digits) for value in np.asarray(values, float).tolist()]


def _number(value: float, digits: int) -> float | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded  # 12 is two bytes shorter than 12.0


def _mollweide(ra: Floats, dec: Floats) -> tuple[list[float | None], list[float | None]]:
    """Project positions (rad) to a plane by Mollweide's projection, right ascension 0 in the middle, to the left.

    See Snyder 1987, Map Projections: a Working Manual (USGS Professional Paper 1395), section 31.
    """
    angle = np.array(dec, float)
    flat = np.abs(angle) < np.pi / 2 - 1e-6  # at the poles, Newton's step would divide by zero
    for _ in range(50):
        wrong = 2 * angle + np.sin(2 * angle) - np.pi * np.sin(dec)
        step = np.divide(wrong, 2 + 2 * np.cos(2 * angle), out=np.zeros_like(angle), where=flat)
        angle -= step
        flat = flat & (np.abs(angle) < np.pi / 2 - 1e-6)
    longitude = -((ra + np.pi) % (2 * np.pi) - np.pi)
    return _rounded(2 * np.sqrt(2) / np.pi * longitude * np.cos(angle)), _rounded(np.sqrt(2) * np.sin(angle))


def _line(parts: list[tuple[list[float | None], list[float | None]]]) -> list[list[float | None]]:
    """Join several lines to one, with gaps between them."""
    return [[value for part in parts for value in (*part[axis], None)] for axis in (0, 1)]


def _sky(summary: Summary) -> dict[str, Any]:
    """Return rows by sky cell and what lies below them, in plane coordinates."""
    x, y = _mollweide(summary.ra, summary.dec)
    # Half a turn is a hair less than that, for a full one would begin again on the other side.
    around, up = np.linspace(-np.pi, np.pi, 181) * (1 - 1e-9), np.linspace(-np.pi / 2, np.pi / 2, 91)
    meridians = [_mollweide(np.full_like(up, np.radians(ra)), up) for ra in range(-120, 121, 60)]
    parallels = [_mollweide(around, np.full_like(around, np.radians(dec))) for dec in (-60, -30, 0, 30, 60)]
    edges = [_mollweide(np.full_like(up, around[side]), up) for side in (0, -1)]
    hours, degrees = np.radians([120, 60, 0, 300, 240]), np.radians([-60, -30, 30, 60])
    return {
        "x": x,
        "y": y,
        "cell": summary.cells.tolist(),
        "rows": summary.rows.tolist(),
        "ra": np.degrees(summary.ra).round(1).tolist(),
        "dec": np.degrees(summary.dec).round(1).tolist(),
        "grid": _line(meridians + parallels),
        "edge": _line(edges),
        "plane": _line([_mollweide(around, galactic_plane(around))]),
        "hours": [*_mollweide(hours, np.zeros(5)), ["120°", "60°", "0°", "300°", "240°"]],
        "degrees": [*_mollweide(np.full(4, around[0]), degrees), ["−60°", "−30°", "30°", "60°"]],
    }


def _hardness(summary: Summary) -> dict[str, Any]:
    """Return rows by both hardness ratios: a matrix of numbers, its lines along the second."""
    edges = np.linspace(-1, 1, _HARDNESS + 1)
    rows = np.histogram2d(summary.hard, summary.soft, (edges, edges))[0].astype(int)
    return {"middles": _rounded((edges[:-1] + edges[1:]) / 2), "rows": rows.tolist(), "known": len(summary.soft)}


def _rows(folder: Path, detections: list[str], columns: tuple[Column, ...]) -> dict[str, Any]:
    """Return the rows of the sample: their scalars by column, and their spectra."""
    names = [column.name for column in columns]
    rows = read_rows(folder, detections, [*names, "spectrum"])
    facts = [
        {
            "name": column.name,
            "unit": column.unit,
            "meaning": column.meaning,
            "values": [_value(row[column.name]) for row in rows],
        }
        for column in columns
    ]
    spectra = [
        _spectrum(row["spectrum"], *counts) for row, counts in zip(rows, binned_counts(folder, rows), strict=True)
    ]
    return {"facts": facts, "dates": [date_text(row["gti_mjd_obs"]) or None for row in rows], "spectra": spectra}


def _value(value: Any) -> Any:
    return _number(value, 8) if isinstance(value, float) else value


def _spectrum(spectrum: dict[str, Any], counts: NDArray[np.int64], background: Floats) -> dict[str, Any]:
    """Return the edges of the bins, which touch each other, and rate, error, counts and scaled background.

    With the numbers of bins that pictures put together, one after the other.
    """
    bins = (spectrum[name] for name in ("ene_low_bin", "ene_high_bin", "flux", "flux_error"))
    begin, _ = merged_bins(*(np.array(values, float) for values in bins))
    return {
        "together": np.diff(begin, append=len(spectrum["flux"])).tolist(),
        "edges": _rounded([*spectrum["ene_low_bin"], spectrum["ene_high_bin"][-1]], 5),
        "rate": _rounded(spectrum["flux"]),
        "error": _rounded(spectrum["flux_error"]),
        "counts": counts.tolist(),
        "background": _rounded(background),
    }
