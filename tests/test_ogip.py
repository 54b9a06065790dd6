"""The reader of binary tables agrees with astropy, and refuses what it was not made for."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from builder.model.errors import ProductError
from builder.model.records import File
from builder.reduce import ogip
from builder.reduce.ogip import Table, content, inflate, tables
from tests import fits_files as ff
from tests.fits_files import KINDS, REAL, stable

CODES = {"B": "u1", "I": "i2", "J": "i4", "K": "i8", "E": "f4", "D": "f8"}
NEIGHBOURS = ["A", "12A", "0J", "X", "7X", "8X", "16X", "17X", "L", "3L", "C", "2M", "3D", "5I", "PE(4)", "QJ(4)", "B"]


def only(data: bytes, kind: str = "pha") -> Table:
    (found,) = tables(data, "some_file", kind)
    return found


def neighbour(name: str, form: str, rows: int) -> fits.Column:
    """A column that is in the way: of any type, with any content."""
    if form[0] in "PQ":
        values: Any = np.empty(rows, dtype=object)
        values[:] = [np.arange(row % 4, dtype=np.float32) for row in range(rows)]
    elif form[-1] == "A":
        values = np.array(["END     "] * rows)
    elif form[-1] in "XL":
        values = np.ones((rows, int(form[:-1] or 1)), dtype=bool)
    else:
        values = np.full((rows, int(form[:-1] or 1)), 7)
    return fits.Column(name, form, array=values)


def random_values(code: str, rows: int, seed: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(8 * rows), dtype=CODES[code])[:rows]


@stable(120)
@given(
    codes=st.lists(st.sampled_from(sorted(CODES)), min_size=1, max_size=4),
    rows=st.integers(1, 40),
    neighbours=st.lists(st.sampled_from(NEIGHBOURS), max_size=5),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_columns_of_every_type_among_any_neighbours_are_as_astropy_reads_them(
    codes: list[str], rows: int, neighbours: list[str], seed: int, order: Any
) -> None:
    """To the bit, NaN included, in native byte order, in the order asked for."""
    columns = [
        fits.Column(f"Wanted{n}", code, array=random_values(code, rows, seed + n)) for n, code in enumerate(codes)
    ]
    columns += [neighbour(f"other{number}", form, rows) for number, form in enumerate(neighbours)]
    order.shuffle(columns)
    content = ff.fits_bytes(ff.table("A", columns), ff.table("B", columns[::-1]))
    names = [f"WANTED{number}" for number in range(len(codes))]
    order.shuffle(names)
    with fits.open(io.BytesIO(content)) as hdus:
        for number, table in enumerate(tables(content, "f", "pha"), 1):
            assert table.text("EXTNAME") == hdus[number].name
            for name, found in zip(names, table.columns(*names), strict=True):
                expected = hdus[number].data[name]
                assert found.dtype.isnative
                assert found.dtype == expected.dtype.newbyteorder("=")
                assert found.tobytes() == expected.astype(found.dtype).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detection", REAL, ids=str)
def test_every_scalar_column_and_keyword_of_the_real_files(detection: Any, kind: str) -> None:
    path = ff.REAL_FOLDER / f"{REAL[detection]}_{kind}3.fits"
    found = tables(path.read_bytes(), path.name, kind)
    with fits.open(path) as hdus:
        extensions = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU)]
        assert len(found) == len(extensions)
        for table, hdu in zip(found, extensions, strict=True):
            scalar = [column.name for column in hdu.columns if column.format in ("J", "1J", "E", "1E", "D", "1D", "I")]
            assert scalar
            for name, values in zip(scalar, table.columns(*scalar), strict=True):
                assert np.array_equal(values, hdu.data[name])
            for card in hdu.header.cards:
                if card.keyword in ("COMMENT", "HISTORY", "") or hdu.header.count(card.keyword) > 1:
                    continue
                if isinstance(card.value, bool):
                    assert table.text(card.keyword) == ("T" if card.value else "F")
                elif isinstance(card.value, (int, float)):
                    assert table.number(card.keyword) == card.value
                elif isinstance(card.value, str) and len(card.image) == 80:
                    assert table.text(card.keyword) == card.value.strip()


def test_images_and_empty_extensions_are_passed_over() -> None:
    stream = io.BytesIO()
    wanted = ff.table("WANTED", [fits.Column("X", "J", array=[1, 2])])
    fits.HDUList(
        [
            fits.PrimaryHDU(np.zeros((7, 5))),
            fits.ImageHDU(np.arange(2000.0)),
            fits.ImageHDU(),
            wanted,
            fits.ImageHDU(np.zeros(3, np.int16)),
        ]
    ).writeto(stream)
    (values,) = only(stream.getvalue()).columns("X")
    assert values.tolist() == [1, 2]


def test_bytes_that_look_like_an_end_card_in_the_data_end_nothing() -> None:
    text = fits.Column("TEXT", "80A", array=["END".ljust(80)] * 40)
    content = ff.fits_bytes(ff.table("A", [text, fits.Column("X", "J", array=np.arange(40))]), ff.gti())
    first, second = tables(content, "f", "pha")
    assert first.columns("X")[0].tolist() == list(range(40))
    assert second.text("EXTNAME") == "GTI"


def card_table(**cards: Any) -> Table:
    return only(ff.fits_bytes(ff.table("T", [fits.Column("X", "J", array=[1])], **cards)), "rmf")


@pytest.mark.parametrize("text", ["simple", "it's", "''", "a / b", "trailing   ", "", "5", "x" * 60, " lead"])
def test_text_is_as_astropy_reads_it(text: str) -> None:
    assert card_table(WORD=text).text("WORD") == text.strip()


def test_text_with_a_comment_and_numbers_with_one() -> None:
    table = card_table(WORD=("v / w", "a comment"), NUMBER=(1.5, "unit / s"), WHOLE=(-3, "x"), FLAG=(True, "y"))
    assert table.text("WORD") == "v / w"
    assert table.number("NUMBER") == 1.5
    assert table.integer("WHOLE") == -3
    assert table.text("FLAG") == "T"


@stable(100)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_as_astropy_reads_them(value: float) -> None:
    content = ff.fits_bytes(ff.table("T", [fits.Column("X", "J", array=[1])], NUMBER=value))
    with fits.open(io.BytesIO(content)) as hdus:
        assert only(content).number("NUMBER") == hdus[1].header["NUMBER"]


@pytest.mark.parametrize(("text", "value"), [("1.5D3", 1500.0), ("-2d-1", -0.2), ("'0043'", 43.0), ("+7", 7.0)])
def test_fortran_exponents_and_quoted_numbers(text: str, value: float) -> None:
    content = ff.fits_bytes(ff.table("T", [fits.Column("X", "J", array=[1])], NUMBER=1))
    assert only(ff.changed_card(content, "NUMBER", text, 1)).number("NUMBER") == value


def refused(reason: str, words: str, table: Table, method: str, *arguments: Any) -> None:
    with pytest.raises(ProductError, match=words) as caught:
        getattr(table, method)(*arguments)
    assert caught.value.reason == reason
    assert "some_file" in str(caught.value)


def test_what_a_header_lacks_is_an_error_or_the_default() -> None:
    table = card_table(WORD="abc", HALF=1.5)
    for method in ("text", "number", "integer"):
        refused("unreadable_rmf", "no keyword NONE", table, method, "NONE")
    assert table.text("NONE", "x") == "x"
    assert table.number("NONE", 2.5) == 2.5
    assert table.integer("NONE", 2) == 2
    refused("unreadable_rmf", "not a number", table, "number", "WORD")
    refused("unreadable_rmf", "not a whole number", table, "integer", "HALF")


def test_the_first_of_two_cards_counts() -> None:
    hdu = ff.table("T", [fits.Column("X", "J", array=[1])], WORD="first")
    hdu.header.append(("WORD", "second"))
    assert only(ff.fits_bytes(hdu)).text("WORD") == "first"


@pytest.mark.parametrize(
    "column",
    [
        fits.Column("X", "2J", array=np.ones((3, 2))),
        fits.Column("X", "5A", array=["a"] * 3),
        fits.Column("X", "C", array=np.ones(3)),
        fits.Column("X", "3X", array=np.ones((3, 3), bool)),
        neighbour("X", "PE(4)", 3),
    ],
    ids=["pair", "text", "complex", "bits", "variable"],
)
def test_a_wanted_column_that_is_not_one_plain_number_a_row_is_refused(column: fits.Column) -> None:
    table = only(ff.fits_bytes(ff.table("T", [fits.Column("Y", "J", array=[1, 2, 3]), column])))
    assert table.columns("Y")[0].tolist() == [1, 2, 3]
    refused("unreadable_pha", "column X is not o(ne|f) plain number", table, "columns", "Y", "X")


@pytest.mark.parametrize(("keyword", "value"), [("TSCAL2", 2.0), ("TSCAL2", -1), ("TZERO2", 2.0), ("TZERO2", 32768)])
def test_a_scaled_column_is_refused_only_where_it_is_wanted(keyword: str, value: float) -> None:
    columns = [fits.Column(name, "J", array=[1, 2, 3]) for name in ("Y", "X")]
    table = only(ff.fits_bytes(ff.table("T", columns, **{keyword: value})))
    assert table.columns("Y")[0].tolist() == [1, 2, 3]
    refused("unreadable_pha", "column X is not o(ne|f) plain number", table, "columns", "X")


def test_a_scale_of_one_from_zero_is_none() -> None:
    table = only(ff.fits_bytes(ff.table("T", [fits.Column("X", "J", array=[1, 2, 3])], TSCAL1=1.0, TZERO1=0)))
    assert table.columns("X")[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("code", "zero"), [("I", 2**15), ("J", 2**31)])
def test_unsigned_whole_numbers_are_as_they_were_meant(code: str, zero: int) -> None:
    """FITS Standard 4.0, section 5.2.5: they are stored less a half of their range."""
    values = np.array([0, 1, zero - 1, zero, 2 * zero - 1])
    stored = (values - zero).astype(CODES[code])
    lists = np.empty(5, dtype=object)
    lists[:] = [stored[:length] for length in range(5)]
    columns = [fits.Column("X", code, array=stored), fits.Column("L", f"P{code}()", array=lists)]
    data = ff.fits_bytes(ff.table("T", columns, TZERO1=zero, TZERO2=float(zero), TSCAL2=1))
    with fits.open(io.BytesIO(data)) as hdus:
        assert hdus[1].data["X"].tolist() == values.tolist()
    assert only(data).columns("X")[0].tolist() == values.tolist()
    assert only(data).lists("L", np.arange(5)).tolist() == [value for n in range(5) for value in values[:n]]


def test_a_gap_before_the_heap_is_passed_over_and_no_list_begins_before_it() -> None:
    """THEAP, FITS Standard 4.0, section 7.3.5."""
    lists = np.empty(2, dtype=object)
    lists[:] = [np.array([5, 6], np.int16), np.array([7], np.int16)]
    data = ff.fits_bytes(ff.table("T", [fits.Column("X", "PI()", array=lists)], GAP=16 + 10))
    with fits.open(io.BytesIO(data)) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    assert only(data).lists("X", np.array([2, 1])).tolist() == [5, 6, 7]
    heap = start + 16  # after two descriptors
    gap = ff.changed_card(data, "PCOUNT", "16", 1).replace(b"GAP     =", b"THEAP   =")
    gap = gap[:heap] + b"\x7f" * 10 + gap[heap:-10]
    assert only(gap).lists("X", np.array([2, 1])).tolist() == [5, 6, 7]
    before = data[: start + 4] + (-2).to_bytes(4, "big", signed=True) + data[start + 8 :]
    refused("unreadable_pha", "column X is cut short", only(before, "pha"), "lists", "X", np.array([2, 1]))


@pytest.mark.parametrize(
    ("cards", "found"),
    [
        ({"HDUCLAS1": "SPECTRUM", "EXTNAME": "SPECTRUM1"}, "SPECTRUM"),
        ({"EXTNAME": "Spectrum"}, "SPECTRUM"),
        ({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "EBOUNDS", "EXTNAME": "X"}, "EBOUNDS"),
        ({"HDUCLAS1": "RESPONSE", "HDUCLAS2": "RSP_MATRIX", "EXTNAME": "RESPMAT"}, "RSP_MATRIX"),
        ({"HDUCLAS1": "RESPONSE", "EXTNAME": "specresp"}, "SPECRESP"),
        ({"EXTNAME": "SPECRESP MATRIX"}, "RSP_MATRIX"),
        ({"EXTNAME": "matrix"}, "RSP_MATRIX"),
        ({"HDUCLAS1": "GTI", "EXTNAME": "SPECTRUM"}, "GTI"),
        ({}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()),
)
def test_a_table_holds_what_its_class_says_or_else_its_name(cards: dict[str, str], found: str) -> None:
    assert content(cards.get) == found


def test_a_word_is_text_or_nothing() -> None:
    table = card_table(WORD=" NONE ", BLANK="  ", NUMBER=5, FLAG=True)
    assert [table.word(keyword) for keyword in ("WORD", "BLANK", "NUMBER", "FLAG", "NOT")] == ["NONE", *[None] * 4]


def test_a_column_that_is_not_there_is_refused() -> None:
    refused("unreadable_rmf", "no column Z in T", card_table(), "columns", "X", "Z")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("TFORM1", "'1Z'"),
        ("TFORM1", "'D'"),
        ("NAXIS1", "2"),
        ("NAXIS1", "8"),
        ("NAXIS2", "1000"),
        ("NAXIS2", "0"),
        ("NAXIS2", "-1"),
        ("TFIELDS", "2"),
        ("TFIELDS", "0"),
        ("NAXIS", "1"),
        ("NAXIS", "0"),
        ("BITPIX", "4"),
        ("BITPIX", "16"),
    ],
)
def test_a_header_that_contradicts_its_data_is_refused(keyword: str, value: str) -> None:
    content = ff.fits_bytes(ff.table("T", [fits.Column("X", "J", array=[1, 2, 3])]))
    assert only(content).columns("X")[0].tolist() == [1, 2, 3]
    with pytest.raises(ProductError) as caught:
        only(ff.changed_card(content, keyword, value, 1), "arf").columns("X")
    assert caught.value.reason == "unreadable_arf"


def test_nothing_but_fits_is_read() -> None:
    for data in (b"", b"<html>", b"SIMPLE", b"XTENSION= 'BINTABLE'".ljust(2880)):
        with pytest.raises(ProductError, match="some_file is not a FITS file"):
            tables(data, "some_file", "pha")


def test_zeros_after_the_last_extension_are_padding() -> None:
    content = ff.fits_bytes(ff.gti())
    for padding in (b"", bytes(1), bytes(2880), b" " * 100, bytes(10_000)):
        assert only(content + padding).text("EXTNAME") == "GTI"


@pytest.mark.parametrize("tail", [b"x", b"<html>" * 100, b"XTENSION= 'BINTABLE'"])
def test_anything_else_after_the_last_extension_is_refused(tail: bytes) -> None:
    with pytest.raises(ProductError, match="cut short in a header"):
        tables(ff.fits_bytes(ff.gti()) + tail, "some_file", "pha")


# --- inflating ---


@stable(60)
@given(data=st.binary(max_size=3000), level=st.integers(0, 9))
def test_inflating_gives_back_what_was_deflated(data: bytes, level: int) -> None:
    assert inflate(File("x", gzip.compress(data, level))) == data


def test_what_is_not_gzipped_stays_as_it_is() -> None:
    for data in (b"", b"\x1f", b"SIMPLE", zlib.compress(b"x")):
        assert inflate(File("x", data)) is data


def test_a_gzip_header_with_every_optional_field() -> None:
    """RFC 1952: extra field, name, comment and header CRC."""
    body = gzip.compress(b"data", mtime=0)
    head = b"\x1f\x8b\x08\x1e\0\0\0\0\0\x03" + b"\x02\0ab" + b"name\0" + b"comment\0"
    head += (zlib.crc32(head) & 0xFFFF).to_bytes(2, "little")
    assert inflate(File("x", head + body[10:])) == b"data"


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_the_largest_size_is_inclusive(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(ogip, "MAX_INFLATED_BYTES", 1000)
    assert inflate(File("x", gzip.compress(bytes(size)))) == bytes(size)
    with pytest.raises(ProductError, match="inflates past 1000 bytes") as caught:
        inflate(File("x", gzip.compress(bytes(1001))))
    assert caught.value.reason == "damaged_gzip"
