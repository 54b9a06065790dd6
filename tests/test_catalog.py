"""The catalog's answers are read whole or refused, and give the same plan in any order."""

from __future__ import annotations

import io
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from astropy.io import votable
from hypothesis import given
from hypothesis import strategies as st

from builder.archive.answers import check_votable
from builder.archive.catalog import ALL, count_of, from_rows, read_votable, write_votable
from builder.archive.packages import PACKAGE_SIZE, Package, plan
from builder.archive.values import SCHEMA
from builder.archive.votable import write_votable as write_any
from builder.model.columns import CATALOG
from builder.model.errors import CatalogError
from builder.model.ids import DetectionId
from builder.model.settings import Recipe
from tests.fits_files import stable

NAMES = [column.name for column in CATALOG]
KEYS = ("obsid", "obi", "region_id")
VALUES = {"string": "text", "int32": 3, "float32": 1.25, "float64": 2.5, "bool": True}


def row(obsid: int, obi: int = 0, region_id: int = 1, /, **changes: Any) -> dict[str, Any]:
    values = {column.name: VALUES[column.dtype] for column in CATALOG}
    return (
        values
        | {"obsid": obsid, "obi": obi, "region_id": region_id, "instrument": "ACIS", "several_sources": None}
        | changes
    )


floats = st.floats(allow_nan=False, allow_infinity=False)
VALUES_OF = {
    # no control characters (XML has none), no blanks at the ends (they are padding)
    "string": st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float32": floats,
    "float64": floats,
    "bool": st.booleans(),
}
rows_of_anything = st.lists(
    st.fixed_dictionaries({column.name: st.one_of(st.none(), VALUES_OF[column.dtype]) for column in CATALOG}),
    max_size=4,
)


# --- reading ---


@stable(60)
@given(rows_of_anything)
def test_what_is_written_is_read_back_with_nulls_in_any_column(rows: list[dict[str, Any]]) -> None:
    table, overflow = read_votable(write_votable(rows), "answer")
    assert not overflow
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == rows


@pytest.mark.parametrize("column", NAMES)
def test_a_null_in_each_column(column: str) -> None:
    """Beside a row without, and in every row."""
    for rows in ([row(1, **{column: None}), row(2)], [row(1, **{column: None})] * 2):
        table, _ = read_votable(write_votable(rows), "answer")
        assert table.to_pylist() == rows


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(value: float) -> None:
    table, _ = read_votable(write_votable([row(1, theta=value)]), "answer")
    assert table["theta"].to_pylist() == [None]


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [row(number, theta=number / 7) for number in range(20)]
    assert write_votable(rows) == write_votable([dict(one) for one in rows])


def test_a_row_that_lacks_a_column_has_a_null() -> None:
    partial = {"name": "x", "obsid": 1, "obi": 0, "region_id": 1}
    table, _ = read_votable(write_votable([partial]), "answer")
    assert from_rows([partial]).equals(table)
    assert {key: value for key, value in table.to_pylist()[0].items() if value is not None} == partial


def test_an_answer_without_rows() -> None:
    table, overflow = read_votable(write_votable([]), "answer")
    assert (len(table), overflow) == (0, False)
    assert table.schema.equals(SCHEMA)


def test_columns_in_another_order_and_letter_case_with_others_between() -> None:
    names = [name.upper() if number % 2 else name for number, name in enumerate(reversed(NAMES))]
    rows = [row(1), row(2, theta=None, name=None)]
    answer = [{name: one[name.lower()] for name in names} | {"extra": 5} for one in rows]
    table, _ = read_votable(write_any([*names[:3], "extra", *names[3:]], answer), "answer")
    assert table.to_pylist() == rows


def test_text_is_trimmed_and_empty_text_is_null() -> None:
    table, _ = read_votable(write_votable([row(1, name="  2CXO J1 "), row(2, name="")]), "answer")
    assert table["name"].to_pylist() == ["2CXO J1", None]


def typed(column: str, datatype: str, cells: list[str]) -> bytes:
    """An answer of which one column has another datatype than ours."""
    content = write_votable([row(number) for number in range(len(cells))]).decode()
    start = content.index(f'<FIELD name="{column}"')
    stop = content.index("/>", start) + 2
    size = ' arraysize="*"' if datatype == "char" else ""
    content = content[:start] + f'<FIELD name="{column}" datatype="{datatype}"{size}/>' + content[stop:]
    head, *lines = content.split("<TR>")
    for number, cell in enumerate(cells):
        parts = lines[number].split("</TD>")
        parts[NAMES.index(column)] = f"<TD>{cell}"
        lines[number] = "</TD>".join(parts)
    return "<TR>".join([head, *lines]).encode()


@pytest.mark.parametrize(
    ("column", "datatype", "cells", "values"),
    [
        ("obsid", "long", ["7", "8"], [7, 8]),
        ("obsid", "short", ["7", "8"], [7, 8]),
        ("obsid", "double", ["7", "8.0"], [7, 8]),
        ("obsid", "char", ["7", "8"], [7, 8]),
        ("theta", "float", ["0.5", ""], [0.5, None]),
        ("theta", "char", ["0.5", "1e-3"], [0.5, 1e-3]),
        ("theta", "int", ["3", "4"], [3.0, 4.0]),
        ("conf_code", "int", ["", "4"], [None, 4]),
        ("sat_src_flag", "boolean", ["T", "F"], [True, False]),
        ("sat_src_flag", "boolean", ["true", "0"], [True, False]),
        ("sat_src_flag", "int", ["1", "0"], [True, False]),
        ("theta", "char", ["", " "], [None, None]),
        ("obsid", "char", ["7", ""], [7, None]),
        ("name", "char", [" ", "x"], [None, "x"]),
        ("sat_src_flag", "char", ["t", "F", "TRUE", "False", " 1 ", "0", ""], [True, False] * 3 + [None]),
    ],
)
def test_other_datatypes_of_the_same_values(column: str, datatype: str, cells: list[str], values: list[Any]) -> None:
    table, _ = read_votable(typed(column, datatype, cells), "answer")
    assert table[column].to_pylist() == values


@pytest.mark.parametrize("cell", ["8.0", "+Inf"])
@pytest.mark.parametrize("place", [0, 2100, 4999])
def test_a_number_in_another_form_anywhere_in_a_long_column_changes_no_other_row(cell: str, place: int) -> None:
    texts = [str(number) for number in range(5000)]
    texts[place] = cell
    values = [*range(5000)]
    values[place] = 8 if cell == "8.0" else None
    table, _ = read_votable(typed("conf_code", "int", texts), "answer")
    assert table["conf_code"].to_pylist() == values


@pytest.mark.parametrize(
    ("column", "datatype", "cell"),
    [
        ("obsid", "double", "7.5"),
        ("obsid", "long", "99999999999"),
        ("obsid", "char", "seven"),
        ("theta", "char", "x"),
        ("sat_src_flag", "char", "maybe"),
        ("sat_src_flag", "int", "3"),
    ],
)
def test_values_that_do_not_fit_a_column_are_refused(column: str, datatype: str, cell: str) -> None:
    with pytest.raises(CatalogError, match=rf"answer: column {column} cannot be read"):
        read_votable(typed(column, datatype, [cell]), "answer")


ROWS = [row(1), row(2, theta=None, name=None)]
PLAIN = write_votable(ROWS).decode()
RESULTS = PLAIN[PLAIN.index("<RESOURCE") : PLAIN.index("</VOTABLE>")]
ARRAYS = PLAIN.replace('datatype="int"', 'datatype="int" arraysize="1"')


@pytest.mark.parametrize(
    "content",
    [
        re.sub(
            r'<FIELD name="(\w+)"', lambda match: f'<FIELD ID="col_{NAMES.index(match[1])}" name="{match[1]}"', PLAIN
        ),
        re.sub(r'<FIELD name="(\w+)"', r'<FIELD ID="o.\1" name="\1"', PLAIN),
        PLAIN.replace(RESULTS, f'<RESOURCE type="meta"/>{RESULTS}'),
        PLAIN.replace(RESULTS, f"<RESOURCE>{RESULTS}</RESOURCE>"),
        re.sub(r"<(/?)(?=[A-Z])", r"<\1vo:", PLAIN).replace("xmlns=", "xmlns:vo="),
        ARRAYS,
    ],
    ids=["IDs", "IDs that are no names", "second resource", "nested resource", "namespace prefix", "arraysize 1"],
)
def test_other_ways_to_write_the_same_answer(content: str, tmp_path: Path) -> None:
    assert content != PLAIN
    table, _ = read_votable(content.encode(), "answer")
    assert table.to_pylist() == ROWS
    (tmp_path / "answer.vot").write_text(content)
    check_votable(tmp_path / "answer.vot", True)  # what a download goes through


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_column_that_is_missing_is_named(name: str) -> None:
    content = write_any([one for one in NAMES if one != name], [row(1)])
    with pytest.raises(CatalogError, match=rf"answer has no column {name}$"):
        read_votable(content, "answer")


def test_an_overflow_is_told() -> None:
    """It stands after the table, behind an OK before it."""
    content = write_any(NAMES, [row(1)], overflow=True)
    assert content.index(b"</TABLE>") < content.index(b"OVERFLOW")
    table, overflow = read_votable(content, "answer")
    assert overflow
    assert len(table) == 1
    assert read_votable(content.replace(b"OVERFLOW", b"overflow"), "answer")[1]


@pytest.mark.parametrize("reason", ["Function CONTAINS not found", "two\n lines & <more>", ""])
def test_an_error_is_raised_with_its_reason(reason: str) -> None:
    with pytest.raises(CatalogError, match="answer: the catalog says:") as caught:
        read_votable(write_any(NAMES, [], error=reason), "answer")
    assert " ".join(reason.split()) in str(caught.value)
    assert "\n" not in str(caught.value)


def with_info(value: str, before: str) -> bytes:
    return PLAIN.replace(before, f'<INFO name="QUERY_STATUS" value="{value}">no joins</INFO>{before}', 1).encode()


PLACES = pytest.mark.parametrize("before", ["<RESOURCE", "<TABLE>", "<FIELD", "</TABLE>", "</RESOURCE>", "</VOTABLE>"])


@PLACES
def test_an_overflow_is_told_wherever_it_stands(before: str) -> None:
    table, overflow = read_votable(with_info("OVERFLOW", before), "answer")
    assert overflow
    assert table.to_pylist() == ROWS


@PLACES
def test_an_error_is_raised_with_its_reason_wherever_it_stands(before: str) -> None:
    with pytest.raises(CatalogError, match="answer: the catalog says: no joins"):
        read_votable(with_info("ERROR", before), "answer")


def test_an_error_without_a_resource_is_raised_with_its_reason() -> None:
    content = b'<VOTABLE><INFO name="QUERY_STATUS" value="ERROR">no joins</INFO></VOTABLE>'
    with pytest.raises(CatalogError, match="answer: the catalog says: no joins"):
        read_votable(content, "answer")


def test_an_error_behind_a_table_is_raised() -> None:
    content = write_any(NAMES, [row(1)], overflow=True).replace(b'"OVERFLOW"', b'"ERROR"')
    with pytest.raises(CatalogError, match="the catalog says"):
        read_votable(content, "answer")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the answer is empty"),
        (b"  \n", "the answer is empty"),
        (b"<html><b>503</b></html>", "503"),
        (b"Error executing query: x", "Error executing query: x"),
        (b"name,ra\n1,2\n", "name,ra"),
        (b"\xff\xfe\x00", "is not a VOTable"),
    ],
)
def test_something_else_than_a_votable_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(CatalogError, match="answer") as caught:
        read_votable(content, "answer")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_votable_without_a_table_is_refused() -> None:
    for content in (b"<VOTABLE/>", b"<VOTABLE><RESOURCE/></VOTABLE>", b"<VOTABLE><RESOURCE>"):
        with pytest.raises(CatalogError, match="answer is not a whole VOTable"):
            read_votable(content, "answer")


WHOLE = write_votable([row(number, name=f"2CXO J{number}") for number in range(4)])
END = WHOLE.rindex(b"</VOTABLE>")


@stable(150)
@given(st.floats(0, 1, exclude_max=True))
def test_an_answer_cut_short_anywhere_is_refused(place: float) -> None:
    with pytest.raises(CatalogError, match="answer"):
        read_votable(WHOLE[: int(place * END)], "answer")


@pytest.mark.parametrize("tag", [b"</TR>", b"</TABLEDATA>", b"</DATA>", b"</TABLE>", b"</RESOURCE>", b"</VOTABLE>"])
def test_an_answer_cut_between_its_elements_is_refused(tag: bytes) -> None:
    for cut in (WHOLE.rindex(tag), WHOLE.rindex(tag) + len(tag) - 1):
        with pytest.raises(CatalogError, match="answer is not a whole VOTable"):
            read_votable(WHOLE[:cut], "answer")


@stable(150)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_no_other_exception(place: float, value: int) -> None:
    content = bytearray(WHOLE)
    content[int(place * len(content))] = value
    try:
        table, _ = read_votable(bytes(content), "answer")
    except CatalogError:
        return
    assert table.schema.equals(SCHEMA)


STREAM = (
    "<VOTABLE><RESOURCE><TABLE><FIELD name='x' datatype='int'/><DATA><{}>{}</{}></DATA></TABLE></RESOURCE></VOTABLE>"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("how", ["plain", "entity"])
@pytest.mark.parametrize("form", ["BINARY", "BINARY2", "FITS"])
def test_rows_at_another_address_are_refused_and_not_opened(
    form: str, how: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments: opened.append(arguments))
    (tmp_path / "secret").write_bytes(bytes(8))
    stream = f"<STREAM href='{(tmp_path / 'secret').as_uri()}'/>"
    if how == "plain":
        text = STREAM.format(form, stream, form)
    else:
        hidden = stream.replace("STREAM", "STR&#69;AM").replace("<", "&#60;")
        text = f'<!DOCTYPE VOTABLE [<!ENTITY rows "{hidden}">]>{STREAM.format(form, "&rows;", form)}'
    comment = f"<!--{b'<VOTABLE'.decode('utf-16-le')}-->"  # in UTF-16 these bytes pass for a VOTable in ASCII
    with pytest.raises(CatalogError, match="answer has its rows at another address"):
        read_votable((comment + text).encode(encoding), "answer")
    assert not opened


def test_rows_in_a_stream_are_read() -> None:
    document = votable.parse(io.BytesIO(PLAIN.encode()))
    for form in ("binary", "binary2"):
        document.to_xml(content := io.BytesIO(), tabledata_format=form)
        assert b"<STREAM" in content.getvalue()
        assert read_votable(content.getvalue(), "answer")[0].to_pylist() == ROWS


def test_entities_that_grow_without_bounds_are_refused() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "lol"}">' for n in range(10))
    with pytest.raises(CatalogError, match="answer is not a whole VOTable"):
        read_votable(f"<!DOCTYPE VOTABLE [{entities}]><VOTABLE>&a9;</VOTABLE>".encode(), "answer")


def test_reading_warns_of_nothing(recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]) -> None:
    read_votable(WHOLE.replace(b'unit="deg"', b'unit="no such unit"'), "answer")
    assert len(recwarn) == 0
    assert capfd.readouterr() == ("", "")


def test_a_count_is_read() -> None:
    assert count_of(write_any(["count"], [{"count": 123456}]), "answer") == 123456


@pytest.mark.parametrize(
    "content",
    [
        write_any(["count"], []),
        write_any(["count"], [{"count": "many"}]),
        write_any(["count"], [{"count": None}]),
        b"",
        write_any([], [], error="no"),
        write_any([], []),
    ],
    ids=["no row", "text", "null", "empty", "error", "no column"],
)
def test_what_is_no_count_is_refused(content: bytes) -> None:
    with pytest.raises(CatalogError, match="answer"):
        count_of(content, "answer")


# --- planning ---

ids = st.tuples(st.integers(0, 30), st.integers(0, 1), st.integers(0, 3))
instruments = st.sampled_from(["ACIS", "ACIS", "acis-i", "HRC", "HRC-S", None])


@st.composite
def answers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Detections with their instrument, some of them under two or three sources."""
    rows = []
    for number, key in enumerate(draw(st.lists(ids, max_size=60, unique=True))):
        instrument = draw(instruments)
        names = [f"2CXO J{(number * 7 + n) % 11}{n}" for n in range(draw(st.sampled_from([1, 1, 1, 2, 3])))]
        rows += [row(*key, instrument=instrument, name=name) for name in names]
    return rows


@stable(100)
@given(rows=answers(), size=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_plan_covers_every_detection_once_and_knows_no_order(
    rows: list[dict[str, Any]], size: int, seed: int
) -> None:
    made = plan(from_rows(rows), size)
    keys = {tuple(one[key] for key in KEYS): one["instrument"] for one in rows}
    acis = sorted(key for key, instrument in keys.items() if not (instrument or "").startswith("HRC"))
    hrc = sorted(set(keys) - set(acis))
    assert [tuple(one[key] for key in KEYS) for one in made.catalog.to_pylist()] == acis
    assert [one for package in made.packages for one in package.detections] == [DetectionId(*key) for key in acis]
    assert [one.detection for one in made.rejections] == [DetectionId(*key) for key in hrc]
    assert {(one.stage, one.reason) for one in made.rejections} <= {("select", "not_acis")}
    assert all(re.match("HRC.* hardly resolves energy", one.message) for one in made.rejections)
    assert made.duplicates == len(rows) - len(keys)
    assert made.catalog.schema.equals(SCHEMA)
    listed = Counter(tuple(one[key] for key in KEYS) for one in rows)
    assert made.catalog["several_sources"].to_pylist() == [listed[key] > 1 for key in acis]
    assert made.catalog["name"].to_pylist() == [
        min(one["name"] for one in rows if tuple(one[key] for key in KEYS) == key) for key in acis
    ]
    start = 0
    for package in made.packages:
        assert package.start == start
        assert 1 <= len(package.detections) <= size
        start += len(package.detections)
    assert start == len(acis)
    assert [len(package.detections) for package in made.packages[:-1]] == [size] * (len(made.packages) - 1)

    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    again = plan(from_rows(shuffled), size)
    assert again.packages == made.packages
    assert again.rejections == made.rejections
    assert again.catalog.equals(made.catalog)


@stable(40)
@given(rows=answers(), limit=st.integers(1, 20))
def test_a_limit_takes_the_first_detections(rows: list[dict[str, Any]], limit: int) -> None:
    whole, part = plan(from_rows(rows), 3), plan(from_rows(rows), 3, limit)
    detections = sorted(
        [one.detection for one in whole.rejections] + [one for p in whole.packages for one in p.detections]
    )
    found = [one.detection for one in part.rejections] + [one for p in part.packages for one in p.detections]
    assert sorted(found) == detections[:limit]


def test_rows_that_differ_in_a_value_alone_give_one_plan_in_any_order() -> None:
    """A join can answer one detection of one source twice; which row stays must not depend on the answer's order."""
    rows = [row(1, name="2CXO J1", ra=10.0), row(1, name="2CXO J1", ra=20.0), row(1, name="2CXO J1", ra=None)]
    plans = [plan(from_rows(order)).catalog for order in (rows, rows[::-1], rows[1:] + rows[:1])]
    assert plans[0].equals(plans[1])
    assert plans[0].equals(plans[2])


def test_that_a_detection_has_several_sources_is_kept_by_a_catalog_of_the_plan() -> None:
    rows = [row(1, name="2CXO J1"), row(1, name="2CXO J2"), row(2, name="2CXO J3"), row(2, name="2CXO J3", ra=1.0)]
    planned = plan(from_rows([one | {"several_sources": None} for one in rows])).catalog
    assert planned["several_sources"].to_pylist() == [True, False]
    again, _ = read_votable(write_votable(planned.to_pylist()), "a mirror")
    assert plan(again).catalog.equals(planned)


def test_packages_are_of_fifty() -> None:
    made = plan(from_rows([row(number) for number in range(120)]))
    assert PACKAGE_SIZE == 50
    assert [len(package.detections) for package in made.packages] == [50, 50, 20]


def test_an_empty_answer_gives_an_empty_plan() -> None:
    made = plan(from_rows([]))
    assert (made.packages, made.rejections, made.duplicates, len(made.catalog)) == ((), (), 0, 0)


IMPOSSIBLE = [*((key, None) for key in KEYS), ("obsid", -1), ("obsid", 10**6), ("obi", 1000), ("region_id", 10**4)]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_a_row_that_names_no_detection_is_a_rejection_and_the_others_are_planned(key: str, value: int | None) -> None:
    made = plan(from_rows([row(1), row(2) | {key: value}, row(3)]))
    (rejection,) = made.rejections
    assert (rejection.stage, rejection.reason) == ("select", "no_detection")
    assert ("none" if value is None else str(value)) in str(rejection.detection)
    assert made.packages[0].detections == (DetectionId(1, 0, 1), DetectionId(3, 0, 1))


def test_the_key_of_a_package_is_of_its_detections_release_and_recipe() -> None:
    detections = (DetectionId(1, 0, 1), DetectionId(2, 0, 1))
    key = Package(0, detections).key("rel2.1", Recipe())
    assert key == Package(100, detections).key("rel2.1", Recipe())  # its place in the catalog is no part of it
    others = [
        Package(0, detections).key("rel2.0", Recipe()),
        Package(0, detections).key("rel2.1", Recipe(0.6)),
        Package(0, detections[:1]).key("rel2.1", Recipe()),
        Package(0, detections[::-1]).key("rel2.1", Recipe()),
        Package(0, (detections[0], DetectionId(2, 0, 2))).key("rel2.1", Recipe()),
    ]
    assert len({key, *others}) == 6
    assert all(len(one) == 32 for one in (key, *others))


def test_a_plan_of_chunked_tables_is_the_same() -> None:
    rows = [row(number % 7, 0, number) for number in range(30)]
    whole = from_rows(rows)
    pieces = pa.concat_tables([from_rows(rows[:11]), from_rows([]), from_rows(rows[11:])])
    assert plan(pieces).catalog.equals(plan(whole).catalog)
