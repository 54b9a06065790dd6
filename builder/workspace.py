"""The archive and the store that the settings name, and the plan that they come to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.archive.interface import Archive
from builder.archive.matching import Match, counted, match_positions, source_of
from builder.archive.mirror import CATALOG_FILE, INDEX_FILE, MirrorArchive
from builder.archive.packages import Plan, plan
from builder.archive.values import tidy
from builder.files import check_place, file_sha256, open_url
from builder.model.errors import OutputError, SettingError
from builder.model.own import check_asked, own_columns
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CONNECTIONS, EMBEDDED, Settings
from builder.model.text import is_url, several
from builder.store.packages import Store

if TYPE_CHECKING:
    from builder.archive.http import Patience
    from builder.simulator.replay import Replay
    from builder.simulator.services import Holdings

_EXPECTED = 20
"""Detections, from all over the plan, that the archive hears of."""

_NAMED = 5
"""Detections or positions that a warning names."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workspace:
    """An archive, from which packages come, and a store, in which finished ones are kept."""

    archive: Archive
    store: Store


def default_cache() -> Path:
    """Return the folder for store and downloads: ``$CHANDRA_SPECTRA_CACHE``, or one in the user's cache."""
    if chosen := os.environ.get("CHANDRA_SPECTRA_CACHE"):
        if is_url(chosen):
            raise SettingError(f"CHANDRA_SPECTRA_CACHE is the URL {chosen}: name a folder; --store takes a URL")
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chandra_spectra"


def open_workspace(
    settings: Settings,
    cache: Path | None = None,
    connections: int = DEFAULT_CONNECTIONS,
    store: str | None = None,
    patience: Patience | None = None,
) -> Workspace:
    """Open the archive and the store that the settings name.

    Parameters
    ----------
    cache : Path, optional
        Folder for finished packages and for what is downloaded or made.
    connections : int
        Connections at once, of all runs that share `cache`.
    store : str, optional
        Folder or fsspec URL for finished packages, in place of one in the cache.
    patience : Patience, optional
        How long to wait for an archive over HTTP.

    Raises
    ------
    SettingError
        If there is no such archive, or a column cannot be asked for.
    OutputError
        If the cache cannot be used.
    """
    check_asked(settings.columns)
    check_place(store or "")
    check_place(str(cache or ""))
    cache = (cache or default_cache()).absolute()  # paths go to workers, which may be in another folder
    try:
        archive = _open_archive(settings, cache, connections, patience)
    except OSError as error:
        raise OutputError(f"cannot use the cache {cache}: {error.strerror}; choose another with --cache") from error
    # Two archives may hold different files under the same ids.
    identity = hashlib.sha256(archive.identity.encode()).hexdigest()[:16]
    kept = (settings.release, settings.recipe, settings.responses, settings.bins)
    if store and "://" in store:
        open_url(store, SettingError)
        return Workspace(archive, Store(f"{store.rstrip('/')}/{identity}", *kept))
    root = Path(store).expanduser().absolute() if store else cache / "store"
    return Workspace(archive, Store(root / identity, *kept))


def _open_archive(settings: Settings, cache: Path, connections: int, patience: Patience | None) -> Archive:
    if settings.archive == EMBEDDED:
        from builder.simulator.embedded import EMBEDDED_VERSION, make_embedded_mirror

        folder = cache / f"embedded-{EMBEDDED_VERSION}"
        make_embedded_mirror(folder)
        return MirrorArchive(folder, settings.release, nulls=True)
    if settings.archive.startswith(("http://", "https://")):
        from builder.archive.csc import HttpArchive
        from builder.archive.http import Client, Patience

        base = settings.archive.rstrip("/")
        client = Client(base, patience or Patience())
        return HttpArchive(base, settings.release, cache / "downloads", client, connections)
    folder = Path(settings.archive).expanduser().absolute()
    if (folder / CATALOG_FILE).is_file() or (settings.catalog and (folder / INDEX_FILE).is_file()):
        return MirrorArchive(folder, settings.release)
    what = f"the folder holds no {CATALOG_FILE}" if folder.is_dir() else "no such folder"
    raise SettingError(f"archive {settings.archive!r} ({what}): give 'embedded', a mirror folder or an http(s) URL")


def make_plan(workspace: Workspace, settings: Settings) -> Plan:
    """Ask the catalog and divide its rows into packages.

    Raises
    ------
    ArchiveError
        If the catalog cannot be had.
    SettingError
        If no detection passes the cuts.
    """
    if settings.catalog:
        from builder.dataset.catalog_file import read_catalog

        answer, origin = read_catalog(Path(settings.catalog)), None
    else:
        answer, origin = workspace.archive.catalog(settings.selection, settings.columns)
    if origin is not None and origin.missing:
        lacking = ", ".join(origin.missing)
        logger.warning("the catalog at %s does not give %s: null in every row", origin.service, lacking)
    answer, notes = tidy(answer)
    nulls = workspace.archive.nulls or bool(settings.catalog)
    where = settings.catalog or settings.archive
    if own := own_columns(answer.schema):
        logger.warning("%s: columns of its own are kept: %s", where, ", ".join(column.name for column in own))
    for note in notes:
        logger.warning("%s: %s", where, note)
    matches = _matches(answer, settings.selection, where)
    near = {match.source for match in matches if match.source}
    keep = [
        settings.selection.keeps(row, nulls=nulls) and (not matches or source_of(row) in near) for row in _rows(answer)
    ]
    kept = answer.filter(pa.array(keep, pa.bool_()))
    if not len(kept):
        hint = settings.selection.name_hint()
        if settings.from_mirror and not settings.catalog and answer["flux_bb_aper_b"].null_count == len(answer):
            hint = f"its rows have no fluxes, so give {Path(settings.archive) / CATALOG_FILE} as --cat-file, too"
        raise SettingError(f"no detection of {where} passes all cuts: widen them{hint and '; '}{hint}")
    if missing := settings.selection.not_in(kept):
        logger.warning(
            "%s asked for, but unknown to %s or cut away: %s%s",
            f"{len(missing):,}",
            where,
            ", ".join(missing[:_NAMED]),
            ", ..." if len(missing) > _NAMED else "",
        )
    if matches:
        matches = counted(matches, _rows(kept))
        if cut := [match.label for match in matches if match.source and not match.detections]:
            logger.warning("no detection passes all cuts of the source of %s", _list(cut, "position"))
    planned = plan(kept, limit=settings.selection.limit, origin=origin, rmf=settings.rmf)
    planned = replace(planned, matches=matches)
    if settings.labels:
        from builder.dataset.labels import add_labels

        labelled = add_labels(planned.catalog, Path(settings.labels), settings.label_radius)
        for remark in labelled.remarks:
            logger.warning("%s", remark)
        planned = replace(planned, catalog=labelled.catalog, labels=labelled.counts)
    ids = [detection for package in planned.packages for detection in package.detections]
    workspace.archive.expect(ids[:: max(1, len(ids) // _EXPECTED)])
    return planned


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):  # all rows as dicts at once would take gigabytes
        yield from batch.to_pylist()


def _matches(catalog: pa.Table, selection: Selection, where: str) -> tuple[Match, ...]:
    """Match the positions that are asked for, and tell of those without a source; SettingError where none has one."""
    if not selection.positions:
        return ()
    sources = (source for row in _rows(catalog.select(["name", "ra", "dec"])) if (source := source_of(row)))
    matches = tuple(match_positions(selection.positions, selection.radius or 0, sources))
    lone = [match.label for match in matches if match.source is None]
    within = f"{3600 * (selection.radius or 0):g} arcsec"
    if len(lone) == len(matches):
        raise SettingError(f"{where} has no source within {within} of {_list(lone, 'position')}")
    if lone:
        logger.warning("%s has no source within %s of %s", where, within, _list(lone, "position"))
    if more := [match.label for match in matches if match.others]:
        logger.warning("more than one source, of which the nearest is taken, of %s", _list(more, "position"))
    return matches


def _list(names: list[str], what: str) -> str:
    """Count things, and name the first of them."""
    return f"{several(len(names), what)}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"


def describe(settings: Settings) -> dict[str, Any]:
    """Give the settings as the manifest has them, with the checksum of a catalog of this machine as it is now."""
    held = Path(settings.archive).expanduser() / CATALOG_FILE if settings.from_mirror else None
    path = Path(settings.catalog) if settings.catalog else held
    labels = _digest(Path(settings.labels)) if settings.labels else ""
    return settings.as_dict(None if path is None else _digest(path), labels)


def fingerprint(settings: Settings) -> str:
    """Give 16 hexadecimal digits of the settings and of the content of the archive and the catalog that they name.

    What an archive on the net holds is not known before it is asked: there its address is taken.
    """
    content: dict[str, Any] = describe(settings)
    if settings.archive == EMBEDDED:
        from builder.simulator.embedded import EMBEDDED_VERSION

        content["archive"] = f"{EMBEDDED} {EMBEDDED_VERSION}"
    elif settings.from_mirror:  # wherever it lies, and whatever its name is
        content["archive"] = _digest(Path(settings.archive).expanduser() / INDEX_FILE)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    """Give the checksum of a file, empty where it cannot be read: whoever reads it says why."""
    with contextlib.suppress(OSError):
        return file_sha256(path)
    return ""


def holdings(mirror: str, simulated: int | None, seed: int, cache: Path | None) -> Holdings | Replay:
    """Give the content of a local archive server: a number of simulated detections, a mirror or a recording."""
    if simulated is not None:
        from builder.simulator.products import SimulatedArchive

        return SimulatedArchive(simulated, seed)
    from builder.simulator.replay import Replay
    from builder.simulator.services import MirrorHoldings

    if Path(mirror).is_file():
        return Replay(Path(mirror))
    archive = open_workspace(Settings(mirror), cache).archive
    if not isinstance(archive, MirrorArchive):
        raise SettingError(f"{mirror} is no mirror: give 'embedded' or a mirror folder")
    return MirrorHoldings(archive.folder)
