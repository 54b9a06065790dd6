"""PHA, ARF and RMF bytes to arrays.

The files are FITS binary tables in the OGIP layouts (PHA: OGIP 92-007; ARF and RMF: CAL/GEN/92-002). A full reader
costs several times what inflating the bytes does, mostly for header cards and matrix elements that nobody asks for;
this one walks the headers and reads just the fixed-width columns that are needed. It is strict: what is not there,
cut short or of another kind is a `ProductError`, never a guess.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from builder.model.errors import ProductError
from builder.model.records import ProductFile
from builder.model.text import one_line

MAX_INFLATED_BYTES = 24 * 2**20
"""No product is nearly as large: an RMF inflates to 2 MB, and with each of 900 x 1024 elements it would be 4 MB."""

_BLOCK = 2880  # FITS Standard 4.0, section 3.1
_CARD = struct.Struct("10s70s")  # a card: keyword and value indicator, value and comment
_GZIP = 16 + zlib.MAX_WBITS  # a gzip member with header and trailer, whose CRC and length are then checked
_NUMPY = {"L": "i1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}  # section 7.3.1
_TFORM_BYTES = {**{code: np.dtype(kind).itemsize for code, kind in _NUMPY.items()}, "A": 1, "C": 8, "M": 16}
_TFORM_BYTES |= {"P": 8, "Q": 16}  # descriptors of variable-length arrays
_TFORM = re.compile(r"(\d*)([LXBIJKAEDCMPQ])([LXBIJKAEDCM]?)")
_DESCRIPTOR = {"P": ">i4", "Q": ">i8"}  # length and place in the heap, section 7.3.5
_UNSIGNED = {"I": 2**15, "J": 2**31}  # TZERO of whole numbers from 0 up, section 5.2.5
_MAX_FIELDS = 999  # section 7.3.1
_NUMBER = re.compile(r"[+-]? *(\d+\.?\d*|\.\d+)([EDed][+-]?\d+)?", re.ASCII)  # sections 4.2.3 and 4.2.4
_QUOTED = re.compile(r"'((?:[^']|'')*)")  # section 4.2.1: a quote within is doubled
_UNITS = {
    "ENERG_LO": {"KEV"},
    "ENERG_HI": {"KEV"},
    "E_MIN": {"KEV"},
    "E_MAX": {"KEV"},
    "SPECRESP": {"CM**2", "CM^2", "CM2"},
    "COUNTS": {"COUNT", "COUNTS", "CT", "CTS"},
}
"""Units that a column may have, in capitals; a column without one is in these all the same (see docs/recipe.md)."""
_ONES = 2**32 - 1  # ones' complement counts modulo this

MATRIX_NAMES = ("MATRIX", "SPECRESP MATRIX")
"""EXTNAME of a response matrix (CAL/GEN/92-002, section 3.1); that of the catalog's release 1 is RSP_MATRIX."""


def inflate(file: ProductFile) -> bytes:
    """Return the bytes of a FITS file, gunzipped if they are gzipped.

    Raises
    ------
    ProductError
        ``damaged_gzip``: cut short, a wrong CRC or length, or more than `MAX_INFLATED_BYTES`.
    """
    data = file.data
    if data[:2] != b"\x1f\x8b":
        return data
    stream = isal_zlib.decompressobj(wbits=_GZIP)
    try:
        inflated: bytes = stream.decompress(data, MAX_INFLATED_BYTES)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub does not say that it is an exception
        raise ProductError("damaged_gzip", f"{file.name}: {error}") from error
    if not stream.eof:
        what = "is cut short" if len(inflated) < MAX_INFLATED_BYTES else f"inflates past {MAX_INFLATED_BYTES} bytes"
        raise ProductError("damaged_gzip", f"{file.name}: the gzip stream {what}")
    if stream.unused_data.strip(b"\0"):
        raise ProductError("damaged_gzip", f"{file.name}: {len(stream.unused_data)} bytes follow the gzip stream")
    return inflated


def sha256(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class _Field:
    """A column: its number, how many of what type code a row holds, what a list is of, where in the row, and from 0."""

    number: int
    repeat: int
    code: str
    element: str
    offset: int
    zero: int


@dataclass(frozen=True, slots=True)
class Table:
    """One binary table extension of a FITS file.

    Attributes
    ----------
    file : str
        Name of the file, for messages.
    kind : str
        ``pha``, ``arf`` or ``rmf``: which reason code a fault gets.
    cards : dict of bytes to bytes
        Raw value field of the first card of each keyword; the key has its ``= ``.
    header : memoryview
        All cards, and what fills the last block.
    body : memoryview
        The data, and what fills the last block.
    data : memoryview
        The main table, NAXIS1 x NAXIS2 bytes.
    heap : memoryview
        What follows it, where arrays of variable length lie.
    """

    file: str
    kind: str
    cards: dict[bytes, bytes]
    header: memoryview
    body: memoryview
    data: memoryview
    heap: memoryview

    def _unreadable(self, message: str) -> ProductError:
        return ProductError(f"unreadable_{self.kind}", f"{self.file}: {message}")

    def text(self, keyword: str, default: str | None = None) -> str:
        """Read a keyword as text, without quotes and padding; `default` or ProductError where it is missing."""
        raw = self.cards.get(_key(keyword))
        if raw is None:
            if default is None:
                raise self._unreadable(f"no keyword {keyword}")
            return default
        value = raw.decode("ascii", "replace").strip()
        if value.startswith("'") and (quoted := _QUOTED.match(value)):
            return quoted[1].replace("''", "'").strip()
        return value.partition("/")[0].strip()

    def word(self, keyword: str) -> str | None:
        """Read a keyword that is text; None where it is missing, blank, not text, or cannot be printed."""
        quoted = self.cards.get(_key(keyword), b"").lstrip().startswith(b"'")
        text = self.text(keyword) if quoted else ""
        return text if text and text.isascii() and text.isprintable() else None

    def number(self, keyword: str, default: float | None = None) -> float:
        """Read a keyword as a number; `default` or ProductError where it is missing."""
        if default is not None and _key(keyword) not in self.cards:
            return float(default)
        text = self.text(keyword)
        if text.isdecimal() and text.isascii():  # as most are
            return float(text)
        if not _NUMBER.fullmatch(text):  # float() takes more, such as 1_000 and nan
            raise self._unreadable(f"keyword {keyword} is {text!r}, not a number")
        return float(text.replace("D", "E").replace("d", "e").replace(" ", ""))

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return the value of a keyword as a whole number; `default` or ProductError where it is missing."""
        value = self.number(keyword, default)
        if not value.is_integer():
            raise self._unreadable(f"keyword {keyword} is {value}, not a whole number")
        return int(value)

    @property
    def names(self) -> list[str]:
        """Names of the columns in capitals, as whose case FITS does not mind (FITS Standard 4.0, section 7.3.1)."""
        return [
            self.text(f"TTYPE{index}", "").upper() for index in range(1, min(self.integer("TFIELDS"), _MAX_FIELDS) + 1)
        ]

    def columns(self, *names: str) -> list[NDArray[np.generic]]:
        """Copy scalar columns out, in native byte order, each of shape (NAXIS2,).

        Raises
        ------
        ProductError
            If a column is missing or there twice, not one number a row, of another unit, or scaled (the catalog's
            files scale none); whole numbers that are stored as unsigned are not scaled.
        """
        fields = self._fields(*names)
        for name, field in fields.items():
            if field.repeat != 1 or field.code not in _NUMPY:
                raise self._unreadable(f"column {name} is not one plain number a row")
        array = self._records(fields, [_NUMPY[field.code] for field in fields.values()])
        return [_native(array[name], fields[name].zero) for name in names]

    def lists(self, name: str, lengths: NDArray[np.integer[Any]]) -> NDArray[np.generic]:
        """Copy a column of lists out, one row after the other, in native byte order.

        Parameters
        ----------
        name : str
            A column of numbers, of a fixed or a variable length (FITS Standard 4.0, section 7.3.5).
        lengths : ndarray of int, shape (NAXIS2,)
            Values to take of each row; a row may hold more, as padding.

        Returns
        -------
        ndarray, shape (lengths.sum(),)

        Raises
        ------
        ProductError
            If the column is missing, scaled, not of numbers, or a row holds less.
        """
        field = self._fields(name)[name]
        variable = field.code in _DESCRIPTOR
        kind = np.dtype(_NUMPY.get(field.element if variable else field.code, "V"))
        if kind.kind == "V" or (variable and field.repeat != 1) or len(lengths) != self.integer("NAXIS2"):
            raise self._unreadable(f"column {name} is not a list of plain numbers a row")
        if variable:
            places = self._records({name: field}, ["2" + _DESCRIPTOR[field.code]])[name]
            held, begins = places[:, 0], places[:, 1] + self.integer("THEAP", len(self.data)) - len(self.data)
            source = self.heap
        else:
            held = np.full(len(lengths), field.repeat)
            begins = np.arange(len(lengths)) * self.integer("NAXIS1") + field.offset
            source = self.data
        if np.any(lengths > held) or np.any(begins < 0) or np.any(begins + lengths * kind.itemsize > len(source)):
            raise self._unreadable(f"column {name} is cut short")
        parts = [
            source[begin : begin + length * kind.itemsize]
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
        ]
        return _native(np.frombuffer(b"".join(parts), kind), field.zero)

    def check_sums(self) -> None:
        """Compare the header and the data with the checksums that they carry, where they do.

        DATASUM is the sum of the data, and CHECKSUM brings that of the whole extension to zero: sums of big-endian
        32-bit words in ones' complement, that is modulo 2**32 - 1 (FITS Standard 4.0, section 4.4.2.7 and appendix J).

        Raises
        ------
        ProductError
            ``damaged_fits``.
        """
        announced, summed = self.text("DATASUM", ""), self.text("CHECKSUM", "")
        if not (announced or summed):
            return
        data = _sum(self.body)
        if announced and not (announced.isdecimal() and (int(announced) - data) % _ONES == 0):
            raise ProductError("damaged_fits", f"{self.file}: DATASUM of {self._name} is not that of its data")
        if summed and (data + _sum(self.header)) % _ONES:
            raise ProductError("damaged_fits", f"{self.file}: CHECKSUM of {self._name} is not that of its content")

    @property
    def _name(self) -> str:
        """Name the extension, for messages."""
        return one_line(self.text("EXTNAME", "")) or "an extension"

    def column_number(self, name: str) -> int:
        """Return the number, from 1, that a column's keywords end in; ProductError where it is missing."""
        return self._fields(name)[name].number

    def _fields(self, *names: str) -> dict[str, _Field]:
        """Find the columns with these names, in this order; ProductError if one is missing or scaled."""
        found: dict[str, _Field] = {}
        width, offset = self.integer("NAXIS1"), 0
        for index in range(1, self.integer("TFIELDS") + 1):
            match = _TFORM.match(self.text(f"TFORM{index}"))
            if match is None:
                raise self._unreadable(f"TFORM{index} is not a binary table format")
            repeat, code = int(match[1] or 1), match[2]
            name = self.text(f"TTYPE{index}", "").upper()
            if name in names:
                zero = self.number(f"TZERO{index}", 0)
                if self.number(f"TSCAL{index}", 1) != 1 or zero not in (0, _UNSIGNED.get(match[3] or code)):
                    raise self._unreadable(f"column {name} is not of plain numbers: it is scaled")
                unit = self.text(f"TUNIT{index}", "")
                if name in found or (unit and unit.upper() not in _UNITS.get(name, {unit.upper()})):
                    what = "is there twice" if name in found else f"is in {unit!r}"
                    raise ProductError("wrong_type", f"{self.file}: column {name} {what}")
                found[name] = _Field(index, repeat, code, match[3] or "", offset, int(zero))
            offset += (repeat + 7) // 8 if code == "X" else repeat * _TFORM_BYTES[code]
        if missing := [name for name in names if name not in found]:
            raise self._unreadable(f"no column {missing[0]} in {self._name}")
        if offset != width:
            raise self._unreadable(f"rows of {width} bytes, but columns of {offset}")
        return {name: found[name] for name in names}

    def _records(self, fields: dict[str, _Field], formats: list[str]) -> NDArray[np.void]:
        """View the main table as records of these columns; ProductError if it is empty or not as long as it says."""
        rows, width = self.integer("NAXIS2"), self.integer("NAXIS1")
        if not rows or rows * width != len(self.data):
            raise self._unreadable(f"{rows} rows of {width} bytes, but {len(self.data)} bytes of data")
        row = np.dtype(
            {
                "names": list(fields),
                "formats": formats,
                "itemsize": width,
                "offsets": [field.offset for field in fields.values()],
            }
        )
        return np.frombuffer(self.data, dtype=row, count=rows)


@functools.lru_cache(maxsize=512)
def _key(keyword: str) -> bytes:
    """Return what a card with a value begins with."""
    return keyword.encode().ljust(8) + b"= "


def _sum(view: memoryview) -> int:
    """Add up big-endian 32-bit words; zeros that are cut off at the end add nothing."""
    if rest := len(view) % 4:
        return _sum(view[:-rest]) + int.from_bytes(bytes(view[-rest:]).ljust(4, b"\0"))
    return int(np.frombuffer(view, ">u4").sum(dtype=np.uint64))


def _native(values: NDArray[np.generic], zero: int) -> NDArray[np.generic]:
    """Return the values in native byte order, counted from `zero`."""
    native = values.astype(values.dtype.newbyteorder("="))
    return native.astype(np.int64) + zero if zero else native


def content(card: Callable[[str, str], object]) -> str:
    """Return the kind of an extension: SPECTRUM, SPECRESP, RSP_MATRIX, EBOUNDS or something else.

    The keywords of its OGIP class decide, or, where it has none, its name in any case.

    Parameters
    ----------
    card : callable
        ``card(keyword, default)`` gives the value of a keyword: `Table.text`, or ``get`` of astropy's headers.
    """
    kind, subkind, name = (str(card(keyword, "")).upper() for keyword in ("HDUCLAS1", "HDUCLAS2", "EXTNAME"))
    found = (subkind if kind == "RESPONSE" else kind) or name
    return "RSP_MATRIX" if found in MATRIX_NAMES else found


def extension(found: list[Table], what: str, file: str, kind: str) -> Table:
    """Return the one table of a file that holds `what`, see `content`, and is what its checksums say.

    Raises
    ------
    ProductError
        ``unreadable_<kind>``: there is none, or more than one. ``damaged_fits``.
    """
    holding = [table for table in found if content(table.text) == what]
    if len(holding) != 1:
        raise ProductError(f"unreadable_{kind}", f"{file}: {len(holding)} tables {what} instead of 1")
    holding[0].check_sums()
    return holding[0]


def tables(data: bytes, file: str, kind: str) -> list[Table]:
    """Return all binary tables of a FITS file, in its order.

    Raises
    ------
    ProductError
        ``unreadable_<kind>``: not FITS, or cut short.
    """
    return list(_tables(data, file, kind))


def _tables(data: bytes, file: str, kind: str) -> Iterator[Table]:
    if not data.startswith(b"SIMPLE  ="):
        raise ProductError(f"unreadable_{kind}", f"{file} is not a FITS file: it starts {data[:24]!r}")
    view = memoryview(data)
    position = 0
    while position < len(data):
        if position and not data.startswith(b"XTENSION=", position):
            if not data[position:].strip(b"\0 "):
                return  # padding after the last extension
            raise ProductError(f"unreadable_{kind}", f"{file}: no extension begins where the one before ends")
        end = data.find(b"END     ", position)
        while end >= 0 and (end - position) % _CARD.size:  # within another card
            end = data.find(b"END     ", end + 1)
        if end < 0:
            raise ProductError(f"unreadable_{kind}", f"{file} is cut short in a header")
        pairs = list(_CARD.iter_unpack(view[position:end]))[::-1]  # so that the first of a keyword stays
        cards = dict(pairs)
        if not b"".join(cards).isupper():  # no keyword is in lower case, but readers take those that are
            cards = {key.upper(): value for key, value in pairs}
        begin = end + _CARD.size + (position - end - _CARD.size) % _BLOCK
        table = Table(file, kind, cards, view[position:begin], *[view[:0]] * 3)
        axes = [table.integer(f"NAXIS{axis}") for axis in range(1, table.integer("NAXIS") + 1)]
        main = abs(table.integer("BITPIX")) // 8 * math.prod(axes) if axes else 0
        size = main + table.integer("PCOUNT", 0)
        if min(main, size) < 0 or begin + size > len(data):
            raise ProductError(f"unreadable_{kind}", f"{file} is cut short in {table._name}")
        position = begin + -(-size // _BLOCK) * _BLOCK
        if table.text("XTENSION", "") == "BINTABLE":
            parts = view[begin:position], view[begin : begin + main], view[begin + main : begin + size]
            yield Table(file, kind, cards, table.header, *parts)
