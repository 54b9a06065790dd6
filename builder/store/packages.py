"""The store of finished packages: one durable file each, never half written, never made twice.

A file is a line of text (what it is, and the SHA-256 of the rest) followed by four Arrow IPC streams: the spectra, the
rejections, the channel energy grids and the responses of the package, the last empty where they are not kept. Catalog
values are not in it: they are joined when the data are assembled, so that a package stays good when they change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder.archive.packages import Package
from builder.files import open_url, reported
from builder.model.columns import COLUMNS, EBOUNDS, RESPONSES, arrow_schema
from builder.model.errors import StoreError
from builder.model.ids import DetectionId
from builder.model.records import Rejection, Response, Spectrum
from builder.model.settings import Recipe

__all__ = ["PackageResult", "RemoteStore", "Store", "package_result"]

_FORMAT = 3
"""Of a package's file: part of its name, so that a file of another format is missing, not damaged."""
_MAGIC = f"chandra-spectra package {_FORMAT} ".encode()
_DERIVED = ("detection_id", "healpix", "split")
_MEASURED = tuple(column for column in COLUMNS if not column.query and column.name not in _DERIVED)
SPECTRA_SCHEMA = arrow_schema(_MEASURED).insert(0, pa.field("row", pa.int32()))
"""Measured columns, and ``row``: the detection's place in its package."""
REJECTIONS_SCHEMA = pa.schema([(name, pa.string()) for name in ("detection_id", "stage", "reason", "message", "url")])
EBOUNDS_SCHEMA = arrow_schema(EBOUNDS)
RESPONSES_SCHEMA = arrow_schema(RESPONSES)


@dataclass(frozen=True, slots=True)
class PackageResult:
    """What came of one package, as tables.

    `SPECTRA_SCHEMA`, `REJECTIONS_SCHEMA`, `EBOUNDS_SCHEMA` and, empty where they are not kept, `RESPONSES_SCHEMA`.
    """

    spectra: pa.Table
    rejections: pa.Table
    ebounds: pa.Table
    responses: pa.Table


def rejections_table(rejections: Iterable[Rejection]) -> pa.Table:
    """Rejections as a table."""
    rows = [
        {"detection_id": str(r.detection), "stage": r.stage, "reason": r.reason, "message": r.message, "url": r.url}
        for r in rejections
    ]
    return pa.Table.from_pylist(rows, schema=REJECTIONS_SCHEMA)


def package_result(detections: tuple[DetectionId, ...], outcomes: Iterable[Spectrum | Rejection]) -> PackageResult:
    """Turn the records of one package into tables.

    Parameters
    ----------
    detections : tuple of DetectionId
        The package's catalog rows.
    outcomes : iterable of Spectrum or Rejection
        One or more for each.
    """
    rows = {detection: row for row, detection in enumerate(detections)}
    spectra: list[Spectrum] = []
    rejections: list[Rejection] = []
    for outcome in outcomes:
        if isinstance(outcome, Spectrum):
            spectra.append(outcome)
        else:
            rejections.append(outcome)
    grids = {s.ebounds_id: (s.ebounds_lo, s.ebounds_hi) for s in spectra}
    values: dict[str, list[object]] = {name: [] for name in SPECTRA_SCHEMA.names}
    for s in spectra:
        row = (
            rows[s.detection.catalog],
            s.detection.object_id,
            s.detection.cycle,
            s.detnam,
            s.grating,
            s.exposure,
            s.background_scale,
            s.source_counts,
            s.background_counts_total,
            s.n_bins,
            *s.files,
            *s.sha256,
            s.energy,
            s.energy_lo,
            s.energy_hi,
            s.rate,
            s.rate_error,
            s.counts,
            s.background_counts,
            s.arf_energy_lo,
            s.arf_energy_hi,
            s.specresp,
            s.ebounds_id,
        )
        for column, value in zip(values.values(), row, strict=True):
            column.append(value)
    ebounds = {
        "ebounds_id": list(grids),
        "energy_lo": [lo for lo, _ in grids.values()],
        "energy_hi": [hi for _, hi in grids.values()],
    }
    return PackageResult(
        pa.Table.from_pydict(values, schema=SPECTRA_SCHEMA),
        rejections_table(rejections),
        pa.Table.from_pydict(ebounds, schema=EBOUNDS_SCHEMA),
        _responses(spectra),
    )


def _responses(spectra: list[Spectrum]) -> pa.Table:
    """The distinct responses of a package."""
    distinct = {s.sha256[2]: (s.ebounds_id, s.response) for s in spectra if s.response}
    rows = [
        (key, grid, *(getattr(response, name) for name in Response.__slots__))
        for key, (grid, response) in distinct.items()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(RESPONSES_SCHEMA)
    return pa.Table.from_pydict(dict(zip(RESPONSES_SCHEMA.names, columns, strict=True)), schema=RESPONSES_SCHEMA)


class _Named:
    """What the files of packages are called, in any store."""

    __slots__ = ()
    release: str
    recipe: Recipe
    responses: bool

    def _folder(self) -> str:
        """Where packages are kept that were made so, below the root of their store."""
        return f"{self.release}/{self.recipe.key}{'-responses' if self.responses else ''}-{_FORMAT}"

    def _file(self, package: Package) -> str:
        return f"{package.key(self.release, self.recipe)}.arrows"

    def _files(self) -> set[str]:
        """Names of the files that are there."""
        raise NotImplementedError

    def finished(self, packages: Iterable[Package]) -> frozenset[Package]:
        """Those of the packages that are there; by one listing, as file systems may be slow to look for each.

        Raises
        ------
        StoreError
            If the store cannot be listed.
        """
        names = self._files()
        return frozenset(package for package in packages if self._file(package) in names)


@dataclass(frozen=True, slots=True)
class Store(_Named):
    """Finished packages of one release and recipe, in a local folder.

    Attributes
    ----------
    root : Path
        Folder of all stores.
    release : str
    recipe : Recipe
    responses : bool
        Keep the response matrices, too.
    """

    root: Path
    release: str
    recipe: Recipe
    responses: bool = False

    def path(self, package: Package) -> Path:
        """Where the package's file is or will be."""
        return self.root / self._folder() / self._file(package)

    def __contains__(self, package: Package) -> bool:
        return self.path(package).exists()

    def _files(self) -> set[str]:
        folder = self.root / self._folder()
        try:
            return {path.name for path in folder.iterdir()}
        except FileNotFoundError:  # there is none yet
            return set()
        except OSError as error:
            raise StoreError(f"cannot read the store {folder}: {error.strerror}") from error

    def write(self, package: Package, result: PackageResult) -> None:
        """Keep a finished package: written in a folder beside, flushed, then renamed.

        What a killed run left of the same package is removed. Two runs that make it at once do no harm: they write
        the same.

        Raises
        ------
        StoreError
            If the file system refuses.
        """
        path = self.path(package)
        # A folder of their own: among all the finished files the left ones would be costly to find.
        partial = path.parent / "partial" / f"{path.name}.{uuid.uuid4().hex}.partial"
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(_pack(result))
                file.flush()
                os.fsync(file.fileno())
            try:
                partial.replace(path)
            except FileNotFoundError:
                if not path.exists():  # else another run was first, and has removed this one's
                    raise
            for left in partial.parent.glob(f"{path.name}.*.partial"):
                left.unlink(missing_ok=True)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StoreError(f"cannot write {path}: {error.strerror or error}; finished packages are kept") from error

    def read(self, package: Package) -> PackageResult:
        """Read a finished package.

        Raises
        ------
        StoreError
            If it is not there, or is not what was written.
        """
        path = self.path(package)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        return _unpack(content, str(path))


@dataclass(frozen=True, slots=True)
class RemoteStore(_Named):
    """The same on any file system of fsspec, such as an object store; an object is there whole or not at all.

    Attributes
    ----------
    url : str
        Such as ``s3://bucket/store``.
    release : str
    recipe : Recipe
    responses : bool
    """

    url: str
    release: str
    recipe: Recipe
    responses: bool = False

    def _open(self) -> tuple[Any, str]:
        fs, root = open_url(self.url, StoreError)
        return fs, f"{root}/{self._folder()}"

    def _place(self, package: Package) -> tuple[Any, str]:
        fs, folder = self._open()
        return fs, f"{folder}/{self._file(package)}"

    def __contains__(self, package: Package) -> bool:
        fs, path = self._place(package)
        with reported(StoreError, f"cannot read {path} in {self.url}"):
            fs.invalidate_cache()  # another process may have written since this one looked
            return bool(fs.exists(path))

    def _files(self) -> set[str]:
        fs, folder = self._open()
        with reported(StoreError, f"cannot read {folder} in {self.url}"):
            fs.invalidate_cache()
            return {path.rpartition("/")[2] for path in fs.find(folder)}

    def write(self, package: Package, result: PackageResult) -> None:
        """See `Store.write`."""
        fs, path = self._place(package)
        with reported(StoreError, f"cannot write {path} in {self.url}", "; finished packages are kept"):
            content = _pack(result)
            try:
                fs.pipe_file(path, content)
            except Exception:  # file systems tell in many ways that a folder is missing
                bucket = path.partition("/")[0]
                if bucket and not fs.exists(bucket):  # none is made: it may be a slip
                    raise
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                fs.pipe_file(path, content)

    def read(self, package: Package) -> PackageResult:
        """See `Store.read`."""
        fs, path = self._place(package)
        with reported(StoreError, f"cannot read {path} in {self.url}"):
            content = fs.cat_file(path, start=0)  # with a range s3fs does not ask for the size before
        return _unpack(content, path)


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
