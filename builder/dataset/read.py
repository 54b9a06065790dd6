"""Looks into a prepared folder: scalars of all rows, and single rows, but never all spectra at once."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.dataset.layout import DATA_FILES, unreadable
from builder.dataset.rows import examples
from builder.model.errors import OutputError, SettingError
from builder.model.ids import DetectionId, designation

_MJD_EPOCH = datetime.date(1858, 11, 17)
"""Day 0 of the modified Julian date."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Totals of the rows of a folder.

    Attributes
    ----------
    rows, sources, observations : int
        Spectra, distinct names, and distinct obsids among them.
    exposure : float
        Sum over the rows, s; an observation counts once for each of its rows.
    counts : int
        Counts in the kept energy range, source regions, sum over the rows.
    dates : str
        Of the first and the last observation, such as ``1999-11-29 to 2022-08-14``, one where they agree, and empty
        where the catalog gives none.
    """

    rows: int
    sources: int
    observations: int
    exposure: float
    counts: int
    dates: str


def overview(folder: Path) -> Overview:
    """Return the `Overview` of a prepared folder; OutputError if its shards cannot be read."""
    table = read_scalars(folder, ("name", "obsid", "exposure", "source_counts", "gti_mjd_obs"))
    times = pc.min_max(table["gti_mjd_obs"]).as_py()
    return Overview(
        len(table),
        pc.count_distinct(table["name"]).as_py(),
        pc.count_distinct(table["obsid"]).as_py(),
        pc.sum(table["exposure"]).as_py() or 0.0,
        pc.sum(table["source_counts"]).as_py() or 0,
        " to ".join(dict.fromkeys(filter(None, (date_text(times["min"]), date_text(times["max"]))))),
    )


def date_text(mjd: float | None) -> str:
    """Write the day of a modified Julian date, such as 2004-06-21; empty for null, and the number after year 9999."""
    if mjd is None or not np.isfinite(mjd):
        return ""
    try:
        return str(_MJD_EPOCH + datetime.timedelta(days=int(mjd)))
    except OverflowError:
        return f"MJD {mjd:g}"


def check_outside(folder: Path, path: Path) -> None:
    """Refuse, with OutputError, a file to be written within a prepared folder, which holds its own files only."""
    if path.parent.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{path} would lie in the prepared folder, which holds its own files only: choose with -o")


def _shards(folder: Path, config: str) -> list[Path]:
    # Resolved, as pyarrow takes a relative path with a colon for a URI.
    if paths := sorted((folder.resolve() / DATA_FILES[config]).glob("*.parquet")):
        return paths
    missing = f"it has no {DATA_FILES[config]}/*.parquet" if folder.is_dir() else "there is no such folder"
    raise OutputError(f"{folder} is not a prepared folder: {missing}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException, KeyError) as error:
        raise unreadable(path, error) from error


def read_scalars(folder: Path, columns: Sequence[str], config: str = "spectra") -> pa.Table:
    """Read some columns of all rows of a config, shard after shard; OutputError if one cannot be read."""
    tables = []
    for path in _shards(folder, config):
        with _reading(path) as file:
            tables.append(file.read(list(columns)).select(list(columns)))
    return pa.concat_tables(tables)


def find_detections(folder: Path, detections: Iterable[str] = (), names: Iterable[str] = ()) -> list[str]:
    """Return the rows that were asked for, each once: those of `detections`, then all of each source of `names`.

    Parameters
    ----------
    detections : iterable of str
        As in column ``detection_id``; without the cycle it stands for both cycles of an interleaved observation.
    names : iterable of str
        As in column ``name``, in any case and with any blanks.

    Returns
    -------
    list of str
        Values of ``detection_id``.

    Raises
    ------
    SettingError
        If one is no row, or is no detection at all.
    OutputError
        If a shard cannot be read.
    """
    table = read_scalars(folder, ("detection_id", "name"))
    ids, sources = table["detection_id"], table["name"]
    found: dict[str, None] = {}
    for text in detections:
        detection = DetectionId.parse(text)
        cycles = [detection] if detection.cycle else [detection, *(detection.with_cycle(c) for c in ("e1", "e2"))]
        rows = [row for row in map(str, cycles) if pc.index(ids, row).as_py() >= 0]
        if not rows:
            raise SettingError(f"{folder} has no row {detection}: see rejections.parquet, or the column detection_id")
        found.update(dict.fromkeys(rows))
    for name in names:
        rows = ids.filter(pc.equal(sources, designation(name) or name.strip())).to_pylist()
        if not rows:
            raise SettingError(f"{folder} has no source {name.strip()!r}; {_hint(folder, name)}")
        found.update(dict.fromkeys(rows))
    return list(found)


def _hint(folder: Path, name: str) -> str:
    """Name the source that may be meant by an unknown name."""
    from astropy.coordinates import SkyCoord, jparser

    table = read_scalars(folder, ("name", "ra", "dec"))
    table = table.filter(table["name"].is_valid())
    if not len(table):
        return "its sources have no names: use --detection"
    example = table["name"][0].as_py()
    wanted = "".join(name.casefold().split())
    similar = [text for text in pc.unique(table["name"]).to_pylist() if wanted in "".join(text.casefold().split())]
    if wanted and similar:
        return f"did you mean {similar[0]!r}{f', or one of {len(similar) - 1:,} more' if len(similar) > 1 else ''}?"
    try:
        position = jparser.to_skycoord(name.upper())
        table = table.drop_null()  # a catalog file may give no positions
        separations = position.separation(SkyCoord(table["ra"], table["dec"], unit="deg"))
        nearest = int(np.argmin(separations))
    except ValueError:  # the name tells no position, or there is none to compare it with
        return f"its names look like {example!r}"
    away = separations[nearest]
    angle = f"{away.arcsec:.3g} arcsec" if away.deg < 0.1 else f"{away.deg:.3g} deg"
    return f"the source nearest to this position is {table['name'][nearest].as_py()!r}, {angle} away"


def read_rows(
    folder: Path, detections: Sequence[str], columns: Sequence[str] | None = None, config: str = "spectra"
) -> list[dict[str, Any]]:
    """Read the rows of these detections, one row group in memory at a time.

    Parameters
    ----------
    detections : sequence of str
        Values of ``detection_id`` that the config has.
    columns : sequence of str, optional
        All by default.
    config : {'spectra', 'counts'}

    Returns
    -------
    list of dict
        In the order of `detections`; lists are numpy arrays.

    Raises
    ------
    OutputError
        If a shard cannot be read, or has not a row of another config.
    """
    wanted = pa.array(detections, pa.string())
    found: dict[str, dict[str, Any]] = {}
    for path in _shards(folder, config):
        with _reading(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, ["detection_id"])["detection_id"]
                chosen = pc.indices_nonzero(pc.is_in(ids, wanted))
                if len(chosen):
                    table = file.read_row_group(group, columns and list(columns)).take(chosen)
                    table = table.select(list(columns)) if columns else table
                    found.update(zip(ids.take(chosen).to_pylist(), examples(table), strict=True))
        if len(found) == len(set(detections)):
            break
    if lost := [detection for detection in detections if detection not in found]:
        raise OutputError(f"{folder / DATA_FILES[config]} has no row {lost[0]}: check the folder with verify")
    return [found[detection] for detection in detections]
