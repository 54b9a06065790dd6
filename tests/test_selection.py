"""What a selection asks for, and what it keeps."""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from builder.archive.catalog import from_rows
from builder.dataset.catalog_file import read_detections
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CUTS, Settings
from builder.model.sky import Cone
from tests.fits_files import stable

# The way from a source to its detections, and the fixed part of the dataset's definition: CSC 2.1 TAP, the form of
# join that its parser is known to take.
CONDITIONS = [
    "m.name = a.name",
    "s.detect_stack_id = a.detect_stack_id",
    "s.region_id = a.region_id",
    "s.detect_stack_id = b.detect_stack_id",
    "s.region_id = b.region_id",
    "o.obsid = b.obsid",
    "o.obi = b.obi",
    "o.region_id = b.region_id",
    "a.match_type = 'u'",
    "o.flux_bb_aper_b IS NOT NULL",
]
TABLES = {
    "csc21.master_source m",
    "csc21.master_stack_assoc a",
    "csc21.stack_source s",
    "csc21.stack_observation_assoc b",
    "csc21.observation_source o",
}

ROW: dict[str, Any] = {
    "name": "2CXO J1",
    "ra": 10.0,
    "dec": 0.0,
    "obsid": 1,
    "obi": 0,
    "region_id": 2,
    "flux_bb_aper_b": 1e-14,
    "src_cnts_aper_b": 100.0,
    "flux_significance_b": 9.0,
    "theta": 1.0,
}


def query(selection: Selection) -> str:
    (text,) = selection.queries("csc21")
    return text


def conditions(text: str) -> list[str]:
    return text.partition(" WHERE ")[2].split(" AND ")


# --- settings ---


def test_the_default_cuts_are_the_largest_recommended_set() -> None:
    """Recommended cuts: 4000, 80, 1 for a short test; 40, 4, 10 for the largest set."""
    assert Settings().selection.as_dict() == {"min_cnts": 40.0, "min_sig": 4.0, "max_theta": 10.0}
    given = Settings(selection=Selection(min_sig=0, limit=3)).selection
    assert given == Selection(40, 0, 10, limit=3)


@pytest.mark.parametrize("where", [{"archive": "embedded"}, {"catalog": "cat.vot"}], ids=["embedded", "catalog file"])
@pytest.mark.parametrize("cuts", [{}, {"min_sig": 5}, DEFAULT_CUTS], ids=["none", "one", "the defaults"])
def test_what_is_listed_elsewhere_has_only_the_cuts_that_are_given(where: Any, cuts: dict[str, float]) -> None:
    selection = Settings(**where, selection=Selection(**cuts)).selection  # type: ignore[arg-type]
    assert selection.as_dict() == cuts
    left = [name for name in DEFAULT_CUTS if name not in cuts]
    passes_all = {"flux_bb_aper_b": 1.0, "src_cnts_aper_b": 1e9, "flux_significance_b": 1e9, "theta": 0.0}
    fails = {"min_cnts": {"src_cnts_aper_b": 0}, "min_sig": {"flux_significance_b": 0}, "max_theta": {"theta": 61}}
    for name, values in fails.items():
        assert selection.keeps(passes_all | values) == (name in left)


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf, "40", True, [40]], ids=repr)
@pytest.mark.parametrize("cut", ["min_cnts", "min_sig", "max_theta"])
def test_a_cut_that_is_no_number_from_0_up_is_refused(cut: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{cut} must be a number from 0 up"):
        Selection(**{cut: value})


@pytest.mark.parametrize("name", ["", "x'", "x' OR 'a' = 'a", "a;b", 'a"', "a,b", "2CXO J1(2)", "a\\"])
def test_a_name_that_could_end_its_quotes_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="is not a source's name"):
        Selection(names=("2CXO J004248.5+411521", name))


@pytest.mark.parametrize("blanks", ["", " ", "\t  "])
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
def test_a_designation_is_one_name_in_any_case_and_with_any_blanks(change: Any, blanks: str) -> None:
    selection = Selection(names=(f" {change('2CXO')}{blanks}{change('j004248.5+411521x')}",))
    assert selection.names == ("2CXO J004248.5+411521X",)
    assert selection.keeps(ROW | {"name": "2CXO J004248.5+411521X"})
    assert not selection.keeps(ROW | {"name": "2CXO J004248.5+411521"})
    assert not selection.keeps(ROW | {"name": None})
    assert "m.name IN ('2CXO J004248.5+411521X')" in query(selection)


def test_a_dash_of_print_is_the_sign_of_a_declination() -> None:
    assert Selection(names=("2CXO J000000.0\N{MINUS SIGN}000000",)).names == ("2CXO J000000.0-000000",)


@pytest.mark.parametrize("name", ["NGC 1365", "Sgr A*"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(name: str) -> None:
    with pytest.raises(SettingError, match="is not a source's name") as refused:
        Settings(selection=Selection(names=("2CXO J004248.5+411521", name)))
    assert f"SkyCoord.from_name({name!r})" in str(refused.value)
    assert "--cone" in str(refused.value) and "\n" not in str(refused.value)
    own = Settings(catalog="own.vot", selection=Selection(names=("NGC  1365",))).selection
    assert own.keeps(ROW | {"name": "NGC 1365"})


@pytest.mark.parametrize("obsid", [-1, 10**6])
def test_an_observation_out_of_range_is_refused(obsid: int) -> None:
    with pytest.raises(SettingError, match="is not an observation"):
        Selection(obsids=(1, obsid))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(SettingError, match="limit"):
        Selection(limit=limit)


def test_whole_numbers_are_the_same_cuts() -> None:
    assert Selection(40, 4, 10) == Selection(40.0, 4.0, 10.0)
    assert query(Selection(40, 4, 10)) == query(Selection(40.0, 4.0, 10.0))


def test_what_is_given_is_written_beside_the_data() -> None:
    detections = frozenset([DetectionId(2, 0, 1), DetectionId(10, 0, 1)])
    full = Selection(cone=Cone(1, 2, 3), names=("a",), obsids=(5,), detections=detections, limit=7).as_dict()
    assert full["cone"] == {"ra": 1, "dec": 2, "radius": 3}
    assert (full["names"], full["obsids"], full["limit"]) == (["a"], [5], 7)
    assert full["detections"]["number"] == 2
    other = Selection(detections=frozenset([DetectionId(2, 0, 1), DetectionId(10, 0, 2)])).as_dict()
    assert other["detections"]["sha256"] != full["detections"]["sha256"]


def test_the_digest_of_a_list_of_detections_knows_no_order() -> None:
    detections = [DetectionId(8 * number, 0, 1) for number in range(50)]
    lists = [frozenset(detections), frozenset(detections[::-1])]
    digests = [Selection(detections=one).as_dict()["detections"] for one in lists]
    text = "\n".join(map(str, detections))  # by obsid
    assert digests == [{"number": 50, "sha256": hashlib.sha256(text.encode()).hexdigest()}] * 2


# --- queries ---


def test_the_query_has_every_join_and_nothing_else_but_the_cuts() -> None:
    text = query(Selection(100, 5.5, 3))
    assert text.startswith("FROM ")
    assert set(text.removeprefix("FROM ").partition(" WHERE ")[0].split(", ")) == TABLES
    expected = [*CONDITIONS, "o.src_cnts_aper_b > 100.0", "o.flux_significance_b > 5.5", "o.theta < 3.0"]
    assert sorted(conditions(text)) == sorted(expected)


@stable(100)
@given(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 1e12))
def test_cuts_are_written_without_loss(counts: float, significance: float, theta: float) -> None:
    found = dict(
        re.findall(
            r"o\.(src_cnts_aper_b|flux_significance_b|theta) [<>] (\S+)", query(Selection(counts, significance, theta))
        )
    )
    assert {name: float(text) for name, text in found.items()} == {
        "src_cnts_aper_b": counts,
        "flux_significance_b": significance,
        "theta": theta,
    }


@pytest.mark.parametrize("number", [1, 100, 101, 250])
def test_long_lists_are_asked_for_in_parts(number: int) -> None:
    """The service drops the connection on very long lists; each value is asked for exactly once."""
    for selection, pattern in (
        (Selection(names=tuple(f"2CXO J{n}" for n in range(number))), r"m\.name IN \((.*)\)$"),
        (Selection(obsids=tuple(range(number))), r"o\.obsid IN \((.*)\)$"),
        (Selection(detections=frozenset(DetectionId(n, 0, 1) for n in range(number))), r"o\.obsid IN \((.*)\)$"),
    ):
        parts = list(selection.queries("csc21"))
        assert len(parts) == -(-number // 100)
        lists = [re.search(pattern, part)[1].split(", ") for part in parts]  # type: ignore[index]
        assert max(map(len, lists)) <= 100
        asked = [value for one in lists for value in one]
        assert len(asked) == len(set(asked)) == number
        for part in parts:
            assert set(CONDITIONS) <= set(conditions(part))


# --- what is kept ---

ALL_CUTS = {"flux": 1e-14, "counts": 100.0, "significance": 9.0, "theta": 1.0, "selection": Selection(40, 4, 10)}
"""A row that passes all cuts."""

values = st.one_of(st.none(), st.floats(-10, 200), st.sampled_from([40.0, 4.0, 10.0, 0.0]))


@stable(300)
@given(
    flux=values,
    counts=values,
    significance=values,
    theta=values,
    selection=st.builds(
        Selection, st.none() | st.floats(0, 100), st.none() | st.floats(0, 10), st.none() | st.floats(0, 20)
    ),
)
@example(**ALL_CUTS)
@example(**ALL_CUTS | {"flux": None})  # and those where one null decides
@example(**ALL_CUTS | {"counts": None})
@example(**ALL_CUTS | {"significance": None})
@example(**ALL_CUTS | {"theta": None})
def test_keeps_is_what_sql_would_keep(
    flux: float | None, counts: float | None, significance: float | None, theta: float | None, selection: Selection
) -> None:
    """The same conditions, evaluated by SQLite, whose nulls are SQL's."""
    row = ROW | {"flux_bb_aper_b": flux, "src_cnts_aper_b": counts, "flux_significance_b": significance, "theta": theta}
    cuts = [one for one in conditions(query(selection)) if one.startswith("o.") and " = " not in one]
    assert len(cuts) == 1 + len(selection.as_dict())
    names = ["flux_bb_aper_b", "src_cnts_aper_b", "flux_significance_b", "theta"]
    with sqlite3.connect(":memory:") as connection:
        connection.execute(f"CREATE TABLE o ({', '.join(names)})")
        connection.execute("INSERT INTO o VALUES (?, ?, ?, ?)", [row[name] for name in names])
        (found,) = connection.execute(f"SELECT COUNT(*) FROM o WHERE {' AND '.join(cuts)}").fetchone()
    connection.close()
    assert selection.keeps(row) == bool(found)
    known = {name: row[name] for name in names if row[name] is not None}
    assert selection.keeps(row, nulls=True) == selection.keeps(
        ROW | {"src_cnts_aper_b": 1e9, "flux_significance_b": 1e9, "theta": -1.0} | known
    )


def test_lists_and_the_cone_all_have_to_agree() -> None:
    assert Selection(
        names=("2CXO J1",), obsids=(1,), detections=frozenset([DetectionId(1, 0, 2)]), cone=Cone(10, 0, 1)
    ).keeps(ROW)
    for other in (
        Selection(names=("2CXO J2",)),
        Selection(obsids=(2,)),
        Selection(cone=Cone(12, 0, 1)),
        Selection(detections=frozenset([DetectionId(1, 0, 3)])),
    ):
        assert not other.keeps(ROW)


@pytest.mark.parametrize("missing", ["ra", "dec"])
def test_a_row_without_a_position_is_in_no_cone(missing: str) -> None:
    row = ROW | {missing: None}
    assert Selection().keeps(row)
    for nulls in (False, True):
        assert not Selection(cone=Cone(10, 0, 180)).keeps(row, nulls=nulls)


# --- cones ---


@pytest.mark.parametrize(
    ("text", "cone"),
    [
        ("83.82,-5.39,0.2", Cone(83.82, -5.39, 0.2)),
        ("0, +90, 1e-3", Cone(0, 90, 1e-3)),
        ("23:19:29.3,+00:35:57,1arcmin", Cone(15 * (23 + 19 / 60 + 29.3 / 3600), 35.95 / 60, 1 / 60)),
        ("23h19m29.3s, -0d35m57s, 30 arcsec", Cone(15 * (23 + 19 / 60 + 29.3 / 3600), -35.95 / 60, 30 / 3600)),
        ("01 00 00, -10:30:00, 0.5deg", Cone(15, -10.5, 0.5)),
        ("15deg,10.5,1'", Cone(15, 10.5, 1 / 60)),
    ],
)
def test_a_cone_is_read_from_text(text: str, cone: Cone) -> None:
    found = Cone.parse(text)
    assert (found.ra, found.dec, found.radius) == pytest.approx((cone.ra, cone.dec, cone.radius), rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,2",
        "1,2,3,4",
        "a,b,c",
        "360,0,1",
        "-1,0,1",
        "0,91,1",
        "0,0,0",
        "0,0,-1",
        "0,0,181",
        "nan,0,1",
        "0,0,inf",
        "24:10:00,0,1",
        "1:70:00,0,1",
        "0,0,1kpc",
    ],
)
def test_what_is_no_cone_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="cone"):
        Cone.parse(text)


def in_box(cone: Cone, ra: float, dec: float) -> bool:
    """The query's conditions, evaluated by SQLite."""
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE m (ra DOUBLE, dec DOUBLE)")
        connection.execute("INSERT INTO m VALUES (?, ?)", [ra, dec])
        (found,) = connection.execute(f"SELECT COUNT(*) FROM m WHERE {' AND '.join(cone.conditions)}").fetchone()
    connection.close()
    return bool(found)


def offset(cone: Cone, angle: float, distance: float) -> tuple[float, float]:
    """The position at a position angle and a distance from the centre, both in radians."""
    lat, lon = math.radians(cone.dec), math.radians(cone.ra)
    sine = math.sin(lat) * math.cos(distance) + math.cos(lat) * math.sin(distance) * math.cos(angle)
    other = math.asin(max(-1.0, min(1.0, sine)))
    east = math.atan2(math.sin(angle) * math.sin(distance) * math.cos(lat), math.cos(distance) - math.sin(lat) * sine)
    return math.degrees(lon + east) % 360, math.degrees(other)


cones = st.builds(
    Cone,
    st.one_of(st.floats(0, 360, exclude_max=True), st.sampled_from([0.0, 1e-9, 359.999999])),
    st.one_of(st.floats(-90, 90), st.sampled_from([0.0, 89.9, -89.99, 90.0, -90.0])),
    st.one_of(st.floats(1e-4, 2), st.floats(1e-4, 180)),
)


@stable(400)
@given(cone=cones, angle=st.floats(0, 2 * math.pi), share=st.floats(0, 2))
@example(Cone(0.0, 80.0, 5.0), 1.2, 1.0)
@example(Cone(0.0, 89.0, 1.5), math.pi, 0.9)
def test_the_box_holds_the_cone_and_the_cone_goes_by_true_separation(cone: Cone, angle: float, share: float) -> None:
    distance = share * cone.radius
    assume(distance <= 180)
    ra, dec = offset(cone, angle, math.radians(distance))
    if share < 0.999:
        assert cone.holds(ra, dec)
    elif share > 1.001:
        assert not cone.holds(ra, dec)
    if cone.holds(ra, dec):
        assert in_box(cone, ra, dec)


@pytest.mark.parametrize(
    ("cone", "inside", "outside"),
    [
        (Cone(359.9, 0, 0.3), [(0.1, 0.0), (359.7, 0.1)], [(0.3, 0.0), (180.0, 0.0)]),
        (Cone(0.1, 0, 0.3), [(359.9, 0.0), (0.3, 0.1)], [(359.7, 0.0)]),
        (Cone(10, 89.9, 0.3), [(190.0, 89.9), (10.0, 89.7)], [(190.0, 89.7)]),
        (Cone(10, -90, 1), [(0.0, -89.5), (200.0, -89.5)], [(0.0, -88.9)]),
        (Cone(10, 60, 1), [(11.9, 60.0)], [(12.1, 60.0)]),
    ],
    ids=["wrap", "wrap back", "pole", "on the pole", "cos dec"],
)
def test_cones_over_the_wrap_and_the_poles(
    cone: Cone, inside: list[tuple[float, float]], outside: list[tuple[float, float]]
) -> None:
    for position in inside:
        assert cone.holds(*position)
        assert in_box(cone, *position)
    for position in outside:
        assert not cone.holds(*position)


# --- lists of detections ---


def test_a_list_of_detections_with_comments_and_cycles(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# mine\n4938.0.43\n\n  7867.0.2  # the other\n1575.1.85.e1\n1575.1.85.e2\n4938.0.43\n")
    assert read_detections(path) == {DetectionId(4938, 0, 43), DetectionId(7867, 0, 2), DetectionId(1575, 1, 85)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no detections"),
        (b"# none\n\n", "holds no detections"),
        (b"1.0.1\nx\n", "line 2.*'x'"),
        (b"\xff\xfe1", "cannot read"),
    ],
)
def test_a_list_that_is_not_one_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=rf"(?s)list\.txt.*{words}|{words}.*list\.txt"):
        read_detections(path)


def test_a_list_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf1.0.1\r\n2.0.3\r\n")
    assert read_detections(tmp_path / "list.txt") == {DetectionId(1, 0, 1), DetectionId(2, 0, 3)}


def test_what_is_asked_for_one_by_one_and_not_there_is_named() -> None:
    detections = frozenset([DetectionId(1, 0, 2), DetectionId(1, 0, 3)])
    selection = Selection(names=("2CXO  J1 ", "2CXO J2"), obsids=(1, 7), detections=detections)
    assert selection.not_in(from_rows([ROW])) == ["1.0.3", "observation 7", "source '2CXO J2'"]
    assert Selection().not_in(from_rows([ROW])) == []


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.txt"):
        read_detections(tmp_path / "none.txt")
