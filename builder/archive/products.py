"""Product files: their names, and how the files of a package are matched to detections."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from builder.model.errors import ArchiveError
from builder.model.ids import CYCLES, DetectionId
from builder.model.records import File, Products

KINDS = ("pha", "arf", "rmf")

MAX_MEMBER_BYTES = 64 * 2**20
"""No product is nearly as large (an RMF is about 1 MB gzipped): more is a broken or hostile answer."""

# {instrument}f{obsid}_{obi}N{version}[_{cycle}]_r{region_id}_{kind}3.fits[.gz], CSC file naming convention
_NAME = re.compile(
    r"(?P<instrument>[a-z]+)f(?P<obsid>\d{5,6})_(?P<obi>\d{3})N(?P<version>\d{3})"
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


def members(part: Path) -> Iterator[File]:
    """Read the files in one part of a package: a tar, or a single product file.

    Member names are only ever read, never used as paths; links, folders and sparse files are passed over.

    Raises
    ------
    ArchiveError
        If the tar is damaged, or a member is larger than `MAX_MEMBER_BYTES`.
    """
    if ProductName.parse(part.name) is not None:
        yield File(part.name, part.read_bytes())
        return
    try:
        with tarfile.open(part, "r:") as tar:
            for member in tar:
                if not member.isfile() or member.issparse():
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise ArchiveError(f"{part}: member {member.name!r} claims {member.size} bytes")
                stream = tar.extractfile(member)
                data = stream.read() if stream is not None else b""
                if len(data) != member.size:
                    raise ArchiveError(f"{part} is cut short in member {member.name!r}")
                yield File(member.name.rpartition("/")[2], data)
            # tarfile takes the end of the file, and a header that is cut or damaged, for the end of the archive.
            with part.open("rb") as file:
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise ArchiveError(f"{part} is not a whole tar file: it ends without an end-of-archive mark")
    except ArchiveError:
        raise
    except Exception as error:  # of a damaged header tarfile raises ValueError, OverflowError, RecursionError and more
        raise ArchiveError(f"{part} is not a whole tar file: {error}") from error


def write_tar(stream: IO[bytes], files: Iterable[File]) -> None:
    """Write files as one tar, one folder deep as the archive has them, and without times or owners."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(f"package/{file.name}")
            member.size = len(file.data)
            tar.addfile(member, io.BytesIO(file.data))


def group_products(detections: Iterable[DetectionId], files: Iterable[File]) -> list[Products]:
    """Match files to the detections that were asked for.

    Files of other detections are passed over. Where two files claim the same place the later version wins. A
    detection of an interleaved observation gives one `Products` for each cycle, with the ARF and RMF file of no cycle
    where the cycle has none of its own; one without any file gives one with none.

    Returns
    -------
    list of Products
        In the order of `detections`, cycles in the order none, e1, e2.
    """
    wanted = {detection.catalog: None for detection in detections}
    found: dict[DetectionId, dict[str, tuple[int, File]]] = {}
    for file in files:
        name = ProductName.parse(file.name)
        if name is None or name.detection.catalog not in wanted:
            continue
        kinds = found.setdefault(name.detection, {})
        if name.kind not in kinds or kinds[name.kind][0] < name.version:
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
