"""Rows as OGIP files that Sherpa's `load_pha` and XSPEC open: a PHA file, its background, and the response files.

The counts are the row's, and GROUPING and QUALITY say which channels make up each of its bins, so that leaving out
what is marked bad and subtracting the background gives the row's spectrum. Keywords are those of OGIP 92-007.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from builder.archive.interface import Archive
from builder.archive.packages import PACKAGE_SIZE, Package
from builder.archive.products import KINDS, group_products, members
from builder.dataset.hdf5 import read_rows
from builder.model.columns import COLUMNS
from builder.model.errors import ArchiveError, ProductError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import N_CHANNELS, File, Products
from builder.model.text import Progress
from builder.reduce.ogip import MATRIX_NAMES, content, inflate

_BAD = 5
"""QUALITY of a channel that the user leaves out (OGIP 92-007, section 3.2)."""

# What an analysis may ask for besides the keywords that OGIP 92-007 demands
_KEPT = ("TELESCOP", "INSTRUME", "DETNAM", "GRATING", "OBJECT", "OBS_ID", "OBI_NUM", "REGIONID", "CYCLE", "DATE-OBS",
         "DATE-END", "TIMESYS", "MJDREF", "TSTART", "TSTOP", "ONTIME", "LIVETIME", "RA", "DEC", "RA_PNT", "DEC_PNT",
         "ROLL_PNT", "RADECSYS", "EQUINOX")  # fmt: skip


def write_fits(
    file: h5py.File, folder: Path, progress: Progress, *, detections: tuple[DetectionId, ...], archive: Archive
) -> None:
    """Write ``<stem>_src.pi``, ``<stem>_bkg.pi`` and the ARF and RMF file of each detection, all in one folder.

    Parameters
    ----------
    file : h5py.File
        The canonical file.
    folder : Path
        An empty folder.
    archive : Archive
        Where the files are that the rows were made from.

    Raises
    ------
    SettingError
        If a detection is no row.
    ArchiveError
        If the archive has not the very files that a row was made from.
    """
    known = {number: row for row, number in enumerate(file["object_id"][:].tolist())}
    rows = {detection: known.get(detection.object_id) for detection in detections}
    if strange := [str(detection) for detection, row in rows.items() if row is None]:
        raise SettingError(
            f"{file.filename} has no row {strange[0]}: see rejections.parquet, or the column detection_id"
        )
    asked = list(dict.fromkeys(detection.catalog for detection in detections))
    grids = dict(zip(file["ebounds/ebounds_id"].asstr()[:], file["ebounds/energy_lo"][:], strict=True))
    missing = set(detections)
    for start in range(0, len(asked), PACKAGE_SIZE):
        package = Package(start, tuple(asked[start : start + PACKAGE_SIZE]))
        with archive.fetch(package) as fetched:
            files = (member for part in fetched.parts for member in members(part))
            for products in group_products(package.detections, files):
                if (row := rows.get(products.detection)) is not None:
                    (values,) = read_rows(file, COLUMNS, np.array([row])).to_pylist()
                    _write(folder, products, values, grids[values["ebounds_id"]])
                    missing.discard(products.detection)
                    progress("export", len(detections) - len(missing), len(detections))
    if missing:
        raise ArchiveError(f"the archive has no files of {min(missing)}, of which there is a row")


def _write(folder: Path, products: Products, row: dict[str, Any], energy_lo: NDArray[np.float64]) -> None:
    pha, arf, rmf = (_inflated(products, kind, row) for kind in KINDS)
    stem = pha.name.removesuffix("_pha3.fits")
    with fits.open(io.BytesIO(pha.data)) as hdus:
        headers = {hdu.header.get("HDUCLAS2"): hdu.header for hdu in hdus if content(hdu.header.get) == "SPECTRUM"}
    for name, kind, counts, files in (
        (f"{stem}_src.pi", "TOTAL", row["counts"], (f"{stem}_bkg.pi", arf.name, rmf.name)),
        (f"{stem}_bkg.pi", "BKG", row["background_counts"], ("none", "none", "none")),
    ):
        table = _spectrum(headers[kind], kind, counts, _groups(row, energy_lo), files)
        fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / name)
    (folder / arf.name).write_bytes(arf.data)
    (folder / rmf.name).write_bytes(_with_matrix(rmf.data))


def _with_matrix(rmf: bytes) -> bytes:
    """Name the matrix extension of an RMF file as CAL/GEN/92-002 asks, for readers that go by the name alone.

    The catalog's release 1 names it RSP_MATRIX, later ones MATRIX. Only cards change: no byte of any table does.
    """
    with fits.open(io.BytesIO(rmf)) as hdus:
        (matrix,) = (hdu for hdu in hdus if content(hdu.header.get) == "RSP_MATRIX")
        if matrix.name in MATRIX_NAMES:
            return rmf
        matrix.header["EXTNAME"] = MATRIX_NAMES[0]
        if "HDUNAME" in matrix.header:  # the Chandra X-ray Center's own card for the same
            matrix.header["HDUNAME"] = MATRIX_NAMES[0]
        matrix.add_checksum(when="for the new name")  # by default it says when, and the same rows give the same bytes
        stream = io.BytesIO()
        hdus.writeto(stream, output_verify="ignore")
    return stream.getvalue()


def _inflated(products: Products, kind: str, row: dict[str, Any]) -> File:
    """Return one file of a detection, gunzipped; ArchiveError if it is not the one that the row was made from."""
    file: File | None = getattr(products, kind)
    try:
        data = b"" if file is None else inflate(file)
    except ProductError as error:
        raise ArchiveError(f"the archive's files are not those of the row {products.detection}: {error}") from error
    if file is not None and row[f"{kind}_sha256"] is None:  # the row took its channel energies from another's RMF
        return File(file.name.removesuffix(".gz"), data)
    if hashlib.sha256(data).hexdigest() != row[f"{kind}_sha256"]:
        raise ArchiveError(
            f"the archive's {kind.upper()} file of {products.detection} is not {row[f'{kind}_file']}, "
            "of which the row was made: give the mirror that the folder was prepared from with --archive"
        )
    return File(str(row[f"{kind}_file"]).removesuffix(".gz"), data)


def _groups(row: dict[str, Any], energy_lo: NDArray[np.float64]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return GROUPING and QUALITY of the channels, from the row's bins; the edges of bins are those of channels."""
    begins = np.isin(energy_lo, row["spectrum.ene_low_bin"])
    kept = (energy_lo >= row["spectrum.ene_low_bin"][0]) & (energy_lo < row["spectrum.ene_high_bin"][-1])
    grouping = np.where(begins | ~kept, 1, -1).astype(np.int16)
    return grouping, np.where(kept, 0, _BAD).astype(np.int16)


def _spectrum(
    header: fits.Header,
    kind: str,
    counts: list[int],
    groups: tuple[NDArray[np.int16], NDArray[np.int16]],
    files: tuple[str, str, str],
) -> fits.BinTableHDU:
    columns = [
        fits.Column("CHANNEL", "J", array=np.arange(1, N_CHANNELS + 1)),
        fits.Column("COUNTS", "J", unit="count", array=counts),
        *(fits.Column(name, "I", array=array) for name, array in zip(("GROUPING", "QUALITY"), groups, strict=True)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    backfile, ancrfile, respfile = files
    table.header.update({
        "HDUCLASS": "OGIP", "HDUCLAS1": "SPECTRUM", "HDUCLAS2": kind, "HDUCLAS3": "COUNT", "HDUVERS": "1.2.1",
        "FILTER": "NONE", "CHANTYPE": "PI", "DETCHANS": N_CHANNELS, "TLMIN1": 1, "TLMAX1": N_CHANNELS,
        "EXPOSURE": header["EXPOSURE"], "BACKSCAL": header["BACKSCAL"], "AREASCAL": header.get("AREASCAL", 1.0),
        "CORRSCAL": 0.0, "BACKFILE": backfile, "CORRFILE": "none", "ANCRFILE": ancrfile, "RESPFILE": respfile,
        "POISSERR": True, "SYS_ERR": 0,
        **{keyword: header[keyword] for keyword in _KEPT if keyword in header},
    })  # fmt: skip
    return table
