"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import builder


def test_the_public_names_are_these_and_sorted() -> None:
    assert builder.__all__ == [
        "ArchiveServer",
        "ChandraSpectraError",
        "Cone",
        "DetectionId",
        "Prepared",
        "Recipe",
        "Selection",
        "Settings",
        "Splits",
        "export",
        "find_detections",
        "overview",
        "plot",
        "prepare",
        "push",
        "read_rows",
        "regroup",
        "save_plot",
        "thin",
        "verify",
        "write_report",
    ]


@pytest.mark.parametrize("name", builder.__all__)
def test_each_public_name_is_a_function_or_a_class_with_a_docstring(name: str) -> None:
    assert callable(getattr(builder, name))
    assert getattr(builder, name).__doc__
    assert name in dir(builder)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prepared'"):
        _ = builder.prepared


@pytest.mark.parametrize("first", ["import builder.prepare", "from builder import Settings", "import chandra_spectra"])
def test_prepare_is_the_function_whatever_was_imported_before(first: str) -> None:
    code = f"{first}; from builder import prepare; print(type(prepare).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "function\n"


@pytest.mark.parametrize("path", ["builder.py", "builder/__init__.py"])
def test_another_builder_on_the_path_is_named_in_one_sentence(path: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("answer = 42\n")
    done = subprocess.run(
        [sys.executable, "-c", "import chandra_spectra"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {tmp_path / path} hides chandra-spectra's package of that name: rename it or leave its folder"
    )


def test_the_package_itself_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pyarrow", "datasets", "sherpa", "astropy", "requests")
    code = f"import sys, builder; builder.Settings; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
