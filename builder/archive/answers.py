"""What the archive's answers must be: judged by their content, not by their form.

A tar that is not as ours are (packed in gzip, or without its end) is accepted where its content proves itself, and is
then made into a plain one, so that nothing below need know.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

from builder.archive.catalog import VOTABLE_TAG
from builder.archive.products import MAX_MEMBER_BYTES, ProductName, headers
from builder.model.errors import ArchiveError, RefusedError, TransientError, WrongAnswerError
from builder.model.ids import DetectionId
from builder.model.text import text_of

Product = tuple[DetectionId, str]
"""A detection, of one cycle where it has two, and the kind of file."""

_GZIP = b"\x1f\x8b"
_END = bytes(2 * tarfile.BLOCKSIZE)


class Contents(NamedTuple):
    """What a package holds.

    Attributes
    ----------
    good, damaged : set of Product
        Files that are whole, and files that are there but do not inflate.
    form : str
        How the service makes its tars.
    """

    good: set[Product]
    damaged: set[Product]
    form: str


def _start(path: Path, length: int = 512) -> bytes:
    with path.open("rb") as file:
        return file.read(length)


def _words(path: Path) -> str:
    """Read the first words of an answer that is not what was asked for."""
    return text_of(_start(path, 2048)) or "nothing"


def check_votable(path: Path, framed: bool) -> None:
    """Take a catalog's answer that is a VOTable with its end."""
    if not re.search(rb"<" + VOTABLE_TAG, _start(path, 4096)):
        raise WrongAnswerError(f"the catalog answered {_words(path)!r} instead of a VOTable")
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 512))
        if not re.search(rb"</" + VOTABLE_TAG + rb"\s*>", file.read()):
            raise TransientError("the catalog's answer is cut short")


def check_document(path: Path, framed: bool) -> None:
    """Take any XML document."""
    if not _start(path).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<") or b"<html" in _start(path).lower():
        raise WrongAnswerError(f"the catalog answered {_words(path)!r} instead of XML")


def check_listing(path: Path, framed: bool) -> None:
    """Take a list of objects as JSON."""
    try:
        listing = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise WrongAnswerError(f"the package service answered {_words(path)!r} instead of a listing") from None
    if not isinstance(listing, list) or not all(isinstance(entry, dict) for entry in listing):
        raise WrongAnswerError("the package service answered something else than a listing")


class ProductCheck:
    """A check that takes a FITS file, gzipped or not.

    Attributes
    ----------
    damaged : bytes
        What was refused last because its gzip is damaged.
    """

    def __init__(self) -> None:
        self.damaged = b""

    def __call__(self, path: Path, framed: bool) -> None:
        """Check a file; the errors are those of `builder.archive.http.Check`."""
        data = path.read_bytes()
        if not data.startswith((_GZIP, b"SIMPLE  =")):
            raise WrongAnswerError(f"the package service answered {_words(path)!r} instead of a FITS file")
        if not _inflates(data):
            self.damaged = data
            raise WrongAnswerError("the package service answered a file whose gzip is cut short or damaged")


def _inflates(data: bytes) -> bool:
    """Tell whether a product is whole as far as its gzip tells; one that is not gzipped says nothing of that."""
    if not data.startswith(_GZIP):
        return data.startswith(b"SIMPLE  =")
    stream = isal_zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        return len(stream.decompress(data, MAX_MEMBER_BYTES)) < MAX_MEMBER_BYTES and bool(stream.eof)
    except isal_zlib.error:  # type: ignore[misc]  # its stub does not say that it is an exception
        return False


def judge_tar(path: Path, framed: bool, wanted: set[DetectionId], limit: int, max_bytes: int) -> Contents:
    """Say which of the wanted products a tar holds, and make it a plain one.

    Parameters
    ----------
    framed : bool
        Whether the transfer told its own end; if not, the tar must.
    limit : int
        Files that it may hold.
    max_bytes : int
        Size that it may have when it is inflated.

    Raises
    ------
    WrongAnswerError
        It is no tar, or holds files of other detections.
    TransientError
        It is cut short.
    RefusedError
        It is larger than any package.
    """
    forms = []
    if _start(path).startswith(_GZIP):
        _inflate(path, max_bytes)
        forms, framed = ["gzip"], True  # which tells its own end
    head = _start(path)
    if head[:1].strip(b"\0") and head[257:262] != b"ustar":
        forms.append("v7 headers")
    if framed and _close(path):
        forms.append("no end")
    good: set[Product] = set()
    damaged: set[Product] = set()
    try:
        found = list(headers(path))
    except RefusedError:
        raise
    except ArchiveError as error:
        if head.isascii() or not head:
            raise WrongAnswerError(f"the package service answered {_words(path)!r} instead of a tar file") from error
        raise (WrongAnswerError if framed else TransientError)(str(error).replace(str(path), "a package")) from error
    if len(found) > limit:
        raise RefusedError(f"a package has {len(found)} files where at most {limit} were asked for")
    with path.open("rb") as file:
        for member in found:
            name = ProductName.parse(member.name)
            if name is None:
                continue
            if name.detection.catalog not in wanted:
                raise WrongAnswerError(f"a package holds {member.name[:200]!r}, which was not asked for")
            file.seek(member.offset_data)
            (good if _inflates(file.read(member.size)) else damaged).add((name.detection, name.kind))
    return Contents(good - damaged, damaged, ", ".join(forms))


def _close(path: Path) -> bool:
    """Give a tar the end that it has not; whether that was so. The transfer told that it is whole."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_END)))
        if not size or file.read() == _END:
            return False
        file.write(_END)
        return True


def _inflate(path: Path, max_bytes: int) -> None:
    """Replace a gzipped file by its content."""
    plain = path.with_name(path.name + ".plain")
    try:
        with gzip.open(path) as packed, plain.open("wb") as file:
            while piece := packed.read(2**20):
                if file.tell() + len(piece) > max_bytes:
                    raise RefusedError("a package inflates to more than any can be")
                file.write(piece)
        plain.replace(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TransientError(f"a package's gzip is cut short or damaged: {error}") from error
    finally:
        plain.unlink(missing_ok=True)
