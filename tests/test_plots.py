"""Drawings of single spectra: what they show, and one clear line for what is not there."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot

from builder.dataset.pictures import merged_bins
from builder.dataset.read import read_rows, read_scalars
from builder.files import write_whole
from builder.model.errors import OutputError, SettingError
from builder.use.plot import MOST, binned_counts, check_number, plot, save_plot, terminal_plot, title
from tests import fits_files as ff
from tests.runs import command

REAL = "4938.0.43"
mpl.use("Agg")


@pytest.fixture(scope="module")
def rows(sample: Path) -> list[dict[str, Any]]:
    table = read_scalars(sample, ["detection_id", "source_counts"]).sort_by("source_counts")
    return read_rows(sample, table["detection_id"].to_pylist())


def texts(path: Path) -> list[str]:
    """What is written in a drawing: matplotlib leaves each text as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_no_count_is_lost_or_counted_twice_in_the_bins(sample: Path, rows: list[dict[str, Any]]) -> None:
    assert len(rows) == 62
    for row, (counts, background) in zip(rows, binned_counts(sample, rows), strict=True):
        assert counts.shape == background.shape == (row["n_bins"],)
        assert counts.sum() == row["source_counts"]
        assert background.sum() == pytest.approx(row["background_counts_total"] * row["background_scale"])
        assert (counts[:-1] >= 5).all()  # that is how they were grouped; the last may be what is left


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_a_drawing_is_of_its_ending_and_the_same_each_time_and_names_no_version(
    sample: Path, rows: list[dict[str, Any]], tmp_path: Path, ending: str, magic: bytes
) -> None:
    first, second = tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
    for path in (first, second):
        save_plot(sample, rows[:1], path)
    assert first.read_bytes().startswith(magic)
    assert first.read_bytes() == second.read_bytes()
    assert not re.search(rb"Software|CreationDate|Creator|Producer|dc:date", first.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1.{ending}", f"2.{ending}"]


def test_one_spectrum_is_headed_by_name_observation_exposure_and_counts(sample: Path, tmp_path: Path) -> None:
    save_plot(sample, read_rows(sample, [REAL]), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    assert "2CXO J231929.3+003557, 4938.0.43, 50.5 ks, 1,669 counts" in said
    for words in ("energy (keV)", "counts / s / keV", "counts in the bin", "source region", "background × 0.0658"):
        assert words in said


def test_several_spectra_lie_over_each_other_with_a_line_each_in_the_legend(
    sample: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    save_plot(sample, rows[-3:], tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    for row in rows[-3:]:
        assert sum(f"{row['name']}, {row['detection_id']}, " in text for text in said) == 1
    assert "3 spectra of 3 sources" in said
    assert "counts in the bin" not in said


def test_names_are_written_as_they_are_in_one_line_and_none_is_left_out(
    sample: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    names = {r"a$b_{c}^\frac$ x": r"a$b_{c}^\frac$ x, ", "_ of\ntwo\t lines": "_ of two lines, ", None: ""}
    named = [{**row, "name": name} for row, name in zip(rows[-3:], names, strict=True)]
    titles = [f"{begin}{row['detection_id']}, " for begin, row in zip(names.values(), named, strict=True)]
    for row, begin in zip(named, titles, strict=True):
        assert title(row).startswith(begin)
        save_plot(sample, [row], tmp_path / "one.svg")
        assert title(row) in texts(tmp_path / "one.svg")
    save_plot(sample, named, tmp_path / "all.svg")
    said = texts(tmp_path / "all.svg")
    assert [text for text in said if text.endswith(" counts")] == [title(row) for row in named]
    assert "3 spectra" in said
    save_plot(sample, named[:2], tmp_path / "all.svg")
    assert "2 spectra of 2 sources" in texts(tmp_path / "all.svg")


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_row_of_the_dataset_is_drawn_into_axes_of_its_own_or_given_ones(sample: Path, form: Any) -> None:
    row = load_dataset(str(sample), split="train").with_format(form)[0]
    axes = plot(row)
    assert axes.get_title() == "2CXO J231929.3+003557, 4938.0.43, 50.5 ks, 1,669 counts"
    steps: Any = axes.patches[0]
    values, edges, _ = steps.get_data()
    np.testing.assert_allclose(values, row["spectrum"]["flux"])
    assert edges[0] == pytest.approx(0.511) and axes.get_xlim()[0] < 0.511
    given = pyplot.figure().subplots(1, 2)[1]
    assert plot({name: row[name] for name in ("detection_id", "spectrum")}, given) is given
    assert given.patches and not given.get_title()
    pyplot.close("all")
    with pytest.raises(SettingError, match="no spectrum in the row: give a row of config spectra"):
        plot({"detection_id": "1.0.1"})


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(5.5, 8, {"6", "7", "8"}), (2.2, 4.5, {"3", "4"}), (0.5, 8, {"0.5", "1", "2", "5"})]
)
def test_the_energies_are_numbered_whatever_is_kept_of_them(
    sample: Path, rows: list[dict[str, Any]], tmp_path: Path, low: float, high: float, ticks: set[str]
) -> None:
    row = copy.deepcopy(rows[-1])
    bins = row["spectrum"]
    kept = (bins["ene_low_bin"] >= low) & (bins["ene_high_bin"] <= high)
    row["spectrum"] = {name: np.asarray(values)[kept] for name, values in bins.items()}
    save_plot(sample, [row], tmp_path / "a.svg")
    assert ticks <= set(texts(tmp_path / "a.svg"))


def test_the_terminal_says_how_many_bins_it_leaves_out(rows: list[dict[str, Any]]) -> None:
    row = copy.deepcopy(rows[-1])
    row["spectrum"]["flux"] = np.abs(row["spectrum"]["flux"]) + 1e-6
    assert "left out" not in terminal_plot(row)
    row["spectrum"]["flux"][[1, 3, 4]] = (0, -1, -2)
    assert terminal_plot(row).splitlines()[-1] == f"left out: 3 of {row['n_bins']:,} bins, not above zero"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_terminal_is_as_wide_as_the_plot(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert max(map(len, terminal_plot(rows[-1]).splitlines())) == columns


def test_a_single_bin_is_drawn_in_the_terminal(rows: list[dict[str, Any]]) -> None:
    row = copy.deepcopy(rows[-1])
    row["spectrum"] = {name: np.abs(np.asarray(values)[:1]) for name, values in row["spectrum"].items()}
    assert "keV" in terminal_plot(row)


@pytest.mark.parametrize("rate", [-1.0, 0.0])
def test_a_spectrum_that_is_nowhere_above_zero_is_drawn_all_the_same(
    sample: Path, rows: list[dict[str, Any]], tmp_path: Path, rate: float
) -> None:
    row = copy.deepcopy(rows[0])
    row["spectrum"]["flux"] = np.full(row["n_bins"], rate)
    for number, error in enumerate((0.5, 2.0)):
        row["spectrum"]["flux_error"] = np.full(row["n_bins"], error)
        save_plot(sample, [row], tmp_path / f"{number}.png")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()  # the errors' upper ends are seen
    assert "no bin is above zero" in terminal_plot(row)


def test_more_spectra_than_can_be_told_apart_are_refused() -> None:
    assert len(check_number(["1.2.3"] * MOST)) == MOST
    with pytest.raises(SettingError, match="13 spectra cannot be told apart"):
        check_number(["1.2.3"] * (MOST + 1))


def test_what_cannot_be_written_leaves_nothing_behind(sample: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*a\.png"):
        save_plot(sample, rows[:1], tmp_path / "a.png")
    for error in (ValueError, KeyboardInterrupt):
        with contextlib.suppress(error), write_whole(tmp_path / "b.png") as partial:
            partial.write_bytes(b"half")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_drawing_within_the_prepared_folder_is_refused(sample: Path, rows: list[dict[str, Any]]) -> None:
    picture = sample / "images" / "spectra.png"
    before = sorted(sample.rglob("*")), picture.read_bytes()
    for path in (picture, sample / "new.png", sample / "data" / ".." / "new.png"):
        with pytest.raises(OutputError, match=r"\.png would lie in the prepared folder"):
            save_plot(sample, rows[:1], path)
    assert (sorted(sample.rglob("*")), picture.read_bytes()) == before


@given(st.lists(st.tuples(st.floats(0.01, 0.5), st.floats(-1, 30), st.floats(0.1, 9)), min_size=1, max_size=60))
@ff.stable(100)
def test_bins_are_put_together_until_they_stand_out_and_no_count_is_lost(
    bins: list[tuple[float, float, float]],
) -> None:
    width, rate, error = (np.array(values) for values in zip(*bins, strict=True))
    edges = 0.5 + np.cumsum([0, *width])
    begin, (low, high, merged, spread) = merged_bins(edges[:-1], edges[1:], rate, error)
    assert begin[0] == 0 and (np.diff(begin) > 0).all()
    assert low[0] == edges[0] and high[-1] == edges[-1] and np.array_equal(low[1:], high[:-1])
    assert np.sum(merged * (high - low)) == pytest.approx(np.sum(rate * width), abs=1e-9)
    assert np.sum((spread * (high - low)) ** 2) == pytest.approx(np.sum((error * width) ** 2))
    for number in range(begin.size - 1):  # each ends since it stands out, or the next bin would make it too wide
        wide = edges[begin[number + 1] + 1] > 1.25 * low[number]
        assert merged[number] >= 3 * spread[number] * (1 - 1e-9) or wide


def test_prepare_proposes_info_and_plot_first_and_says_what_they_need(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "chandra_spectra").symlink_to(sample)
    done = command("prepare", "--archive", "embedded", "--splits", "none", "--workers", 1, cwd=tmp_path)
    steps = [line.strip() for line in done.stdout.partition("Next:")[2].splitlines()]
    steps = steps[steps[0].startswith(". ") :]  # the activation, where this shell needs it
    assert steps[:2] == [
        "chandra-spectra info ./chandra_spectra",
        f"chandra-spectra plot ./chandra_spectra --detection {REAL}",
    ]
    assert steps[2].startswith("python -c")


# the command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which spectra: --detection"),
        (["--detection", "1.2.3"], "no row 1.2.3"),
        (["--detection", "Vega"], "'Vega' is not a detection"),
        (["--detection", REAL, "--name", "Vega"], "no source 'Vega'"),
        (["--detection", REAL, "-o", "spectrum.gif"], "ends in .png, .pdf or .svg"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_line(sample: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = command("plot", sample, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_into_a_file_or_into_the_terminal(sample: Path, tmp_path: Path) -> None:
    result = command("plot", sample, "--detection", REAL, "-o", tmp_path / "a.png")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"1 spectrum drawn to {tmp_path / 'a.png'}\n"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = command("plot", sample, "--name", "2CXO J231929.3+003557")
    assert "2CXO J231929.3+003557, 4938.0.43, 50.5 ks, 1,669 counts" in drawn.stdout
    assert "(counts/s/keV)" in drawn.stdout and "(keV)" in drawn.stdout
    assert re.search("[\u2801-\u28ff]", drawn.stdout)  # Braille dots are what it is drawn with


def test_info_is_aligned_and_has_the_numbers_of_each_split(full_sample: Path) -> None:
    lines = command("info", full_sample, "--detection", REAL).stdout.splitlines()
    split = read_scalars(full_sample, ["split"])["split"].to_pylist()
    table = [line for line in lines if re.match(r"(rows|  train|  validation|  test|observations|rejected) ", line)]
    assert len(table) == 6
    assert len({re.search(r"[\d,]+(?= )", line).end() for line in table}) == 1  # type: ignore[union-attr]
    for name in ("train", "validation", "test"):
        assert any(re.match(rf"  {name} +{split.count(name)} ", line) for line in table)
    assert any(re.match(r"exposure +\d+\.\d+ +Ms ", line) for line in lines)
    assert f"Next:  chandra-spectra report {full_sample}" in lines
