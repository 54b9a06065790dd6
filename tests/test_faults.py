"""What could be known is said at the start, nothing that is odd ends a run, and every word that is printed holds."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.data_files import resolve_pattern
from hypothesis import example, given
from hypothesis import strategies as st

from builder.archive.values import MAX_LETTERS, SCHEMA, tidy
from builder.cli.terminal import load_command, shell_path, show_uploaded
from builder.dataset.catalog_file import read_catalog
from builder.dataset.layout import Manifest, check_name
from builder.dataset.read import read_scalars
from builder.model.column import Column
from builder.model.columns import CATALOG
from builder.model.errors import OutputError, SettingError
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare
from builder.use.push import push
from builder.use.report import write_report
from builder.use.verify import verify
from chandra_spectra import ChandraSpectra
from tests.fits_files import stable
from tests.folders import rehash
from tests.runs import Run, command

pytestmark = pytest.mark.usefixtures("without_pictures")

NO_ARCHIVE = ("--archive", "http://127.0.0.1:9", "--patience", "1")
"""Where nothing listens: whatever is said of the output is said before a request."""


# What the last step needs


def test_a_mount_point_is_refused_before_the_archive_is_asked(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    mount = 'mount -t tmpfs none "$0" && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", mount, str(output)]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount")
    words += [sys.executable, "-m", "builder.cli", "prepare", str(output), *NO_ARCHIVE]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"a disk is mounted there: give a folder in it, such as {output}/data" in result.stderr
    assert list(tmp_path.iterdir()) == [output]


@stable(60)
@given(st.text("ab.[]*?!:~#%&;|{}()^$+,=@'\"\\ \n_-é", min_size=1, max_size=6).filter(lambda name: name.strip(".")))
@example("run[1]")
@example("a::b")
@example("ds.py")
def test_a_name_that_prepare_takes_is_one_that_datasets_finds_files_under(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        for folder in (Path(root).resolve() / name, Path(root).resolve() / name / "ds"):
            shard = folder / "data" / "train-00000-of-00001.parquet"
            shard.parent.mkdir(parents=True)
            shard.touch()
            refused = str(folder).endswith(".py") or bool(set("*?[") & set(name)) or "::" in name
            with pytest.raises(SettingError, match="load_dataset takes") if refused else contextlib.nullcontext():
                check_name(folder)
            if not refused:
                assert resolve_pattern("data/train-*.parquet", str(folder)) == [str(shard)]


@pytest.mark.parametrize("output", ["run[1]/ds", "a::b", "ds.py", "s3://bucket/run*", os.fsdecode(b"ds\xff")])
def test_a_name_that_does_not_load_is_refused_before_the_archive_is_asked(output: str, tmp_path: Path) -> None:
    place = output if "://" in output else str(tmp_path / output)
    with pytest.raises(SettingError, match="give another name"):
        prepare(place, Settings("http://127.0.0.1:9"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["cache", "store", "keep_downloads"])
def test_a_place_that_would_go_with_the_old_folder_is_refused(option: str, tmp_path: Path) -> None:
    inside = tmp_path / "ds" / "mine"
    options: dict[str, Any] = {option: str(inside) if option == "store" else inside}
    with pytest.raises(SettingError, match="mine lies in the folder to be written"):
        prepare(tmp_path / "ds", Settings("embedded"), **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "free", "words"),
    [
        ({}, 1000, r"1\.3 MB, .*1\.0 kB left"),
        ({"bins": 64}, 2_000_000, "2.9 MB"),
        ({"responses": True}, 2e7, "25.2 MB"),
    ],
    ids=["plain", "binned", "responses"],
)
def test_a_disk_without_the_room_is_told_before_a_package_is_fetched(
    more: dict[str, Any], free: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=f"no room for .*{words}"):
        prepare(tmp_path / "ds", Settings("embedded", **more), cache=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not (tmp_path / "cache" / "store").exists()


@pytest.mark.parametrize("copy", ["a folder", "chandra_spectra/copy.hdf5", "/proc/copy.hdf5"])
def test_a_second_place_that_cannot_be_written_is_told_at_once(copy: str, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    result = command("prepare", "chandra_spectra", *NO_ARCHIVE, "--output-file", copy, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert copy in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]


# The current folder


@pytest.mark.parametrize("words", [("prepare", "."), ("prepare", "../inside"), ("export", "SAMPLE", ".")])
def test_the_current_folder_is_not_taken_away_from_under_a_shell(
    words: tuple[str, ...], sample: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    options = NO_ARCHIVE if words[0] == "prepare" else ("--layout", "healpix")
    before = inside.stat().st_ino
    result = command(*(str(sample) if word == "SAMPLE" else word for word in words), *options, cwd=inside)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"cannot replace {inside}, as it is the current folder" in result.stderr
    assert inside.stat().st_ino == before and list(tmp_path.iterdir()) == [inside]


def test_force_from_inside_of_a_prepared_folder_leaves_it_as_it_is(folder: Path) -> None:
    before = folder.stat().st_ino
    result = command("prepare", f"../{folder.name}", "--force", "--archive", "embedded", "--limit", 3, cwd=folder)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "run this from elsewhere" in result.stderr
    assert folder.stat().st_ino == before and verify(folder, load=False, content=False).failures == []


def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from builder.cli.run import main; main()"
    result = subprocess.run([sys.executable, "-c", code, "info"], cwd=gone, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("chandra-spectra: cannot work in the current folder: ")
    assert result.stderr.count("\n") == 1


# Printed commands


NAMES = ["a&b;c 'd' \"e\"", "$(touch f)`g`", "parquet", "csv", "-x", "~", "embedded", "a\\b\nc", "é"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_is_printed_comes_out_of_a_shell_as_that_path(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for path in (Path(name), tmp_path / name, Path("..") / tmp_path.name / name):
        line = f'printf "%s\\n" {shell_path(path)}'
        shown = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert shown[:1] in "./" and (tmp_path / shown[:-1]).samefile(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_load_command_that_is_printed_calls_with_that_name_and_nothing_else(name: str) -> None:
    python, option, code = shlex.split(load_command(name, f", revision={json.dumps(name)}", '["train"]'))
    said: list[Any] = []

    def load_dataset(*words: Any, **options: Any) -> dict[str, str]:
        said.append((words, options))
        return {"train": ""}

    code = code.removeprefix("from datasets import load_dataset; ")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, {"load_dataset": load_dataset})
    assert (python, option, said) == ("python", "-c", [((name,), {"revision": name})])


def test_the_next_line_of_prepare_runs_in_a_folder_called_like_a_module_of_datasets(
    sample: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample, tmp_path / "parquet")
    result = command("prepare", "parquet", "--archive", "embedded", "--splits", "none", "--workers", 1, cwd=tmp_path)
    steps = result.stdout.partition("Next:  ")[2].splitlines()
    line = next(step.strip() for step in steps if step.strip().startswith("python -c"))
    line = line.replace("python", shlex.quote(sys.executable), 1)
    run = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "'detection_id'" in run.stdout, run.stderr


def test_the_next_line_of_an_upload_names_the_files_whatever_the_url_holds(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = 's3://bucket/it\'s "a&b"'
    show_uploaded(url, Manifest.read(sample), True)
    code = shlex.split(capsys.readouterr().out.partition("Next:  ")[2])[2]
    assert eval(code.partition("data_files=")[2].rpartition("))")[0]) == {"train": f"{url}/data/train-*.parquet"}


# Encodings


def _latin() -> None:
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="latin-1", errors="strict")


def _ascii() -> None:
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(encoding="ascii", errors="strict")


@pytest.mark.parametrize("change", [_latin, _ascii])
@pytest.mark.parametrize(
    "words", [("verify", "F", "--no-load"), ("info", "F"), ("plot", "F", "--detection", "4938.0.43")], ids=str
)
def test_no_encoding_of_the_terminal_ends_a_command(
    words: tuple[str, ...], change: Callable[[], None], sample: Path
) -> None:
    result = Run(*(sample if word == "F" else word for word in words), change=change).wait()
    assert (result.returncode, result.stderr) == (0, "")
    if words[0] == "verify":
        assert result.stdout.count("ok ") == 7 and "\\u" not in result.stdout
    else:
        assert "not drawn: it takes a terminal of UTF-8" in result.stdout


# The cache of the builder


def test_a_cache_is_found_by_content_and_not_by_name(mirror: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def cached(archive: str, **options: Any) -> str:
        return str(ChandraSpectra(archive=archive, cache_dir=str(tmp_path / "cache"), **options).cache_dir)

    monkeypatch.chdir(tmp_path)
    first = cached("mirror")
    assert cached(str(mirror)) == first
    other = tmp_path / "elsewhere"
    shutil.copytree(mirror, other / "mirror")
    (other / "mirror" / "catalog.vot").write_bytes((mirror / "catalog.vot").read_bytes() + b"\n")
    monkeypatch.chdir(other)
    assert cached("mirror") != first  # the same relative path, another catalog
    with (mirror / "packages.jsonl").open("a") as index:
        index.write("\n")
    assert cached(str(mirror)) != first  # the mirror grew
    ids = [cached("embedded"), cached("embedded", min_cnts=5), cached("embedded", recipe=Recipe(energy_max=7))]
    assert len({*ids, first}) == 4
    assert cached("embedded", recipe={"energy_max": 7}) == ids[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": {"energy_max": 7, "bins": 3}}, "recipe has no setting 'bins'"),
        ({"recipe": {"energy_max": "high"}}, "energy_max must be a number"),
        ({"recipe": 5}, "recipe must be a Recipe, not 5"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_at_construction(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        ChandraSpectra(archive="embedded", cache_dir=str(tmp_path), **options)


# Odd values of the catalog

ODD: dict[str, list[Any]] = {
    "string": ["", " ", "x" * 10**6, "\0a\n\tb", "\u202e\u0301é", "a&b;c", "$\\frac{"],
    "bool": [True, False],
    "int32": [-(2**31), 2**31 - 1, -1, 0],
    "float": [-1.0, 9.0, 1e9, 1e300, -1e300, math.inf, -math.inf, math.nan, 5e-324, 3.4028235e38, 3.5e38, 0.0, -91.0],
}


def odd(column: Column) -> list[Any]:
    return [None, *ODD["float" if column.dtype.startswith("float") else column.dtype]]


def anything(column: Column) -> st.SearchStrategy[Any]:
    kind = {"string": st.text(max_size=300), "bool": st.booleans(), "int32": st.integers(-(2**31), 2**31 - 1)}.get(
        column.dtype, st.floats()
    )
    return st.one_of(st.none(), kind, st.sampled_from(odd(column)))


@stable(300)
@given(st.fixed_dictionaries({column.name: anything(column) for column in CATALOG}))
def test_any_value_is_kept_or_null_with_a_note(row: dict[str, Any]) -> None:
    table, notes = tidy(pa.Table.from_pylist([row], schema=SCHEMA))
    assert table.schema == SCHEMA
    said = " ".join(notes)
    (kept,) = table.to_pylist()
    for column in CATALOG:
        before, after = row[column.name], kept[column.name]
        if isinstance(after, str):
            assert after.isprintable() and 0 < len(after) <= MAX_LETTERS
        elif isinstance(after, float):
            assert after == before and np.isfinite(np.dtype(column.dtype).type(after))
        elif after is None and isinstance(before, float):
            assert math.isnan(before) or f"{column.name} is null in 1 row" in said
        elif after is None and isinstance(before, str):
            assert not before.strip() or not before.isprintable() or f"{column.name} is null in 1 row" in said
        else:
            assert after == before
    again, further = tidy(table)
    assert again.equals(table) and further == []


@pytest.mark.pictures
def test_odd_values_in_every_column_end_no_run_and_verify_takes_the_folder(
    mirror: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = read_catalog(mirror / "catalog.vot")
    ids = ("obsid", "obi", "region_id")
    cases = [(column.name, value) for column in CATALOG if column.name not in ids for value in odd(column)]
    rows = table.to_pylist()[:30]
    for number, (name, value) in enumerate(cases):
        rows[number % len(rows)][name] = value
    lost = [{**rows[0], name: -1} for name in ids]
    pq.write_table(pa.Table.from_pylist([*rows, *lost], schema=SCHEMA), tmp_path / "odd.parquet")
    settings = Settings(str(mirror), catalog=str(tmp_path / "odd.parquet"))
    manifest, _ = prepare(tmp_path / "ds", settings)
    assert manifest.counts.rows + manifest.counts.rejected == manifest.counts.selected > 20
    assert verify(tmp_path / "ds", load=False).failures == []
    assert manifest.counts.reasons["no_detection"] == len(lost)
    assert "theta is null in" in caplog.text and "beyond float32" in caplog.text
    card = (tmp_path / "ds" / "README.md").read_text()
    assert card.count("![") == 4 and "outside of -1 and 1 not drawn" in card
    page = write_report(tmp_path / "ds", tmp_path / "report.html")
    assert "not drawn" in page.path.read_text() and "MJD 1e+09" in page.path.read_text()
    names = read_scalars(tmp_path / "ds", ["name"])["name"].drop_null().to_pylist()
    assert max(map(len, names)) <= MAX_LETTERS


# Verify


def test_files_of_other_tools_fail_only_where_load_dataset_reads_them(folder: Path) -> None:
    for name in (".cache/huggingface/download/data/x.metadata", ".gitattributes", "notes.txt", "data/.ipynb", "x.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    report = verify(folder, content=False)
    assert report.failures == [] and report.checks[0].scope.endswith("; 5 other files beside them")
    read = ["chandra_spectra.py", "data/train-00001-of-00002.parquet", "dataset_infos.json", "state.json"]
    for name in read:
        (folder / name).write_text("mine")
    assert [line.partition(":")[0] for line in verify(folder, content=False, load=False).failures] == read


def test_what_is_not_known_is_null_and_nan_is_told_in_words(folder: Path) -> None:
    path = next((folder / "data").glob("*.parquet"))
    table = pq.read_table(path)
    values = [math.nan, *table["theta"].to_pylist()[1:]]
    index = table.column_names.index("theta")
    field = table.schema.field("theta")
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), path)
    rehash(folder)
    assert any("theta is nan: what is not known is null" in line for line in verify(folder, load=False).failures)


def _script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("raise SystemExit")


def _slip(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: other", "license: [other", 1))


@pytest.mark.parametrize("damage", [_script, _slip])
def test_what_load_dataset_raises_is_a_failure_and_the_other_checks_are_shown(
    damage: Callable[[Path], None], folder: Path
) -> None:
    damage(folder)
    result = command("verify", folder)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in result.stdout
    assert "config spectra: load_dataset: " in result.stdout
    marks = [line[:1] for line in result.stdout.splitlines() if line[:1] in "✓✗–?"]
    assert "".join(marks) == "✗✓✓✓✓✓✓✗–"


def _no_tmp() -> None:
    tempfile.tempdir = "/nowhere"


def test_what_could_not_be_looked_at_is_no_failure_and_has_an_exit_code_of_its_own(sample: Path) -> None:
    result = Run("verify", sample, change=_no_tmp).wait()
    assert (result.returncode, result.stderr.count("\n")) == (4, 1)
    assert "could not be verified to the end: load_dataset: no temporary folder" in result.stderr
    marks = [line[:1] for line in result.stdout.splitlines() if line[:1] in "✓✗–?"]
    assert "".join(marks) == "✓✓✓✓✓✓✓?–"


def test_an_archive_that_lacks_its_files_is_no_failure_of_the_folder(sample: Path, mirror: Path) -> None:
    shutil.rmtree(mirror / "packages")
    result = command("verify", sample, "--no-load", "--recheck", 1, "--archive", mirror)
    assert (result.returncode, result.stderr.count("\n")) == (4, 1)
    assert "?  reduced again" in result.stdout and result.stdout.count("✓") == 7


def test_an_edited_card_is_pushed_where_that_is_said_and_the_folder_verifies_again(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nWith thanks to all.\n")
    with pytest.raises(OutputError, match="--keep-card takes the card as it was edited"):
        push(folder, "org/name", dry_run=True, quick=True)
    pushed = push(folder, "org/name", dry_run=True, quick=True, keep_card=True)
    assert dict(pushed.files)["README.md"] == card.stat().st_size
    assert len(verify(folder, content=False, load=False).failures) == 1  # a dry run changes nothing
