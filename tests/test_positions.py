"""Positions of one's own: how they are read, and which sources they match."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import assume, example, given
from hypothesis import strategies as st

from builder.archive.matching import match_positions
from builder.dataset.layout import Manifest
from builder.dataset.positions import read_positions
from builder.dataset.words import command_line
from builder.model.errors import SettingError
from builder.model.selection import DEFAULT_RADIUS, Selection
from builder.model.settings import Settings
from builder.model.sky import Position, radius_of, separation
from builder.prepare import prepare
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from builder.workspace import make_plan, open_workspace
from tests.fits_files import stable
from tests.runs import command

pytestmark = pytest.mark.usefixtures("without_pictures")

VELA = Position(349.8720833333333, 0.5991666666666667, "mine")


# --- lists ---


def test_lines_of_positions_have_names_or_none(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "# mine\n23:19:29.3 +00:35:57 mine\n\n349.8720833333333, 0.5991666666666667, mine  # again\n"
        "10 -20\n-10,5\n23h19m29.3s 0d35m57s NGC 1365\n"
    )
    found = read_positions(tmp_path / "list.txt")
    assert [place.name for place in found] == ["mine", "mine", "", "", "NGC 1365"]
    for place in (found[0], found[1], found[4]):
        assert place[:2] == pytest.approx(VELA[:2], rel=1e-12)
    assert found[2:4] == (Position(10, -20), Position(350, 5))


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "vot", "parquet"])
def test_a_table_in_any_format_gives_the_same_positions(ending: str, tmp_path: Path) -> None:
    table = Table({"Name": ["mine", ""], "RA": [VELA.ra, 10.0], "Dec": [VELA.dec, -20.0], "flux": [1.0, 2.0]})
    path = tmp_path / f"list.{ending}"
    table.write(path, **({"format": "votable"} if ending == "vot" else {}))
    assert read_positions(path) == (VELA, Position(10, -20))


def test_a_column_has_its_own_unit_and_text_is_sexagesimal(tmp_path: Path) -> None:
    table = Table({"RAJ2000": ["23 19 29.3"], "DEJ2000": [0.5991666666666667 * 3600], "_RAJ2000": [1.0]})
    table["DEJ2000"].unit = "arcsec"
    table.write(tmp_path / "list.ecsv")
    (found,) = read_positions(tmp_path / "list.ecsv")
    assert found[:2] == pytest.approx(VELA[:2], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.txt", "", "holds no positions"),
        ("list.txt", "# none\n", "holds no positions"),
        ("list.txt", "1 2\nNGC 1365\n", "line 2: NGC 1365 is not a position"),
        ("list.txt", "1\n", "line 1: 1  is not a position"),
        ("list.txt", "05 35 17.3 -05 23 28\n", "line 1: write a sexagesimal position as 05:35:17.3"),
        ("list.txt", "1 91\n", "line 1"),
        ("list.txt", "nan 0\n", "line 1"),
        ("list.csv", "ra,x\n1,2\n", "has no columns ra and dec; it has ra, x"),
        ("list.csv", "ra,dec\n1,2\n,3\n", "row 2: None 3"),
        ("list.fits", "no FITS", "cannot read positions from"),
        ("none.csv", None, "cannot read positions from"),
        ("none.txt", None, "cannot read positions from"),
    ],
)
def test_a_list_that_is_not_one_is_refused_in_one_line(
    name: str, content: str | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingError, match=re.escape(words)) as refused:
        read_positions(tmp_path / name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


def test_a_masked_or_unknown_place_is_refused(tmp_path: Path) -> None:
    for number, column in enumerate((MaskedColumn([1.0, 2.0], mask=[False, True]), [1.0, math.nan])):
        Table({"ra": column, "dec": [1.0, 2.0]}).write(tmp_path / f"{number}.fits")
        with pytest.raises(SettingError, match="row 2"):
            read_positions(tmp_path / f"{number}.fits")


# --- matches ---

places = st.tuples(
    st.one_of(st.sampled_from([0.0, 1e-5, 359.9999, 180.0]), st.floats(0, 360, exclude_max=True)),
    st.one_of(st.sampled_from([0.0, 89.9999, 90.0, -90.0, -89.99]), st.floats(-90, 90)),
)


@stable(200)
@given(here=st.lists(places, min_size=1, max_size=5), there=st.lists(places, max_size=8), radius=st.floats(1e-4, 30))
@example([(0.0, 0.0)], [(359.9999, 0.0), (0.001, 0.0)], 0.01)
@example([(10.0, 89.9999)], [(190.0, 89.9999), (10.0, 89.99)], 0.01)
@example([(0.0, 90.0)], [(123.0, 89.9999)], 0.01)
def test_the_match_is_the_nearest_of_all_within_the_radius(
    here: list[tuple[float, float]], there: list[tuple[float, float]], radius: float
) -> None:
    sources = [(str(number), *place) for number, place in enumerate(dict.fromkeys(there))]
    matches = match_positions([Position(*place) for place in here], radius, sources)
    for place, match in zip(here, matches, strict=True):
        near = sorted(distance for s in sources if (distance := separation(*place, *s[1:])) <= radius)
        assert match.separation == (near[0] if near else None)
        assert match.others == max(0, len(near) - 1)
        assert (match.source is None) == (not near)
        if match.source is not None:
            assert separation(*place, *match.source[1:]) == near[0]


@stable(100)
@given(here=st.lists(places, min_size=1, max_size=60, unique=True), angle=st.floats(0, 2 * math.pi))
def test_the_boxes_of_the_queries_hold_all_that_may_match(here: list[tuple[float, float]], angle: float) -> None:
    selection = Selection(100, positions=tuple(Position(*place) for place in here), radius=0.01)
    queries = list(selection.queries("csc21"))
    assert len(queries) == -(-len(here) // 25)
    assert not any("src_cnts" in query or " IN " in query for query in queries)  # the nearest may be a faint one
    wheres = [query.partition("o.region_id = b.region_id AND ")[2] for query in queries]
    ra, dec = here[-1]
    other = dec + 0.0099 * math.cos(angle)
    assume(abs(other) < 90)
    east = (ra + 0.0099 * math.sin(angle) / max(math.cos(math.radians(dec)), 1e-9)) % 360
    assume(separation(ra, dec, east, other) < 0.01)
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE m (ra DOUBLE, dec DOUBLE)")
        connection.execute("INSERT INTO m VALUES (?, ?)", [east, other])
        assert any(connection.execute(f"SELECT COUNT(*) FROM m WHERE {where}").fetchone()[0] for where in wheres)
    connection.close()


@stable(50)
@given(st.one_of(st.sampled_from([2 / 3600, 1 / 60, 1 / 3, 0.1, 1.0]), st.floats(1e-9, 180)))
def test_the_radius_on_the_card_is_read_back_as_the_same_number(radius: float) -> None:
    selection = Selection(positions=((1.0, 2.0),), radius=radius)  # type: ignore[arg-type]
    words = shlex.split(command_line(Settings("embedded", selection=selection)).replace("\\\n", " "))
    assert radius_of(words[words.index("--radius") + 1]) == radius


def test_a_radius_needs_positions_and_a_unit() -> None:
    assert Selection(positions=(VELA,)).radius == DEFAULT_RADIUS
    with pytest.raises(SettingError, match="a radius goes with positions"):
        Selection(radius=1)
    with pytest.raises(SettingError, match="RADIUS"):
        Selection(positions=(VELA,), radius=0.0)
    for text in ("2", "2parsec", ""):
        done = command("catalog", "x.vot", "--archive", "embedded", "--radius", text, "--positions", __file__)
        assert done.returncode == 1 and done.stderr.count("\n") == 1


# --- from the command to the folder, here and over HTTP ---


def test_positions_are_matched_and_told_and_the_folder_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,ra,dec\nVela,23:19:29.3,+00:35:57\nlost,10,20\n,349.8721,0.59917\n")
    words = ("--archive", "embedded", "--positions", tmp_path / "mine.csv", "--radius", "3arcsec")
    shown = command("catalog", tmp_path / "chosen.vot", *words)
    assert "Vela                2CXO J231929.3+003557    0.66           1" in shown.stdout
    assert re.search(r"^lost +none$", shown.stdout, re.M)
    assert shown.stderr == "chandra-spectra: embedded has no source within 3 arcsec of 1 position: lost\n"

    done = command("prepare", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^positions +2 +of 3 with detections; 2 with a source", done.stdout, re.M)
    with (tmp_path / "out" / "positions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["match"], row["detections"]) for row in rows] == [
        ("Vela", "2CXO J231929.3+003557", "1"),
        ("lost", "", "0"),
        ("", "2CXO J231929.3+003557", "1"),
    ]
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.catalog["positions"] == {"number": 3, "matched": 2, "selected": 2}
    settings = manifest.read_settings(tmp_path / "out")
    assert settings.selection.as_dict() == manifest.settings["selection"]
    assert not prepare(tmp_path / "out", settings).fresh
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--positions positions.csv \\\n  --radius 3arcsec" in card
    assert command("verify", tmp_path / "out").returncode == 0


def test_the_nearest_source_is_taken_even_where_its_detections_are_cut_away(tmp_path: Path, caplog: Any) -> None:
    archive = SimulatedArchive(60, seed=1)
    by_name = {row["name"]: row for row in archive.rows if row["flux_bb_aper_b"] is not None}
    faint, bright = sorted(by_name.values(), key=lambda row: row["src_cnts_aper_b"])[:: len(by_name) - 1]
    selection = Selection(
        min_cnts=bright["src_cnts_aper_b"] - 1,
        min_sig=0,
        max_theta=60,
        positions=(
            Position(faint["ra"], faint["dec"], "faint"),
            Position(bright["ra"] + 1e-4, bright["dec"], "bright"),
            Position(bright["ra"], -bright["dec"], "lost"),
        ),
        radius=0.001,
    )
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, selection=selection)
        planned = make_plan(open_workspace(settings, tmp_path), settings)
    found = [(match.position.name, match.source and match.source[0], match.detections) for match in planned.matches]
    assert found[0] == ("faint", faint["name"], 0)
    assert found[1][:2] == ("bright", bright["name"]) and found[1][2] == len(planned.catalog) > 0
    assert found[2] == ("lost", None, 0)
    assert planned.duplicates == 0
    assert "no source within 3.6 arcsec of 1 position: lost" in caplog.text
    assert "no detection passes all cuts of the source of 1 position: faint" in caplog.text


def test_hundreds_of_positions_are_asked_for_in_boxes_that_may_overlap(tmp_path: Path) -> None:
    archive = SimulatedArchive(300, seed=2)
    rows = [row for row in archive.rows if row["flux_bb_aper_b"] is not None]
    positions = tuple(Position(row["ra"], row["dec"] + 1e-5, str(number)) for number, row in enumerate(rows[:150]))
    settings = {"min_cnts": 0, "min_sig": 0, "max_theta": 60}
    with ArchiveServer(archive) as server:
        asked = Settings(server.url, selection=Selection(**settings, positions=positions, radius=0.2))  # type: ignore[arg-type]
        planned = make_plan(open_workspace(asked, tmp_path), asked)
    assert planned.duplicates == 0
    assert {match.source and match.source[0] for match in planned.matches} == {row["name"] for row in rows[:150]}
    assert all(match.detections for match in planned.matches)
    assert json.dumps(asked.as_dict())


def test_positions_without_any_source_end_the_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("10 20 lost\n")
    done = command("prepare", tmp_path / "out", "--archive", "embedded", "--positions", tmp_path / "list.txt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "embedded has no source within 2 arcsec of 1 position: lost" in done.stderr
