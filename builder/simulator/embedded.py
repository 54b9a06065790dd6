"""The archive that the project carries with it, so that everything can be tried offline.

A mirror folder with two real detections, whose files come inside the installed Sherpa, and 61 simulated ones, made on
the spot and named ``SIM J…``.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from builder.archive.catalog import write_votable
from builder.archive.mirror import CATALOG_FILE, INDEX_FILE, has_tar, read_index
from builder.archive.packages import PACKAGE_SIZE
from builder.archive.products import KINDS, write_tar
from builder.files import file_sha256
from builder.model.errors import ArchiveError, OutputError, ProductError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.reduce.headers import header_row
from builder.simulator.products import SimulatedArchive

EMBEDDED_VERSION = 4
"""Raised whenever the embedded archive would hold something else; part of the name of its cache folder."""

_REAL = {DetectionId(4938, 0, 43): "acisf04938_000N002_r0043", DetectionId(7867, 0, 2): "acisf07867_000N001_r0002"}
_SIMULATED_ROWS = 60
_SEED = 21

Embedded = list[tuple[dict[str, object], list[File]]]


def embedded_rows_and_files() -> Embedded:
    """Return the catalog rows and product files, in the order of (obsid, obi, region_id).

    63 rows with 64 spectra: 2 real, 62 simulated of which two are the cycles of one interleaved observation. Two of
    the simulated are damaged on purpose: one's PHA file is cut short, another has no RMF file.

    Raises
    ------
    ArchiveError
        If the installed Sherpa does not carry the real detections' files.
    """
    real = [_real(detection, stem) for detection, stem in _REAL.items()]
    # Every twelfth source of an archive ten times as long: many fields, and sources that were observed again.
    archive = SimulatedArchive(10 * _SIMULATED_ROWS, seed=_SEED, interleaved=0.0, release=1)
    names = dict.fromkeys(row["name"] for row in archive.rows[::12])
    simulated = [(row, archive.files(_detection(row))) for row in archive.rows if row["name"] in names]
    simulated = simulated[:_SIMULATED_ROWS]
    cut_short, without_rmf = simulated[20][1], simulated[40][1]
    cut_short[0] = replace(cut_short[0], data=cut_short[0].data[: len(cut_short[0].data) // 2])
    del without_rmf[2]
    # Another seed, for another source than the first of those.
    pair = SimulatedArchive(1, seed=_SEED + 1, first_obsid=99000, interleaved=1.0, release=1)
    simulated += [(row, pair.files(_detection(row))) for row in pair.rows]
    return sorted(real + simulated, key=lambda entry: _detection(entry[0]))


def make_embedded_mirror(folder: Path) -> None:
    """Write the embedded archive as a mirror folder: tars, their index ``packages.jsonl``, and ``catalog.vot``.

    The folder appears whole or not at all. One that is there already, or that another process finishes first, is
    left as it is, but for files that it has lost since.

    Raises
    ------
    ArchiveError
        If the installed Sherpa does not carry the real detections' files.
    OutputError
        If something else is at `folder`, or it cannot be written.
    """
    if _whole(folder):
        return
    # Not a tempfile: its folders are closed to other users, and a shared cache is to be readable.
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        (work / "packages").mkdir(parents=True)
        _write(work)
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {path.name for path in work.iterdir()}:
            (folder / "packages").mkdir(exist_ok=True)
            for path in work.rglob("*.*"):  # the same bytes as before, so whoever reads them is not disturbed
                path.replace(folder / path.relative_to(work))
        else:
            work.rename(folder)
    except OSError as error:
        if not _whole(folder):
            raise OutputError(f"{folder}: the embedded archive cannot be written there: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _whole(folder: Path) -> bool:
    try:
        lines = read_index(folder)
    except ArchiveError:
        return False
    return (folder / CATALOG_FILE).is_file() and bool(lines) and all(has_tar(folder, line) for line in lines)


def _write(folder: Path) -> None:
    embedded = embedded_rows_and_files()
    with (folder / INDEX_FILE).open("w") as index:
        for start in range(0, len(embedded), PACKAGE_SIZE):
            entries = embedded[start : start + PACKAGE_SIZE]
            path = folder / "packages" / f"{start // PACKAGE_SIZE:05d}.tar"
            with path.open("wb") as stream:
                write_tar(stream, (file for _, files in entries for file in files))
            line: dict[str, object] = {"file": f"packages/{path.name}", "bytes": path.stat().st_size}
            line |= {"sha256": file_sha256(path), "detections": [str(_detection(row)) for row, _ in entries]}
            index.write(json.dumps(line) + "\n")
    (folder / CATALOG_FILE).write_bytes(write_votable([row for row, _ in embedded]))


def _detection(row: dict[str, object]) -> DetectionId:
    obsid, obi, region_id = (int(str(row[name])) for name in ("obsid", "obi", "region_id"))
    return DetectionId(obsid, obi, region_id)


def _real(detection: DetectionId, stem: str) -> tuple[dict[str, object], list[File]]:
    """Return one of the detections that come with Sherpa: its row holds only what its own files tell."""
    sherpa = importlib.util.find_spec("sherpa")  # importing it would print warnings
    where = Path(str(sherpa.origin)).parent if sherpa else Path("sherpa")
    paths = [where / "astro/datastack/tests/data" / f"{stem}_{kind}3.fits" for kind in KINDS]
    try:
        files = [File(f"{path.name}.gz", gzip.compress(path.read_bytes(), mtime=0)) for path in paths]
        return header_row(detection, files[0]), files
    except (OSError, ProductError) as error:
        raise ArchiveError(f"the installed Sherpa does not carry {stem}: reinstall it from PyPI ({error})") from error
