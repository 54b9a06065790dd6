"""Product files: their names, and how the files of a package are matched to detections."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from builder.model.errors import ArchiveError, RefusedError
from builder.model.ids import CYCLES, DetectionId
from builder.model.records import ProductFile, Products

KINDS = ("pha", "arf", "rmf")

MAX_MEMBER_BYTES = 8 * 2**20
"""No product is nearly as large (an RMF is 1.5 MB gzipped, 2 MB if not): more is a broken or hostile answer."""

MAX_DETECTION_BYTES = 2 * MAX_MEMBER_BYTES
"""What the files of a detection may come to: 1.5 MB in each of two cycles are known."""

_MAX_HEADER_BYTES = 2 * 2**20
"""Of a whole tar, with all long names: a package of 300 files, each in a folder, has 1.2 MB of them at most."""

# {instrument}f{obsid}_{obi}N{version}[_{cycle}]_r{region_id}_{kind}3.fits[.gz], CSC file naming convention
_NAME = re.compile(
    r"(?P<instrument>[a-z]{1,8})f(?P<obsid>\d{5,6})_(?P<obi>\d{3})N(?P<version>\d{3})"
    r"(?:_(?P<cycle>e[12]))?_r(?P<region_id>\d{4})_(?P<kind>pha|arf|rmf)3\.fits(?:\.gz)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ProductName:
    """Parts of the name of a product file.

    Attributes
    ----------
    kind : {'pha', 'arf', 'rmf'}
    instrument : str
        ``acis`` or ``hrc``.
    version : int
        The ``N…`` part; it may differ between the three files of one detection.
    """

    detection: DetectionId
    kind: str
    instrument: str
    version: int

    @classmethod
    def parse(cls, name: str) -> ProductName | None:
        """Read a file name, folders ignored; None if it is not that of a spectral product."""
        match = _NAME.fullmatch(name.replace("\\", "/").rpartition("/")[2])
        if match is None:
            return None
        detection = DetectionId(int(match["obsid"]), int(match["obi"]), int(match["region_id"]), match["cycle"] or "")
        return cls(detection, match["kind"], match["instrument"], int(match["version"]))


@dataclass(frozen=True, slots=True)
class Member:
    """A file in one part of a package, read when its bytes are asked for.

    Attributes
    ----------
    name : str
        Without folders.
    part : Path
        The tar, or the file itself.
    offset, size : int
        Where in the part its bytes lie.
    """

    name: str
    part: Path
    offset: int
    size: int

    @property
    def data(self) -> bytes:
        """Read its bytes; ArchiveError if the part has no longer all of them."""
        try:
            with self.part.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ArchiveError(f"cannot read {self.part}: {error.strerror}") from error
        if len(data) != self.size:
            raise ArchiveError(f"{self.part} is cut short in member {self.name!r}")
        return data


class _Frugal:
    """A file that gives out no more than a tar's headers can be: tarfile reads each whole, whatever size it claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, _MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"its headers are more than {_MAX_HEADER_BYTES} bytes, or one has no size")
        self._left -= size
        return self._file.read(size)


def headers(part: Path) -> Iterator[tarfile.TarInfo]:
    """Read the headers of the plain files in a tar, and no file; links, folders and sparse files are passed over.

    Nothing in the tar makes this go on for ever or take more memory than its few headers need.

    Raises
    ------
    ArchiveError
        If the tar is damaged, or its headers are larger than those of any package.
    RefusedError
        If a member is larger than `MAX_MEMBER_BYTES`.
    """
    try:
        with part.open("rb") as file, tarfile.open(fileobj=cast(BinaryIO, _Frugal(file)), mode="r:") as tar:
            length = part.stat().st_size
            for member in tar:
                if not member.isfile() or member.issparse():
                    continue
                if not 0 <= member.size <= MAX_MEMBER_BYTES:
                    raise RefusedError(f"{part}: member {member.name[:200]!r} claims {member.size} bytes")
                if member.offset_data + member.size > length:
                    raise ArchiveError(f"{part} is cut short in member {member.name[:200]!r}")
                yield member
            # tarfile takes the end of the file, and a header that is cut or damaged, for the end of the archive.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise ArchiveError(f"{part} is not a whole tar file: it ends without an end-of-archive mark")
    except ArchiveError:
        raise
    except Exception as error:  # of a damaged header tarfile raises ValueError, OverflowError, RecursionError and more
        raise ArchiveError(f"{part} is not a whole tar file: {error}") from error


def members(part: Path) -> Iterator[Member]:
    """List the files in one part of a package: a tar, or a single product file.

    Member names are only ever read, never used as paths; links, folders and sparse files are passed over.

    Raises
    ------
    ArchiveError
        See `headers`.
    """
    if ProductName.parse(part.name) is not None:
        yield Member(part.name, part, 0, part.stat().st_size)
        return
    for header in headers(part):
        yield Member(header.name.rpartition("/")[2], part, header.offset_data, header.size)


def write_tar(stream: IO[bytes], files: Iterable[ProductFile], form: int = tarfile.USTAR_FORMAT) -> None:
    """Write files as one tar, one folder deep as the archive has them, and without times or owners."""
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for file in files:
            member, data = tarfile.TarInfo(f"package/{file.name}"), file.data
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def group_products(detections: Iterable[DetectionId], files: Iterable[ProductFile]) -> list[Products]:
    """Match files to the detections that were asked for.

    Files of other detections are passed over. Where two files claim the same place the later version wins, and of one
    version the later file, which was asked for again. A
    detection of an interleaved observation gives one `Products` for each cycle, with the ARF and RMF file of no cycle
    where the cycle has none of its own; one without any file gives one with none.

    Returns
    -------
    list of Products
        In the order of `detections`, cycles in the order none, e1, e2.
    """
    wanted = {detection.catalog: None for detection in detections}
    found: dict[DetectionId, dict[str, tuple[int, ProductFile]]] = {}
    for file in files:
        name = ProductName.parse(file.name)
        if name is None or name.detection.catalog not in wanted:
            continue
        kinds = found.setdefault(name.detection, {})
        if name.kind not in kinds or kinds[name.kind][0] <= name.version:
            kinds[name.kind] = (name.version, file)
    grouped: list[Products] = []
    for detection in wanted:
        shared = found.get(detection, {})
        responses = {kind: file for kind, file in shared.items() if kind != "pha"}
        cycles = [key for cycle in CYCLES[1:] if (key := detection.with_cycle(cycle)) in found]
        for key in cycles if cycles and "pha" not in shared else [detection, *cycles]:
            kinds = responses | found.get(key, {})
            grouped.append(Products(key, **{kind: file for kind, (_, file) in kinds.items()}))
    return grouped
