"""The command: what it prints, and one clear line for whatever is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from datasets import load_dataset

from builder import __version__
from builder.archive.catalog import from_rows
from builder.archive.packages import plan
from builder.cli.app import local
from builder.cli.run import app
from builder.model.errors import SettingError
from builder.model.settings import Settings
from tests.runs import command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--min-cnts", "-1"], "min_cnts must be a number from 0 up"),
        (["--min_sig", "nan"], "min_sig must be a number from 0 up"),
        (["--archive", "nowhere"], "no such folder"),
        (["--release", "rel9"], "unknown release 'rel9'"),
        (["--energy-min", "9"], "energy range"),
        (["--group-counts", "0"], "min_counts"),
    ],
)
def test_a_wrong_option_is_one_clear_line_and_leaves_nothing_behind(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    result = command("prepare", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_every_path_of_every_command_is_one_of_this_machine() -> None:
    found = 0
    for registered in app.registered_commands:
        for name, hint in get_type_hints(registered.callback, include_extras=True).items():
            if "Path" in str(hint):
                assert [one.callback for one in get_args(hint)[1:]] == [local], (registered.callback, name)
                found += 1
    assert found > 20


@pytest.mark.parametrize(
    "words",
    [
        ("prepare", "--cache", "s3://bucket/x"),
        ("prepare", "--keep-downloads", "s3://bucket/x"),
        ("verify", "s3://bucket/x"),
        ("export", "s3://bucket/x", "--layout", "fits"),
        ("report", "x", "-o", "s3:/bucket/x"),
    ],
    ids=" ".join,
)
def test_a_url_in_place_of_a_path_is_one_clear_line_and_makes_no_folder(words: tuple[str, ...], tmp_path: Path) -> None:
    result = command(*words, *(["--archive", "embedded"] if words[0] == "prepare" else []), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "chandra-spectra: s3://bucket/x is a URL: give a path on this machine\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["", "--store"])
def test_a_url_that_lacks_a_slash_is_one_clear_line_and_makes_no_folder(option: str, tmp_path: Path) -> None:
    result = command("prepare", *filter(None, [option]), "s3:/bucket/x", "--archive", "embedded", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "'s3:/bucket/x' is neither a folder nor a URL such as" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        ("", "must be 'embedded', a mirror folder or an http"),
        ("http://[bad", "is no address"),
        ("http://", "is no address"),
        ("https://host:notaport", "is no address"),
        ("http://host:99999", "is no address"),
        ("ftp://host", "is no address"),
        ("https://host/?release=2", "is no address"),
        ("http://alice:hunter2@host", r"~/\.netrc"),
        ("http://alice:hunter2@host:notaport", "is no address"),
        ("~nosuchuser/mirror", "home directory"),
        ("mirror\udcff", "is not UTF-8"),
    ],
)
def test_an_archive_that_cannot_be_one_is_refused_at_once_and_no_password_is_repeated(archive: str, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        Settings(archive)
    assert "hunter2" not in str(caught.value)


def test_a_catalog_file_whose_name_is_not_utf_8_is_refused_at_once() -> None:
    with pytest.raises(SettingError, match="is not UTF-8"):
        Settings(catalog="list\udcff.vot")


def test_the_scheme_and_the_host_of_an_archive_have_no_case() -> None:
    assert Settings("HTTPS://CDA.cfa.Harvard.edu/Path") == Settings("https://cda.cfa.harvard.edu/Path")
    assert not Settings("HTTPS://cda.cfa.harvard.edu").from_mirror


@pytest.mark.parametrize(("bandwidth", "words"), [(0.0011, "5.0 h"), (0.011, "30 min"), (1e6, "1 min")])
def test_an_estimate_says_what_the_download_takes(
    bandwidth: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from builder.cli.terminal import show_estimate

    rows = [{"name": "X", "obsid": 1, "obi": 0, "region_id": number, "instrument": "ACIS"} for number in range(18)]
    show_estimate(plan(from_rows(rows)), bandwidth)
    assert words in capsys.readouterr().out


def test_an_output_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("mine")
    result = command("prepare", output, "--archive", "embedded")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "is a file" in result.stderr
    assert output.read_text() == "mine"


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    result = command("prepare", tmp_path, "--archive", "embedded", "--force")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_mirror_with_a_damaged_tar_is_one_clear_line(damage: str, mirror: Path, tmp_path: Path) -> None:
    tar = mirror / "packages" / "00000.tar"
    content = tar.read_bytes()
    if damage == "truncated":
        tar.write_bytes(content[:100_000])
    elif damage == "garbled":
        tar.write_bytes(b"<html>" + content[6:])
    else:
        tar.unlink()
    result = command("prepare", tmp_path / "out", "--archive", mirror, "--cache", tmp_path / "cache", "--workers", 1)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "00000.tar" in result.stderr
    assert not (tmp_path / "out").exists()


def test_detections_that_are_asked_for_and_not_found_are_named_in_one_line(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("90001.0.35\n1.0.1\n")
    result = command(
        "prepare", tmp_path / "out", "--archive", mirror, "--detections", tmp_path / "list.txt", "--workers", 1
    )
    assert result.returncode == 0
    assert result.stderr == f"chandra-spectra: 1 asked for, but unknown to {mirror} or cut away: 1.0.1\n"


@pytest.mark.parametrize("options", [["--name", "2CXO J1"], ["--obsid", "1"]], ids=["name", "obsid"])
def test_a_selection_of_nothing_is_refused_in_one_line(options: list[str], tmp_path: Path) -> None:
    result = command("prepare", tmp_path / "out", "--archive", "embedded", *options)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no detection of embedded passes all cuts" in result.stderr
    assert ("look for slips in it" in result.stderr) == (options[0] == "--name")


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from builder.cli import terminal

    monkeypatch.setattr("rich.console.Console.is_terminal", False)
    for pause, said in ((0.0, 2), (1000.0, 0)):
        monkeypatch.setattr(terminal, "_PAUSE", pause)
        with terminal.bars() as progress:
            progress("reduce", 0, 1200)
            progress("reduce", 1000, 1200)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == said
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d  reduce (0|1,000) of 1,200", line) for line in lines)


def test_hyphens_and_underscores_are_the_same(mirror: Path, tmp_path: Path) -> None:
    for number, option in enumerate(("--min_cnts", "--min-cnts")):
        words = ("--archive", mirror, "--cache", tmp_path / "cache", "--workers", 1)
        result = command("prepare", tmp_path / str(number), *words, option, 500)
        assert result.returncode == 0, result.stderr
    name = "data/train-00000-of-00001.parquet"
    assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_the_version_and_the_help_are_printed() -> None:
    assert command("--version").stdout == f"chandra-spectra {__version__}\n"
    text = command("prepare", "--help").stdout
    assert "Examples" in text
    assert "[default: (40)]" in text


def test_help_and_import_do_not_load_sherpa_or_datasets() -> None:
    heavy = ("sherpa", "datasets", "astropy")
    code = f"import sys, builder.cli.run; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = "import sys, chandra_spectra; print('sherpa' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_prepare_starts_without_datasets_and_the_hub(tmp_path: Path) -> None:
    """Their import would take a third of its start."""
    code = (
        "import sys\nfrom builder.cli.run import main\ntry:\n    main()\n"
        "finally:\n    print(sorted({'datasets', 'huggingface_hub', 'torch'} & sys.modules.keys()))"
    )
    words = ("prepare", "out", "--archive", "embedded", "--cache", "cache", "--workers", "1")
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n[]\n")


def test_info_shows_the_numbers_a_row_and_a_plot(sample: Path) -> None:
    result = command("info", sample, "--detection", "7867.0.2")
    assert result.returncode == 0, result.stderr
    assert re.search(r"rows\s+62", result.stdout)
    assert "detection 7867.0.2" in result.stdout
    assert "(keV)" in result.stdout
    assert re.search(r"gti_mjd_obs +54374.0\d+ +MJD +2007-10-01\n", result.stdout)
    assert "\nnull   significance, " in result.stdout


@pytest.mark.parametrize(("arguments", "words"), [(["--detection", "1.2.3"], "no row 1.2.3"), ([], "not a prepared")])
def test_info_of_what_is_not_there_is_one_clear_line(
    arguments: list[str], words: str, sample: Path, tmp_path: Path
) -> None:
    result = command("info", sample if arguments else tmp_path, *arguments)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert words in result.stderr


def test_what_goes_into_a_pipe_has_no_blanks_at_the_ends_of_lines(sample: Path) -> None:
    for words in (("info", sample), ("verify", sample, "--no-load")):
        lines = command(*words).stdout.splitlines()
        assert len(lines) > 8
        assert [line for line in lines if line.endswith(" ")] == []


def test_a_split_without_rows_is_said_to_have_no_file(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of --splits source where all sources are of train; `load_dataset` then knows no other split."""
    from builder.cli.terminal import show_summary
    from builder.dataset.layout import Manifest

    manifest = Manifest.read(sample)
    show_summary(sample, replace(manifest, settings=manifest.settings | {"splits": "source:100/0/0"}), None)
    rows = re.findall(r"^  (train|validation|test) +(\d+) +(.+)$", capsys.readouterr().out, re.MULTILINE)
    assert rows == [("train", "62", "100.0 %"), ("validation", "0", "no file"), ("test", "0", "no file")]
    with pytest.raises(ValueError, match="Unknown split"):
        load_dataset(str(sample), split="test")


def test_an_unknown_option_is_wrong_usage() -> None:
    assert command("prepare", "--min-count-rate", "3").returncode == 2
