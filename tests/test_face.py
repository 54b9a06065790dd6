"""The public names of the package."""

from __future__ import annotations

import subprocess
import sys

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
        "prepare",
        "push",
        "read_rows",
        "save_plot",
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


def test_the_package_itself_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pyarrow", "datasets", "sherpa", "astropy", "requests")
    code = f"import sys, builder; builder.Settings; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
