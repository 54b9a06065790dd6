"""The store of finished packages: one durable file each, never half written, never made twice.

A file is a line of text (what it is, and the SHA-256 of the rest) followed by four Arrow IPC streams: the spectra, the
rejections, the channel energy grids and the responses of the package, the last empty where they are not kept. Catalog
values are not in it: they are joined when the data are assembled, so that a package stays good when they change.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.archive.packages import Package
from builder.files import Folder
from builder.model.columns import COLUMNS, EBOUNDS, RESPONSES, SEVERAL_SOURCES, compact_columns
from builder.model.errors import StoreError
from builder.model.ids import DetectionId
from builder.model.records import Rejection, Response, Spectrum
from builder.model.schema import arrow_schema
from builder.model.settings import Recipe

_FORMAT = 6
"""Of a package's file: part of its name, so that a file of another format is missing, not damaged."""
_MAGIC = f"chandra-spectra package {_FORMAT} ".encode()
_DERIVED = ("detection_id", "healpix", "split", SEVERAL_SOURCES)
_MEASURED = tuple(column for column in COLUMNS if not column.query and column.name not in _DERIVED)
SPECTRA_SCHEMA = arrow_schema(_MEASURED).insert(0, pa.field("row", pa.int32()))
"""Measured columns, and ``row``: the detection's place in its package."""
REJECTIONS_SCHEMA = pa.schema([(name, pa.string()) for name in ("detection_id", "stage", "reason", "message", "url")])
EBOUNDS_SCHEMA = arrow_schema(EBOUNDS)
RESPONSES_SCHEMA = arrow_schema(RESPONSES)


@dataclass(frozen=True, slots=True)
class PackageResult:
    """Outcomes of one package, as tables.

    `SPECTRA_SCHEMA`, with the columns of compact responses where they are kept, `REJECTIONS_SCHEMA`, `EBOUNDS_SCHEMA`
    and, empty where they are not kept, `RESPONSES_SCHEMA`.
    """

    spectra: pa.Table
    rejections: pa.Table
    ebounds: pa.Table
    responses: pa.Table


def rejections_table(rejections: Iterable[Rejection]) -> pa.Table:
    """Return rejections as a table."""
    rows = [
        {"detection_id": str(r.detection), "stage": r.stage, "reason": r.reason, "message": r.message, "url": r.url}
        for r in rejections
    ]
    return pa.Table.from_pylist(rows, schema=REJECTIONS_SCHEMA)


def package_result(
    detections: tuple[DetectionId, ...], outcomes: Iterable[Spectrum | Rejection], bins: int = 0
) -> PackageResult:
    """Turn the records of one package into tables.

    Parameters
    ----------
    detections : tuple of DetectionId
        The package's catalog rows.
    outcomes : iterable of Spectrum or Rejection
        One or more for each.
    bins : int
        Bins of their compact responses, 0 where they have none.
    """
    places = {detection: place for place, detection in enumerate(detections)}
    spectra: list[Spectrum] = []
    rejections: list[Rejection] = []
    for outcome in outcomes:
        if isinstance(outcome, Spectrum):
            spectra.append(outcome)
        else:
            rejections.append(outcome)
    rows = [
        {"row": places[s.detection.catalog], **{c.name: c.of(s) for c in _MEASURED}, **_compact(s)} for s in spectra
    ]
    schema = SPECTRA_SCHEMA
    if bins:
        schema = pa.schema([*SPECTRA_SCHEMA, *arrow_schema(compact_columns(bins))])
    grids = {s.ebounds_id: (s.ebounds_lo, s.ebounds_hi) for s in spectra}
    responses = {s.sha256.rmf: (s.ebounds_id, s.response) for s in spectra if s.response}
    names = [field.name for field in dataclasses.fields(Response)]
    return PackageResult(
        pa.Table.from_pylist(rows, schema),
        rejections_table(rejections),
        pa.Table.from_pylist(
            [{"ebounds_id": key, "energy_lo": low, "energy_hi": high} for key, (low, high) in grids.items()],
            EBOUNDS_SCHEMA,
        ),
        pa.Table.from_pylist(
            [
                {"rmf_sha256": key, "ebounds_id": grid, "fault": response}
                if isinstance(response, str)
                else {"rmf_sha256": key, "ebounds_id": grid, **{name: getattr(response, name) for name in names}}
                for key, (grid, response) in responses.items()
            ],
            RESPONSES_SCHEMA,
        ),
    )


def _compact(spectrum: Spectrum) -> dict[str, Any]:
    if isinstance(spectrum.compact, np.ndarray):
        return {"response": list(spectrum.compact)}  # pyarrow takes no arrays of two dimensions
    return {"response_fault": spectrum.compact}


@dataclass(frozen=True, slots=True)
class Store:
    """Finished packages of one release and recipe.

    Attributes
    ----------
    root : Path or str
        Folder of all stores, or its URL.
    responses : bool
        Keep the response matrices, too.
    bins : int
        Keep the compact responses for so many bins, too.
    """

    root: Path | str
    release: str
    recipe: Recipe
    responses: bool = False
    bins: int = 0

    @property
    def folder(self) -> Folder:
        """Where the packages are kept that are made so."""
        kept = ("-responses" if self.responses else "") + (f"-bins{self.bins}" if self.bins else "")
        name = f"{self.release}/{self.recipe.key}{kept}-{_FORMAT}"
        place = self.root / name if isinstance(self.root, Path) else f"{self.root}/{name}"
        return Folder(place, StoreError, "; finished packages are kept")

    def name(self, package: Package) -> str:
        """Give the name of the package's file."""
        return f"{package.key(self.release, self.recipe)}.arrows"

    def __contains__(self, package: Package) -> bool:
        return self.name(package) in self.folder

    def finished(self, packages: Iterable[Package]) -> frozenset[Package]:
        """Choose the packages that are there; by one listing, as file systems may be slow to look for each.

        Raises
        ------
        StoreError
            If the store cannot be listed.
        """
        there = self.folder.sizes()
        return frozenset(package for package in packages if self.name(package) in there)

    def write(self, package: Package, result: PackageResult) -> None:
        """Keep a finished package. Two runs that make it at once do no harm: they write the same.

        Raises
        ------
        StoreError
            If the file system refuses.
        """
        self.folder.write(self.name(package), _pack(result))

    def read(self, package: Package) -> PackageResult:
        """Read a finished package.

        Raises
        ------
        StoreError
            If it is not there, or is not what was written.
        """
        folder, name = self.folder, self.name(package)
        return _unpack(folder.read(name), f"{folder.place}/{name}")


def _pack(result: PackageResult) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    for table in (result.spectra, result.rejections, result.ebounds, result.responses):
        with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
            stream.write_table(table)
    payload: bytes = sink.getvalue().to_pybytes()
    return _MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def _unpack(content: bytes, origin: str) -> PackageResult:
    head, _, payload = content.partition(b"\n")
    if head != _MAGIC + hashlib.sha256(payload).hexdigest().encode():
        raise StoreError(f"{origin} is damaged: its checksum is wrong")
    source = pa.BufferReader(payload)
    return PackageResult(*(pa.ipc.open_stream(source).read_all() for _ in range(4)))
