"""A mirror made of files that are here already: loose product files, or tars of them."""

from __future__ import annotations

import contextlib
import gzip
import logging
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.archive.catalog import from_rows
from builder.archive.mirror import Mirror, open_mirror
from builder.archive.packages import PACKAGE_SIZE, plan
from builder.archive.products import KINDS, MAX_MEMBER_BYTES, Member, ProductName, members
from builder.archive.values import tidy
from builder.dataset.catalog_file import read_catalog
from builder.files import reported
from builder.model.column import Column
from builder.model.errors import ArchiveError, ProductError, SettingError, StoreError
from builder.model.ids import DetectionId
from builder.model.own import own_columns
from builder.model.text import Progress, silent
from builder.reduce.headers import header_row
from builder.reduce.ogip import inflate

logger = logging.getLogger(__name__)

_TARS = (".tar", ".tar.gz", ".tgz")

Found = dict[tuple[DetectionId, str], tuple[int, Member]]
"""Product files by detection, of one cycle where it has two, and kind, with their version."""


@dataclass(slots=True)
class Indexed:
    """What became of the files of a folder.

    Attributes
    ----------
    detections : int
        Detections of the mirror's catalog that the folder has files of.
    held : int
        Of them, those whose files the mirror had before.
    files : int
        Their product files.
    listed : int
        Detections whose row is that of the catalog file.
    lacking : dict of str to int
        Detections without a file of each kind.
    damaged : list of str
        Files that are not whole, with the cause.
    copies : int
        Product files of which there is a later version, or another copy.
    hrc : int
        Product files of HRC, which are left out.
    others : int
        Files that are no products.
    """

    detections: int = 0
    held: int = 0
    files: int = 0
    listed: int = 0
    lacking: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    damaged: list[str] = field(default_factory=list)
    copies: int = 0
    hrc: int = 0
    others: int = 0


def index(folder: Path, mirror: Path, catalog: Path | None = None, progress: Progress = silent) -> Indexed:
    """Make a mirror of the product files in a folder and the folders in it.

    They are copied, as they are, damaged ones too, which `prepare` will reject. Of two files with the same place the
    later version is taken.

    Parameters
    ----------
    folder : Path
        Holds files named as the archive names them, gzipped or not, or tars of such files, gzipped or not.
    mirror : Path
        Made if it is not there; one that is there is added to, and detections that it has are not copied again.
    catalog : Path, optional
        A catalog file with rows of the detections; what it does not say is filled in from the headers.

    Raises
    ------
    SettingError
        If there is no such folder, it is the mirror itself, or it has no product files.
    CatalogError
        If the catalog file cannot be read.
    StoreError
        If the mirror cannot be written; the same call goes on from there.
    """
    if not folder.is_dir():
        raise SettingError(f"{folder}: no such folder")
    if folder.resolve() == mirror.resolve():
        raise SettingError(f"{mirror} is the folder itself: give another one for the mirror")
    listed, own = _listed(catalog) if catalog else ({}, ())
    done = Indexed()
    with tempfile.TemporaryDirectory(prefix="chandra_spectra_") as work:
        found = _find(folder, mirror, Path(work), done)
        groups: dict[DetectionId, list[tuple[DetectionId, str]]] = {}
        for key in sorted(found, key=lambda key: (key[0], KINDS.index(key[1]))):
            groups.setdefault(key[0].catalog, []).append(key)
        if not groups:
            raise SettingError(
                f"{folder} has no product files of ACIS, such as acisf04938_000N002_r0043_pha3.fits.gz, among its "
                f"{done.hrc + done.others:,} files"
            )
        with open_mirror(mirror) as target:
            _fill(target, groups, found, listed, own, done, progress)
    return done


def _fill(
    mirror: Mirror,
    groups: dict[DetectionId, list[tuple[DetectionId, str]]],
    found: Found,
    listed: dict[DetectionId, dict[str, Any]],
    own: tuple[Column, ...],
    done: Indexed,
    progress: Progress,
) -> None:
    """Copy files into the mirror, and write its catalog when they are there."""
    rows: list[dict[str, Any]] = []
    done.detections = len(groups)
    fresh = [detection for detection in groups if not mirror.holds(detection)]
    done.held = len(groups) - len(fresh)
    for start in range(0, len(fresh), PACKAGE_SIZE):
        package = fresh[start : start + PACKAGE_SIZE]
        mirror.keep(package, (found[key][1] for detection in package for key in groups[detection]))
        progress("copy", start + len(package), len(fresh))
    for number, (detection, keys) in enumerate(groups.items(), 1):
        done.files += len(keys)
        for kind in {*KINDS} - {kind for _, kind in keys}:
            done.lacking[kind] += 1
        row = _row(detection, [found[key][1] for key in keys], done)
        if known := listed.get(detection):
            done.listed += 1
            row |= {name: value for name, value in known.items() if value is not None}
        rows.append(row)
        progress("read", number, len(groups))
    planned = plan(from_rows(rows, own))
    for rejection in planned.rejections:
        logger.warning("%s: %s", rejection.detection, rejection.message)
    mirror.write_catalog(planned)


def _row(detection: DetectionId, files: list[Member], done: Indexed) -> dict[str, Any]:
    """Make a catalog row of the first PHA file that can be read, and look into each file once."""
    row = None
    for file in files:
        try:
            if (name := ProductName.parse(file.name)) and name.kind == "pha" and row is None:
                row = header_row(detection, file)
            else:
                inflate(file)
        except ProductError as error:
            done.damaged.append(str(error))
    return row or header_row(detection)


def _listed(path: Path) -> tuple[dict[DetectionId, dict[str, Any]], tuple[Column, ...]]:
    """Read the rows of a catalog file by detection, the first of several, as `plan` orders them; and own columns."""
    catalog, _ = tidy(read_catalog(path))
    rows = plan(catalog).catalog.to_pylist()
    return {detection: row for row in rows if (detection := DetectionId.of(row))}, own_columns(catalog.schema)


def _find(folder: Path, mirror: Path, work: Path, done: Indexed) -> Found:
    """List the product files of a folder; each place once."""
    found: Found = {}
    with reported(StoreError, f"cannot read {folder}"):
        for member in _files(folder, mirror, work, done):
            name = ProductName.parse(member.name)
            if name is None:
                done.others += 1
            elif name.instrument != "acis":
                done.hrc += 1
            elif member.size > MAX_MEMBER_BYTES:
                done.damaged.append(f"{member.part}: {member.size:,} bytes are more than any product has")
            else:
                key = name.detection, name.kind
                done.copies += key in found
                if key not in found or found[key][0] < name.version:
                    found[key] = name.version, member
    return found


def _files(folder: Path, mirror: Path, work: Path, done: Indexed) -> Iterator[Member]:
    """List the files of a folder and those in its tars; of a tar that is not whole those that are."""
    own = mirror.resolve()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.resolve().is_relative_to(own):
            continue
        if not path.name.endswith(_TARS):
            yield Member(path.name, path, 0, path.stat().st_size)
            continue
        try:
            yield from members(_plain(path, work))
        except ArchiveError as error:
            done.damaged.append(str(error).replace(str(work), str(folder)))


def _plain(path: Path, work: Path) -> Path:
    """Give a tar that is not gzipped; a copy of one that is."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    copy = work / f"{len(list(work.iterdir()))}-{path.name}"
    cut = contextlib.suppress(EOFError, gzip.BadGzipFile, zlib.error)  # the tar's own end will be missing
    with gzip.open(path) as packed, copy.open("wb") as plain, cut:
        shutil.copyfileobj(packed, plain)
    return copy
