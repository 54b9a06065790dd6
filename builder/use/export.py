"""A prepared folder in the layouts of other readers: HDF5 by sky pixel, HATS, and OGIP files of chosen detections.

All are written from the canonical HDF5 file, in which nothing is rounded, and take their place when they are complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from builder.dataset.hdf5 import HDF5Writer, read_rows
from builder.dataset.layout import HDF5_FILE, Manifest, unreadable
from builder.files import file_sha256, recover_folder, staging_folder, workplace
from builder.model.column import Column
from builder.model.columns import columns_when
from builder.model.errors import OutputError, SettingError, require
from builder.model.ids import DetectionId
from builder.model.text import Progress, silent

LAYOUTS = {
    "healpix": "HDF5 files by sky pixel, spectra/healpix=*/001-of-001.hdf5",
    "hats": "sky-partitioned Parquet (HATS), for LSDB",
    "fits": "PHA, ARF and RMF files of chosen detections, for Sherpa and XSPEC",
}
"""The layouts, and what each is."""

EXPORT_FILE = "export.json"
"""Written into every export: what it is and of which data. Only a folder that has it is ever replaced."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Size of an export.

    Attributes
    ----------
    files : int
        Number of files.
    size : int
        Their bytes.
    """

    folder: Path
    files: int
    size: int


def export(
    folder: Path,
    output: Path | None = None,
    *,
    layout: str,
    detections: Sequence[str] = (),
    archive: str = "",
    cache: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a prepared folder in another layout.

    Parameters
    ----------
    folder : Path
        The prepared folder.
    output : Path, optional
        Folder to write, by default that of `folder` with the layout at its end, such as ``chandra_spectra_hats``.
    layout : {'healpix', 'hats', 'fits'}
    detections : sequence of str
        For ``fits``: which detections.
    archive : str
        For ``fits``: where their files are; the archive of the manifest by default.
    cache : Path, optional
        For ``fits``: folder for downloads, `builder.workspace.default_cache` by default.
    force : bool
        Replace an export that is there.

    Raises
    ------
    SettingError
        If the layout or a detection is unknown.
    MissingExtraError
        Without the package that writes the layout.
    OutputError
        If `folder` is not a whole prepared folder, or `output` cannot be written. Nothing is left behind.
    ArchiveError
        For ``fits``: if the archive has not the files that the rows were made from.
    """
    folder = Path(folder).resolve()
    manifest = Manifest.read(folder)
    write = _writer(layout, folder, manifest, tuple(detections), archive, cache)
    output = Path(output or folder.with_name(f"{folder.name}_{layout}")).resolve()
    if output.is_relative_to(folder) or folder.is_relative_to(output):
        raise OutputError(f"{output} and the prepared folder {folder} lie in each other: give another name")
    if not manifest.counts.rows:
        raise OutputError(f"{folder} has no rows to export: see rejections.parquet")
    recover_folder(output)
    _check_free(output, force)
    source = _whole_hdf5(folder, manifest)
    with workplace(output) as place, staging_folder(output, place) as staging:
        with h5py.File(source) as file:
            if layout != "fits" and (lost := np.flatnonzero(file["healpix"][:] < 0)).size:
                raise OutputError(f"row {lost[0]} of {source} has no position on the sky: {layout} has no place for it")
            write(file, staging, progress)
        made = {"dataset": "chandra_spectra", "layout": layout, "source": manifest.digest}
        (staging / EXPORT_FILE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
    return Exported(output, len(sizes), sum(sizes))


def _writer(
    layout: str, folder: Path, manifest: Manifest, detections: tuple[str, ...], archive: str, cache: Path | None
) -> Callable[[h5py.File, Path, Progress], None]:
    """Return the writer of a layout; anything wrong with the options is found first."""
    if layout not in LAYOUTS:
        raise SettingError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if layout == "fits":
        from builder.use.export_fits import write_fits
        from builder.workspace import open_workspace

        if not detections:
            raise SettingError("say which detections: --detection 4938.0.43, and again for more")
        chosen = tuple(dict.fromkeys(map(DetectionId.parse, detections)))
        settings = replace(manifest.read_settings(folder), archive=manifest.archive(archive))
        return partial(write_fits, detections=chosen, archive=open_workspace(settings, cache).archive)
    if detections or archive:
        raise SettingError(f"--detection and --archive are for --layout fits; {layout} takes all rows")
    if layout == "healpix":
        return partial(write_healpix, own=manifest.own)
    require("hats", "hats", "--layout hats")
    from builder.use.export_hats import write_hats

    return partial(write_hats, own=manifest.own)


def _check_free(output: Path, force: bool) -> None:
    """Refuse a place where something is, unless it is an export that may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / EXPORT_FILE).is_file():
        raise OutputError(f"{output} holds something else than an export: choose another name")
    if not force:
        raise OutputError(f"{output} is there: choose another name, or --force to replace it")


def _whole_hdf5(folder: Path, manifest: Manifest) -> Path:
    path, entry = folder / HDF5_FILE, manifest.file(HDF5_FILE)
    try:
        found = file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if entry is None or found != entry.sha256:
        raise OutputError(f"{path} is not what the manifest says: prepare the folder again with --force")
    return path


def write_healpix(
    file: h5py.File, folder: Path, progress: Progress, own: tuple[Column, ...] = (), slice_rows: int = 500
) -> None:
    """Write the rows of each sky pixel (nside 16, nested) as ``spectra/healpix=<pixel>/001-of-001.hdf5``.

    Each file is laid out as the canonical one and carries its attributes, but has no group ``ebounds``: readers take
    whatever a file holds for a column. Rows keep their order, pixels are written one after the other.

    Parameters
    ----------
    file : h5py.File
        The canonical file.
    folder : Path
        An empty folder.
    own : tuple of Column
        Columns besides those of every dataset.
    slice_rows : int
        Rows in hand at once; 500 are about 20 MB.
    """
    columns = (*columns_when(json.loads(file.attrs["recipe"])["subtract"]), *own)
    pixels = file["healpix"][:]
    order = np.argsort(pixels, kind="stable")
    done = 0
    for rows in np.split(order, np.flatnonzero(np.diff(pixels[order])) + 1):
        path = folder / "spectra" / f"healpix={pixels[rows[0]]}" / "001-of-001.hdf5"
        path.parent.mkdir(parents=True)
        with HDF5Writer(path, dict(file.attrs), columns, chunk=len(rows)) as writer:
            for start in range(0, len(rows), slice_rows):
                writer.append(read_rows(file, columns, rows[start : start + slice_rows]))
        done += len(rows)
        progress("export", done, len(pixels))
