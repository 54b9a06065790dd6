"""Settings of a prepared folder in words, and as the command that made it."""

from __future__ import annotations

import shlex

import numpy as np

from builder.dataset.layout import DETECTIONS_FILE, POSITIONS_FILE
from builder.model.settings import EMBEDDED, RMFS, Recipe, Settings, last_part
from builder.model.sky import radius_of
from builder.model.splits import Splits
from builder.model.text import several

LONG = 5
"""Names or observations that a sentence lists."""


def release_words(settings: Settings) -> str:
    """Name the release of the catalog that the files are of."""
    return "1, and simulated" if settings.archive == EMBEDDED else settings.release.removeprefix("rel")


def _number(value: float) -> str:
    """Write a number as short as it can be without becoming another."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def reduction_words(recipe: Recipe) -> tuple[str, str]:
    """Say in words whether the background was subtracted, and how the channels were grouped."""
    least = several(recipe.min_counts, "count")
    return (
        "background subtracted" if recipe.subtract else "background not subtracted",
        f"grouped to at least {least} a bin" if recipe.group else "not grouped",
    )


def selection_words(settings: Settings) -> str:
    """Describe the selection of detections, as Markdown."""
    selection = settings.selection
    listed_elsewhere = settings.archive == EMBEDDED or settings.catalog
    cuts = [
        words.format(_number(cut))
        for cut, words in (
            (selection.min_cnts, "with more than {} net counts (0.5-7 keV)"),
            (selection.min_sig, "with a flux significance above {} (0.5-7 keV)"),
            (selection.max_theta, "less than {} arcmin from the optical axis"),
        )
        if cut is not None
    ]
    if cuts:
        parts = [f"detections {cuts[0]}", *cuts[1:]]
    else:
        parts = ["the whole embedded sample" if settings.archive == EMBEDDED else "all detections"]
    if settings.catalog:
        parts.append(f"listed in the catalog file `{last_part(settings.catalog)}`")
    if not listed_elsewhere:
        parts.append(
            "matched uniquely to a source (`match_type` u), with a black-body flux (`flux_bb_aper_b` not null)"
        )
    if cone := selection.cone:
        ra, dec, radius = map(_number, (cone.ra, cone.dec, cone.radius))
        parts.append(f"within {radius} deg of right ascension {ra} and declination {dec} deg")
    for what, chosen in (("source", selection.names), ("observation", selection.obsids)):
        if chosen:
            several = "s" if len(chosen) > 1 else ""
            listed = ", ".join(map(str, chosen)) if len(chosen) <= LONG else "named below"
            parts.append(f"of {len(chosen):,} {what}{several} ({listed})")
    if selection.detections:
        parts.append(f"among the {len(selection.detections):,} in [{DETECTIONS_FILE}]({DETECTIONS_FILE})")
    if selection.positions:
        parts.append(
            f"of the sources nearest to the {len(selection.positions):,} positions in "
            f"[{POSITIONS_FILE}]({POSITIONS_FILE}), within {3600 * (selection.radius or 0):g} arcsec"
        )
    if selection.limit:
        first = "first" if selection.limit == 1 else f"first {selection.limit:,}"
        parts.append(f"of these the {first} by obsid, obi and region_id")
    nulls = " A detection without a value passes the cut on it." if listed_elsewhere and cuts else ""
    return f"{', '.join(parts)}.{nulls}"


def command_line(settings: Settings, folder: str = "chandra_spectra") -> str:
    """Write the command that prepares a folder with these settings; local paths by their last part."""
    selection, recipe = settings.selection, settings.recipe
    options = {
        "archive": last_part(settings.archive) if settings.from_mirror else settings.archive,
        "release": settings.release,
        "cat-file": last_part(settings.catalog) if settings.catalog else None,
        "min-cnts": selection.min_cnts,
        "min-sig": selection.min_sig,
        "max-theta": selection.max_theta,
        "cone": ",".join(map(_number, (cone.ra, cone.dec, cone.radius))) if (cone := selection.cone) else None,
        "name": selection.names,
        "obsid": selection.obsids,
        "detections": DETECTIONS_FILE if selection.detections else None,
        "columns": ",".join(settings.columns) or None,
        "positions": POSITIONS_FILE if selection.positions else None,
        "radius": _angle(selection.radius or 0) if selection.positions else None,
        "limit": selection.limit,
        "energy-min": recipe.energy_min,
        "energy-max": recipe.energy_max,
        "group-counts": recipe.min_counts,
    }
    words = [f"chandra-spectra prepare {shlex.quote(folder)}"]
    for name, given in options.items():
        values = given if isinstance(given, tuple) else () if given is None else (given,)
        texts = (_number(value) if isinstance(value, float) else str(value) for value in values)
        words += [f"--{name} {shlex.quote(text)}" for text in texts]
    words += [] if recipe.subtract else ["--no-subtract"]
    words += [] if recipe.group else ["--no-group"]
    words += [] if settings.splits == Splits() else [f"--splits {settings.splits}"]
    words += [] if settings.rmf == RMFS[0] else [f"--rmf {settings.rmf}"]
    words += ["--with-responses"] if settings.responses else []
    words += [f"--bins {settings.bins}"] if settings.bins else []
    words += ["--sources"] if settings.sources else []
    if settings.labels:
        words += [f"--labels {shlex.quote(last_part(settings.labels))} --label-radius {_angle(settings.label_radius)}"]
    return " \\\n  ".join(words)


def _angle(radius: float) -> str:
    """Write the radius of a match (deg) so that it is read back as the same number."""
    text = f"{3600 * radius:g}arcsec"
    return text if radius_of(text) == radius else f"{np.format_float_positional(radius, trim='-')}deg"
