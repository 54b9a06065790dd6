"""The benchmarks run, at their smallest: what they measure is for people to look at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="they look at processes in /proc, which Linux has")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reduce.py", "--rounds", "1"], r"4938\.0\.43 .* \d+\.\d+"),
        (["prepare.py", "--detections", "60"], r"  assemble +│ +(0\.0*)?[1-9]"),  # more than one package
        (["catalog.py", "--rows", "300", "--rounds", "1"], r"ratio \d\.\d+"),
        (["start.py", "--rounds", "1"], r"ratio \d\.\d+"),
        (["workers.py", "--detections", "60", "--rounds", "1"], r"ratio \d\.\d+"),
        (["likelihood.py", "--draws", "2"], r"\| in 32 bins \| \d\.\d+ ± \d"),
    ],
    ids=["reduce", "prepare", "catalog", "start", "workers", "likelihood"],
)
def test_every_benchmark_runs_and_prints_its_figures(words: list[str], said: str) -> None:
    run(words, said)


def test_the_benchmark_of_the_loader_runs_on_a_folder(full_sample: Path) -> None:
    run(["loader.py", str(full_sample), "--rounds", "1"], r"Stream +│ +\d.*\d\.\d+")


def run(words: list[str], said: str) -> None:
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    assert re.search(said, result.stdout), result.stdout
