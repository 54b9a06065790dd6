"""Labels of sources from a file: `prepare --labels`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pyarrow as pa
import pytest
import torch
from astropy.table import Table
from datasets import ClassLabel, Value, load_dataset

from builder.dataset.labels import DISTANCE, Labelled, add_labels
from builder.dataset.layout import Manifest
from builder.model.errors import CatalogError, SettingError
from builder.model.own import own_columns
from builder.model.settings import Settings
from builder.model.sky import radius_of
from builder.use.verify import verify
from chandra_spectra import collate
from tests import fits_files as ff
from tests.runs import command

ARCSEC = 1 / 3600
SKY = pa.table(
    {
        "name": ["2CXO J000000.0+000000", "2CXO J000000.0+000000", "2CXO J120000.0-300000", None],
        "ra": [0.0, 0.0, 180.0, 90.0],
        "dec": [0.0, 0.0, -30.0, 10.0],
        "obsid": pa.array([1, 2, 3, 4], pa.int32()),
        "obi": pa.array([0] * 4, pa.int32()),
        "region_id": pa.array([7] * 4, pa.int32()),
    }
)

pytestmark = pytest.mark.usefixtures("without_pictures")
FIRST, SECOND = "2CXO J000000.0+000000", "2CXO J120000.0-300000"


def labelled(tmp_path: Path, columns: dict[str, list[Any]], radius: float = ARCSEC, ending: str = "ecsv") -> Labelled:
    path = tmp_path / f"labels.{ending}"
    Table(columns).write(path, format={"vot": "votable"}.get(ending))
    return add_labels(SKY, path, radius)


def words(catalog: pa.Table, name: str) -> list[str | None]:
    column = next(each for each in own_columns(catalog.schema) if each.name == name)
    return [None if code is None else column.classes[code] for code in catalog[name].to_pylist()]


# --- the join


@pytest.mark.parametrize("ending", ["csv", "ecsv", "fits", "vot", "parquet"])
@pytest.mark.parametrize(
    ("key", "values"),
    [("detection_id", ["2.0.7", "3.0.7", "9.0.9"]), ("Name", [FIRST.lower().replace(" ", ""), SECOND, "Vega"])],
)
def test_all_detections_of_a_source_have_its_label(tmp_path: Path, ending: str, key: str, values: list[str]) -> None:
    done = labelled(
        tmp_path, {key: values, "Class": ["AGN", "STAR", "STAR"], "redshift": [0.5, 0.0, 1.0]}, ending=ending
    )
    assert words(done.catalog, "class") == ["AGN", "AGN", "STAR", None]
    assert done.catalog["redshift"].to_pylist() == [0.5, 0.5, 0.0, None]
    assert DISTANCE not in done.catalog.column_names
    assert done.counts == {"rows": 3, "matched": 2, "sources": 2, "conflicts": 0}
    assert done.remarks == [f"labels.{ending}: no selected source for 1 row (3)"]


def test_a_position_is_joined_to_the_nearest_source_with_its_distance(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "ra": [0.5 * ARCSEC, 180.0, 90.0],
        "dec": [0.0, -30.0 + 2 * ARCSEC, 10.0],
        "kind": ["a", "b", "c"],
    }
    done = labelled(tmp_path, rows)
    assert words(done.catalog, "kind") == ["a", "a", None, "c"]
    assert done.catalog[DISTANCE].to_pylist() == pytest.approx([0.5, 0.5, None, 0.0], abs=1e-6)
    done = (
        labelled(tmp_path / "..", rows, 3 * ARCSEC) if False else add_labels(SKY, tmp_path / "labels.ecsv", 3 * ARCSEC)
    )
    assert words(done.catalog, "kind") == ["a", "a", "b", "c"]
    assert done.catalog[DISTANCE].to_pylist()[2] == pytest.approx(2, abs=1e-6)


def test_positions_may_be_sexagesimal_and_come_after_names(tmp_path: Path) -> None:
    done = labelled(
        tmp_path, {"name": ["unknown", SECOND], "ra": ["00:00:00.02", ""], "dec": ["+00:00:00", ""], "n": [1, 2]}
    )
    assert done.catalog["n"].to_pylist() == [1, 1, 2, None]
    assert done.catalog["n"].type == pa.int64()
    assert done.catalog[DISTANCE].to_pylist() == pytest.approx([0.3, 0.3, None, None], abs=1e-6)


def test_what_contradicts_itself_is_null_and_told(tmp_path: Path) -> None:
    done = labelled(
        tmp_path,
        {
            "detection_id": ["1.0.7", "2.0.7", "3.0.7", "3.0.7"],
            "class": ["A", "B", "A", "A"],
            "z": [1.0, 1.0, 2.0, 2.0],
        },
    )
    assert words(done.catalog, "class") == [None, None, "A", None]
    assert done.catalog["z"].to_pylist() == [1, 1, 2, None]
    assert done.counts["conflicts"] == 1
    assert done.remarks == [f"labels.ecsv: class differs for 1 source ({FIRST}): null there"]


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["b", "a", "b"], pa.int64(), ("a", "b")),
        (["T", "F", "T"], pa.bool_(), ()),
        ([1, 2, 3], pa.int64(), ()),
        ([1.5, 2, 3], pa.float64(), ()),
    ],
)
def test_words_are_classes_and_numbers_stay_numbers(
    tmp_path: Path, values: list[Any], kind: pa.DataType, classes: tuple[str, ...]
) -> None:
    done = labelled(tmp_path, {"detection_id": ["1.0.7", "3.0.7", "4.0.7"], "label": values})
    (column,) = own_columns(done.catalog.schema)
    assert (done.catalog["label"].type, column.classes, "sources" in column.configs) == (kind, classes, True)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"class": ["A"]}, "no column detection_id or name, and no ra and dec"),
        ({"ra": [1.0], "class": ["A"]}, "no column detection_id or name, and no ra and dec"),
        ({"name": [FIRST]}, "no column of labels beside name"),
        ({"name": [FIRST], "theta": [1.0]}, "every row has a column theta already"),
        ({"name": [FIRST], "Split": ["test"]}, "every row has a column split already"),
        ({"name": ["Vega"], "class": ["A"]}, "no row of .* is of a selected source"),
    ],
)
def test_a_file_that_cannot_be_joined_is_one_clear_line(
    tmp_path: Path, columns: dict[str, list[Any]], fault: str
) -> None:
    with pytest.raises(SettingError, match=fault) as raised:
        labelled(tmp_path, columns)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_table_is_one_clear_line(tmp_path: Path) -> None:
    for ending in ("csv", "parquet", "vot", "hdf5"):
        with pytest.raises(CatalogError, match=rf"cannot read the table .*none\.{ending}: there is no such file$"):
            add_labels(SKY, tmp_path / f"none.{ending}", ARCSEC)
    (tmp_path / "labels.doc").touch()
    with pytest.raises(SettingError, match="ends in"):
        add_labels(SKY, tmp_path / "labels.doc", ARCSEC)
    with pytest.raises(SettingError, match="radius within which labels"):
        Settings("embedded", labels="labels.csv", label_radius=0)
    assert Settings("embedded").label_radius == radius_of("1arcsec")


# --- the folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two real detections, one with a label, in all configs."""
    folder = tmp_path_factory.mktemp("labels")
    lines = ["detection_id,class,redshift,seen", "4938.0.43,quasar,0.7,T", "1.0.1,star,,F"]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "list.txt").write_text("".join(f"{detection}\n" for detection in ff.REAL))
    words = ["prepare", folder / "out", "--archive", "embedded", "--detections", folder / "list.txt", "--bins", 8]
    done = command(*words, "--sources", "--labels", folder / "labels.csv", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "labels.csv: no selected source for 1 row (2)" in done.stderr
    return folder / "out"


@pytest.mark.parametrize("config", ["spectra", "counts", "binned", "sources"])
def test_labels_are_columns_of_every_config_with_rows_or_sources(real: Path, config: str) -> None:
    data = load_dataset(str(real), config, split="train")
    assert data.features["class"] == ClassLabel(names=["quasar", "star"])
    assert data.features["redshift"] == Value("float64") and data.features["seen"] == Value("bool")
    key = {name: number for number, name in enumerate(data["name"])}["2CXO J231929.3+003557"]
    assert (data[key]["class"], data[key]["redshift"], data[key]["seen"]) == (0, 0.7, True)
    assert (data[1 - key]["class"], data[1 - key]["redshift"], data[1 - key]["seen"]) == (None, None, None)
    batch = collate(data.with_format("arrow")[:])
    assert batch["class"].dtype == torch.int64 and sorted(batch["class"].tolist()) == [-1, 0]


def test_a_folder_with_labels_is_verified_and_described(real: Path) -> None:
    assert verify(real).failures == []
    manifest = Manifest.read(real)
    assert manifest.catalog["labels"] == {"rows": 2, "matched": 1, "sources": 1, "conflicts": 0}
    assert manifest.settings["labels"] == "labels.csv" and len(manifest.settings["labels_sha256"]) == 64
    assert manifest.own[0].classes == ("quasar", "star")
    card = (real / "README.md").read_text()
    assert "--labels labels.csv --label-radius 1arcsec" in card and "`redshift`" in card
    with h5py.File(real / "chandra_spectra.hdf5") as file:
        assert file["class"][:].tolist() == [0, -1] and json.loads(file["class"].attrs["classes"]) == ["quasar", "star"]


def test_other_labels_are_another_folder(real: Path, tmp_path: Path) -> None:
    path = real.parent / "labels.csv"
    settings = Settings("embedded", labels=str(path))
    one = settings.as_dict(None, "a" * 64)
    assert one != settings.as_dict(None, "b" * 64) and one["labels"] == "labels.csv"
