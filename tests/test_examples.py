"""The examples run as they stand, find what they should, and draw it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = {"inference": ("600",)}
"""A smaller form of what takes minutes."""
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


ALL = """
import contextlib, io, json, runpy, sys
said = {}
for path, *words in json.loads(sys.argv[1]):
    sys.argv, sys.path[1:1] = [path, *words], [path.rpartition("/")[0]]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            print(ended.code)
    said[path] = printed.getvalue()
print(json.dumps(said))
"""
"""Runs examples in one process, as most of them import PyTorch first, for seconds."""


def run_all(cwd: Path, words: Callable[[str], Sequence[str]], **environment: str) -> dict[str, str]:
    """What each example prints, or exits with."""
    calls = [[str(EXAMPLES / f"{name}.py"), *words(name)] for name in NAMES]
    done = subprocess.run(
        [sys.executable, "-c", ALL, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.stderr == ""
    return dict(zip(NAMES, json.loads(done.stdout).values(), strict=True))


@pytest.fixture(scope="module")
def printed(full_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each prints, run as its docstring says."""
    work = tmp_path_factory.mktemp("examples")
    found = run_all(work, lambda name: (str(full_sample), f"{name}.png", *SHORT.get(name, ())))
    for name, text in found.items():
        assert text.endswith(f"wrote {name}.png\n")
        assert (work / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    return found


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_a_model_learns_the_hardness_of_sources_that_it_never_saw(printed: dict[str, str]) -> None:
    """With a third of the error of guessing the mean, or less."""
    sizes, errors, _ = printed["hardness"].splitlines()
    assert numbers(sizes) == [41, 15]
    guess, error = numbers(errors)
    assert 0 < error < guess / 3


def test_a_model_learns_the_photon_index_of_the_fits(printed: dict[str, str]) -> None:
    """From 32 labels, nulls left out, with half the error of guessing the mean, or less."""
    sizes, errors, _ = printed["powerlaw"].splitlines()
    assert numbers(sizes) == [62, 41, 32, 9]
    guess, error = numbers(errors)
    assert 0 < error < guess / 2


def test_a_fit_by_fold_is_sherpas_own(printed: dict[str, str]) -> None:
    """The parameters themselves are those of a plain extragalactic source: an index near 2, hardly absorbed."""
    _, nh, index, norm, difference, _ = printed["forward_fit"].splitlines()
    assert numbers(difference)[0] < 1e-3
    assert numbers(index)[0] == numbers(index)[1] == pytest.approx(2.0, abs=0.2)
    assert numbers(nh)[0] < 0.1
    assert 0 < numbers(norm)[2] < 0.1


def test_positions_find_all_detections_of_their_source_and_nothing_else(printed: dict[str, str]) -> None:
    lines = printed["crossmatch"].splitlines()
    assert lines[0] == "6 of 8 positions match 13 detections"
    assert "A   4938.0.43     0.62    1669  2CXO J231929.3+003557" in lines
    assert [line[0] for line in lines[2:-1]] == list("ABCCDDDEEEFFFXY")
    assert [line for line in lines if "nothing within" in line] == lines[-3:-1]


def test_a_trained_posterior_covers_the_truth_and_is_near_sherpas_fits(printed: dict[str, str]) -> None:
    """As often as it says on draws with responses of other sources, though it is far from trained to the end."""
    lines = printed["inference"].splitlines()
    for line in lines[1:4]:
        narrow, wide = numbers(line)[-2:]
        assert 60 < narrow < 78 and 90 < wide < 99, line
    assert len(lines) == 4 + 6 + 1
    for line in lines[4:-1]:
        mean, deviation, fit, error = numbers(line)[-4:]
        assert deviation > 0 and error > 0
        assert abs(mean - fit) < 3 * (deviation + error), line


def test_each_says_in_one_line_that_it_lacks_a_folder(tmp_path: Path) -> None:
    for words in run_all(tmp_path, lambda name: ("nothing",)).values():
        assert re.fullmatch(r"there is no prepared folder nothing: make one with chandra-spectra .*\n", words)


def test_each_says_in_one_line_that_it_lacks_an_extra(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")\n")
    for words in run_all(tmp_path, lambda name: (), PYTHONPATH=str(tmp_path)).values():
        assert re.fullmatch(r"No module named 'matplotlib': pip install 'chandra-spectra\[plots.*\]'\n", words)


@pytest.mark.parametrize(("name", "option"), [("forward_fit", "--with-responses"), ("inference", "--bins 64")])
def test_a_folder_without_the_config_says_how_to_get_it(name: str, option: str, sample: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(EXAMPLES / f"{name}.py"), str(sample)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"{sample} was prepared without {option}: prepare it again so, with --force\n"


def test_a_classifier_finds_most_classes_of_sources_that_it_never_saw(printed: dict[str, str]) -> None:
    sizes, right, *matrix, _ = printed["classify"].splitlines()
    assert numbers(sizes) == [44, 16]
    found, fainter, commonest = numbers(right)
    assert found >= 12 > commonest and fainter >= 10
    assert sum(sum(numbers(line)) for line in matrix) == 16


def test_a_masked_autoencoder_is_saved_and_predicts_hidden_bins_better_than_an_interpolation(
    printed: dict[str, str],
) -> None:
    said, *lines, _ = printed["masked"].splitlines()
    assert said == "trained on 46 rows, saved as masked.pt; deviance of a hidden bin, median of 6 rows:"
    for line in lines:
        _, found, plain = numbers(line)
        assert 0.8 < found < 0.85 * plain


def test_the_classes_of_the_sample_are_what_its_spectra_were_simulated_with() -> None:
    from builder.simulator.embedded import embedded_rows_and_files

    lines = (EXAMPLES / "sample_classes.csv").read_text().splitlines()
    classes = dict(line.split(",") for line in lines[1:])
    rows = [row for row, _ in embedded_rows_and_files() if str(row["name"]).startswith("SIM")]
    assert classes.keys() == {row["name"] for row in rows}
    assert set(classes.values()) == {"power law", "plasma", "iron line"}
    for row in rows:  # what the simulated pipeline fitted, where it did
        plasma = classes[str(row["name"])] == "plasma"
        assert row["powlaw_gamma"] is None or not plasma
        assert row["apec_kt"] is None or plasma


def test_the_notebook_runs_from_the_first_cell_to_the_last(full_sample: Path, tmp_path: Path) -> None:
    """Its cells as they stand; only the magic that shows pictures is Jupyter's."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "chandra_spectra").symlink_to(full_sample)
    code = "\n".join(cells).replace("%matplotlib inline", "")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert "2CXO J231929.3+003557 4938.0.43" in done.stdout


def test_each_is_short_and_says_how_to_run_it() -> None:
    for name in NAMES:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 120, name
        assert f"python examples/{name}.py [FOLDER] [PICTURE]" in text
