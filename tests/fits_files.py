"""Tiny FITS files in the catalog's layout, written by astropy, and the two real detections that come with Sherpa."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from hypothesis import HealthCheck, settings
from numpy.typing import ArrayLike

from builder.archive.catalog import write_votable
from builder.model.columns import CATALOG
from builder.model.ids import DetectionId
from builder.model.records import N_CHANNELS, File, ProductFile, Products

DETECTION = DetectionId(123, 1, 7)
CHANNEL = np.arange(1, N_CHANNELS + 1)
E_MIN = np.float32(0.0146) * np.arange(N_CHANNELS, dtype=np.float32)
E_MAX = np.float32(0.0146) * np.arange(1, N_CHANNELS + 1, dtype=np.float32)
KINDS = ("pha", "arf", "rmf")

_SHERPA = importlib.util.find_spec("sherpa")
assert _SHERPA is not None
assert _SHERPA.origin is not None
REAL_FOLDER = Path(_SHERPA.origin).parent / "astro/datastack/tests/data"
REAL = {DetectionId(4938, 0, 43): "acisf04938_000N002_r0043", DetectionId(7867, 0, 2): "acisf07867_000N001_r0002"}


def stable(examples: int) -> settings:
    """Hypothesis settings that give the same examples on every machine, however slow it is."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


def detection(row: Mapping[str, Any]) -> DetectionId:
    """The id of a catalog row."""
    return DetectionId(row["obsid"], row["obi"], row["region_id"])


def stem(detection: DetectionId, version: int = 1) -> str:
    cycle = f"_{detection.cycle}" if detection.cycle else ""
    return f"acisf{detection.obsid:05d}_{detection.obi:03d}N{version:03d}{cycle}_r{detection.region_id:04d}"


def product_name(detection: DetectionId, kind: str, version: int = 1) -> str:
    return f"{stem(detection, version)}_{kind}3.fits"


def real_products(detection: DetectionId) -> Products:
    names = [f"{REAL[detection]}_{kind}3.fits" for kind in KINDS]
    return Products(detection, *(File(name, (REAL_FOLDER / name).read_bytes()) for name in names))


def fits_bytes(*extensions: fits.BinTableHDU) -> bytes:
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(stream)
    return stream.getvalue()


def table(name: str, columns: list[fits.Column], **cards: Any) -> fits.BinTableHDU:
    """A binary table extension; a card of None is left out."""
    hdu = fits.BinTableHDU.from_columns(columns, name=name)
    for keyword, value in cards.items():
        if value is not None:
            hdu.header[keyword] = value
    return hdu


def _ids(detection: DetectionId) -> dict[str, Any]:
    cycle = {"": "P", "e1": "P", "e2": "S"}[detection.cycle]
    return {
        "TELESCOP": "CHANDRA",
        "INSTRUME": "ACIS",
        "FILTER": "NONE",
        "OBS_ID": str(detection.obsid),
        "OBI_NUM": detection.obi,
        "REGIONID": f"{detection.region_id:04d}",
        "CYCLE": cycle,
    }


def spectrum(
    kind: str,
    counts: ArrayLike,
    detection: DetectionId = DETECTION,
    channel: ArrayLike = CHANNEL,
    code: str = "J",
    extra: Sequence[fits.Column] = (),
    **cards: Any,
) -> fits.BinTableHDU:
    """A SPECTRUM extension, with `extra` columns; `kind` is TOTAL or BKG."""
    counts = np.asarray(counts)
    columns = [
        fits.Column("CHANNEL", "J", array=np.asarray(channel)),
        fits.Column("PI", "D", array=np.asarray(channel, dtype=float)),
        fits.Column("COUNTS", code, array=counts),
        fits.Column("COUNT_RATE", "D", array=counts / 1000.0),
        *extra,
    ]
    own = kind == "TOTAL"
    words = {
        "HDUCLASS": "OGIP",
        "HDUCLAS1": "SPECTRUM",
        "HDUCLAS2": kind,
        "HDUCLAS3": "COUNT",
        "HDUCLAS4": "TYPE:I",
        "HDUVERS": "1.2.1",
        "CHANTYPE": "PI",
        "DETCHANS": counts.size,
        "TLMIN1": int(np.min(channel)),
        "TLMAX1": int(np.max(channel)),
        "POISSERR": True,
        "EXPOSURE": 1000.0,
        "BACKSCAL": 1e-4 if own else 1e-3,
        "AREASCAL": 1.0,
        "CORRFILE": "none",
        "CORRSCAL": 0.0,
        "ANCRFILE": product_name(detection, "arf") if own else "none",
        "RESPFILE": product_name(detection, "rmf") if own else "none",
        "BACKFILE": product_name(detection, "pha") if own else "none",
    }
    return table("SPECTRUM", columns, **(_ids(detection) | words | cards))


def gti() -> fits.BinTableHDU:
    return table("GTI", [fits.Column("START", "D", array=[0.0]), fits.Column("STOP", "D", array=[1000.0])])


def pha(
    counts: ArrayLike,
    background: ArrayLike | None,
    detection: DetectionId = DETECTION,
    *,
    source_cards: dict[str, Any] | None = None,
    background_cards: dict[str, Any] | None = None,
    **options: Any,
) -> bytes:
    """A PHA file: SPECTRUM (TOTAL), GTI and, unless it is None, SPECTRUM (BKG)."""
    hdus = [spectrum("TOTAL", counts, detection, **options, **(source_cards or {})), gti()]
    if background is not None:
        hdus.append(spectrum("BKG", background, detection, **options, **(background_cards or {})))
    return fits_bytes(*hdus)


@functools.cache
def _arf(detection: DetectionId, fault: float | None) -> bytes:
    lo = np.arange(1, 9, dtype=np.float32)
    area = np.linspace(100, 600, 8, dtype=np.float32)
    if fault is not None:
        area[3] = fault
    columns = [
        fits.Column("ENERG_LO", "E", array=lo),
        fits.Column("ENERG_HI", "E", array=lo + 1),
        fits.Column("SPECRESP", "E", array=area, unit="cm**2"),
    ]
    words = {"HDUCLASS": "OGIP", "HDUCLAS1": "RESPONSE", "HDUCLAS2": "SPECRESP", "HDUVERS": "1.1.0"}
    return fits_bytes(table("SPECRESP", columns, **(_ids(detection) | words)))


def arf(detection: DetectionId = DETECTION, fault: float | None = None) -> bytes:
    """An ARF of eight energies; `fault` takes the place of the fourth effective area."""
    return _arf(detection, fault)


def rmf(
    detection: DetectionId = DETECTION,
    e_min: ArrayLike = E_MIN,
    e_max: ArrayLike = E_MAX,
    channel: ArrayLike = CHANNEL,
    code: str = "E",
) -> bytes:
    """An RMF of eight energies, each in four channels, and a whole EBOUNDS."""
    lo = np.arange(1, 9, dtype=np.float32)
    columns = [
        fits.Column("ENERG_LO", "E", array=lo),
        fits.Column("ENERG_HI", "E", array=lo + 1),
        fits.Column("N_GRP", "I", array=np.ones(8)),
        fits.Column("F_CHAN", "I", array=68 * np.arange(1, 9)),
        fits.Column("N_CHAN", "I", array=np.full(8, 4)),
        fits.Column("MATRIX", "4E", array=np.full((8, 4), 0.25)),
    ]
    words = {
        "HDUCLASS": "OGIP",
        "HDUCLAS1": "RESPONSE",
        "HDUCLAS2": "RSP_MATRIX",
        "HDUCLAS3": "REDIST",
        "HDUVERS": "1.3.0",
        "CHANTYPE": "PI",
        "DETCHANS": np.size(channel),
        "TLMIN4": 1,
        "TLMAX4": N_CHANNELS,
    }
    matrix = table("MATRIX", columns, **(_ids(detection) | words))
    columns = [
        fits.Column("CHANNEL", "J", array=np.asarray(channel)),
        fits.Column("E_MIN", code, array=np.asarray(e_min), unit="keV"),
        fits.Column("E_MAX", code, array=np.asarray(e_max), unit="keV"),
    ]
    words = {
        "HDUCLASS": "OGIP",
        "HDUCLAS1": "RESPONSE",
        "HDUCLAS2": "EBOUNDS",
        "HDUVERS": "1.3.0",
        "CHANTYPE": "PI",
        "TELESCOP": "CHANDRA",
        "INSTRUME": "ACIS",
        "FILTER": "NONE",
        "DETCHANS": np.size(channel),
        "TLMIN1": int(np.min(channel)),
        "TLMAX1": int(np.max(channel)),
    }
    return fits_bytes(matrix, table("EBOUNDS", columns, **words))


plain_rmf = functools.cache(rmf)
"""`rmf` for one detection and nothing else, kept: writing it takes longer than reducing it."""


def poisson(mean: float, seed: int = 1, edge: float = 0.0) -> np.ndarray:
    """Counts in 1024 channels, falling with energy, none below channel 20."""
    shape = np.where(CHANNEL > 20, edge + np.exp(-CHANNEL / 200.0), 0.0)
    return np.random.default_rng(seed).poisson(mean * shape)


def products(detection: DetectionId = DETECTION, /, **bytes_of: bytes) -> Products:
    """Products of good files but for those given as ``pha=``, ``arf=`` or ``rmf=``."""
    good = {"pha": bytes_of.get("pha") or _plain_pha(detection), "arf": arf(detection), "rmf": plain_rmf(detection)}
    return Products(
        detection, **{kind: File(product_name(detection, kind), data) for kind, data in (good | bytes_of).items()}
    )


def with_file(products: Products, kind: str, file: File | None) -> Products:
    """The products with another file of one kind, or none."""
    change: dict[str, Any] = {kind: file}
    return replace(products, **change)


@functools.cache
def _plain_pha(detection: DetectionId) -> bytes:
    return pha(poisson(5.0, 1), poisson(3.0, 2), detection)


def changed_card(data: bytes, keyword: str, value: str, extension: int) -> bytes:
    """The file with the text after ``KEYWORD =`` replaced, in the header of one extension (0 is the primary one)."""
    with fits.open(io.BytesIO(data)) as hdus:
        start = hdus[extension].fileinfo()["hdrLoc"]
        stop = hdus[extension].fileinfo()["datLoc"]
    for position in range(start, stop, 80):
        if data[position : position + 8] == keyword.encode().ljust(8):
            card = f"{keyword:<8}= {value}".encode().ljust(80)
            assert len(card) == 80
            return data[:position] + card + data[position + 80 :]
    raise AssertionError(f"no card {keyword}")


# --- archives of such files ---


def mirror(folder: Path, files: dict[DetectionId, Sequence[ProductFile | None]]) -> Path:
    """A mirror of one package, whose catalog has no more than a selection needs."""
    (folder / "packages").mkdir(parents=True)
    with tarfile.open(folder / "packages/0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in (file for of in files.values() for file in of if file is not None):
            member = tarfile.TarInfo(f"package/{file.name}")
            member.size = len(file.data)
            tar.addfile(member, io.BytesIO(file.data))
    data = (folder / "packages/0.tar").read_bytes()
    line = {"file": "packages/0.tar", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "packages.jsonl").write_text(
        json.dumps(line | {"detections": [str(detection) for detection in files]}) + "\n"
    )
    rows: list[dict[str, object]] = []
    for number, detection in enumerate(files):
        row: dict[str, object] = {column.name: None for column in CATALOG}
        row |= dict.fromkeys(("src_cnts_aper_b", "flux_significance_b", "flux_bb_aper_b"), 100.0)
        row |= {"obsid": detection.obsid, "obi": detection.obi, "region_id": detection.region_id, "instrument": "ACIS"}
        rows.append(row | {"name": f"SIM {number}", "ra": float(number), "dec": 0.0, "theta": 1.0})
    (folder / "catalog.vot").write_bytes(write_votable(rows))
    return folder


# --- what tests do to whole files ---


def spans(data: bytes) -> list[tuple[int, int, int]]:
    """Where each header begins, where its data begin, and where they end with their padding."""
    with fits.open(io.BytesIO(data)) as hdus:
        found = [hdu.fileinfo() for hdu in hdus]
        return [(info["hdrLoc"], info["datLoc"], info["datLoc"] + info["datSpan"]) for info in found]


def set_cards(data: bytearray, begin: int, end: int, **values: object) -> None:
    """Change cards of one header in place, where they are there; texts are quoted."""
    for position in range(begin, end, 80):
        keyword = bytes(data[position : position + 8]).decode("ascii", "replace").strip()
        if keyword in values and data[position + 8 : position + 10] == b"= ":
            value = values[keyword]
            text = f"'{value:<8}'" if isinstance(value, str) else f"{value:>20}"
            data[position : position + 80] = f"{keyword:<8}= {text}".ljust(80).encode()


def set_sums(data: bytearray, layout: list[tuple[int, int, int]]) -> None:
    """Make the checksums of every extension right, where it has them (FITS Standard 4.0, appendix J)."""
    for begin, middle, end in layout:
        body = int(np.frombuffer(data[middle:end], ">u4").sum(dtype=np.uint64)) % (2**32 - 1)
        set_cards(data, begin, middle, DATASUM=str(body), CHECKSUM="0" * 16)
        head = int(np.frombuffer(data[begin:middle], ">u4").sum(dtype=np.uint64))
        set_cards(data, begin, middle, CHECKSUM=_encoded((2**32 - 1) - (head + body) % (2**32 - 1)))


def _encoded(value: int) -> str:
    """A sum as 16 letters and digits that add up to it when they take the place of as many zeros."""
    columns = []
    for byte in value.to_bytes(4, "big"):
        letters = [byte // 4 + 48 + (byte % 4 if number == 0 else 0) for number in range(4)]
        while any(not chr(letter).isalnum() for letter in letters):
            for one in (0, 2):
                if not all(chr(letter).isalnum() for letter in letters[one : one + 2]):
                    letters[one] += 1
                    letters[one + 1] -= 1
        columns.append(letters)
    text = "".join(chr(columns[byte][letter]) for letter in range(4) for byte in range(4))
    return text[-1] + text[:-1]


def damaged_matrix(*, summed: bool) -> Products:
    """A real detection whose first N_GRP is 32767, with the checksum of before, or one that fits."""
    products = real_products(DetectionId(4938, 0, 43))
    assert products.rmf is not None
    data, layout = bytearray(products.rmf.data), spans(products.rmf.data)
    groups = layout[1][1] + 8
    data[groups : groups + 2] = b"\x7f\xff"
    if summed:
        set_sums(data, layout)
    return with_file(products, "rmf", File(products.rmf.name, bytes(data)))
