"""Looks into a prepared folder: the rows that are asked for, and what all of them come to."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builder.dataset.catalog_file import read_catalog
from builder.dataset.layout import Manifest
from builder.dataset.read import find_detections, overview, read_rows, read_scalars
from builder.model.errors import OutputError, SettingError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.sky import Cone
from builder.prepare import prepare

REAL = "4938.0.43"


def test_all_detections_of_a_source_are_found_and_each_once(full_sample: Path) -> None:
    table = pq.read_table(full_sample / "data", columns=["detection_id", "name"]).to_pylist()
    name = next(row["name"] for row in table if row["detection_id"].endswith(".e1"))
    ids = {row["detection_id"] for row in table if row["name"] == name}
    assert len(ids) >= 2
    assert set(find_detections(full_sample, names=[name])) == ids
    assert set(find_detections(full_sample, names=[name.lower().replace(" ", "")])) == ids
    both = find_detections(full_sample, detections=[REAL, min(ids)], names=[name])
    assert both[:2] == [REAL, min(ids)]
    assert sorted(both) == sorted({REAL, *ids})


def test_a_detection_without_a_cycle_stands_for_both(sample: Path) -> None:
    (first,) = (text for text in read_scalars(sample, ["detection_id"])["detection_id"].to_pylist() if "e1" in text)
    catalog = str(DetectionId.parse(first).catalog)
    assert find_detections(sample, [catalog]) == [f"{catalog}.e1", f"{catalog}.e2"]
    assert find_detections(sample, [f"{catalog}.e2"]) == [f"{catalog}.e2"]


def test_rows_come_in_the_order_asked_for_from_any_shard_and_row_group(sample: Path, tmp_path: Path) -> None:
    table = pq.read_table(sample / "data")
    (tmp_path / "data").mkdir()
    for number, part in enumerate((table.slice(0, 40), table.slice(40))):
        pq.write_table(part, tmp_path / "data" / f"train-{number}.parquet", row_group_size=7)
    ids = table["detection_id"].to_pylist()
    chosen = [ids[61], ids[0], ids[41], ids[8]]
    found = read_rows(tmp_path, chosen)
    assert [row["detection_id"] for row in found] == chosen
    for row in found:
        expected = table.slice(ids.index(row["detection_id"]), 1).to_pylist()[0]
        assert row["spectrum"]["flux"].tolist() == expected["spectrum"]["flux"]
        assert row["name"] == expected["name"]


def test_a_damaged_shard_and_a_missing_one_are_one_clear_line(sample: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(sample / "data", folder / "data")
    (shard,) = (folder / "data").iterdir()
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"cannot read .*train-.*prepare the folder again") as error:
        read_rows(folder, [REAL])
    assert "\n" not in str(error.value)
    shard.unlink()
    with pytest.raises(OutputError, match=r"is not a prepared folder: it has no data/\*\.parquet"):
        find_detections(folder, [REAL])


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    for read in (lambda folder: find_detections(folder, [REAL]), Manifest.read):
        with pytest.raises(OutputError, match="nowhere is not a prepared folder: there is no "):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("j231929.3+003557", r"did you mean '2CXO J231929\.3\+003557'\?"),
        ("2cxoJ2319", r"did you mean '2CXO J231929\.3\+003557'\?"),
        ("SIM", r"did you mean 'SIM J[\d.+-]+', or one of \d+ more\?"),
        ("2CXO J231929.4+003550", r"the source nearest to this position is '2CXO J2319.*557', 7\.\d+ arcsec away"),
        ("J231929.4-203550", r"the source nearest to this position is 'SIM J[\d.+-]+', 16\.3 deg away"),
        ("M31", "its names look like '2CXO J"),
        ("", "its names look like '2CXO J"),
    ],
)
def test_a_name_that_no_source_has_brings_up_a_similar_one_or_the_nearest_on_the_sky(
    sample: Path, name: str, hint: str
) -> None:
    with pytest.raises(SettingError, match=f"has no source '{re.escape(name)}'; {hint}"):
        find_detections(sample, names=[name])


def test_where_the_catalog_gives_no_positions_none_is_the_nearest(mirror: Path, tmp_path: Path) -> None:
    rows = read_catalog(mirror / "catalog.vot").drop_columns(["ra", "dec"])
    pq.write_table(rows, tmp_path / "catalog.parquet")
    prepare(tmp_path / "out", Settings(str(mirror), catalog=str(tmp_path / "catalog.parquet")), cache=tmp_path / "c")
    with pytest.raises(SettingError, match="its names look like '"):
        find_detections(tmp_path / "out", names=["J231929.4-203550"])


def test_the_overview_is_that_of_the_rows(full_sample: Path) -> None:
    rows = pq.read_table(full_sample / "data").to_pylist()
    seen = overview(full_sample)
    assert (seen.rows, seen.sources) == (len(rows), len({row["name"] for row in rows}))
    assert seen.observations == len({row["obsid"] for row in rows})
    assert seen.exposure == pytest.approx(sum(row["exposure"] for row in rows))
    assert seen.counts == sum(row["source_counts"] for row in rows)
    first, last = seen.dates.split(" to ")
    assert first < "2005-05-03" < last  # MJD 53493, the observation 4938


def test_the_settings_are_read_back_from_the_manifest(full_sample: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(full_sample)
    digest = {"labels_sha256": manifest.settings["labels_sha256"]}
    assert manifest.read_settings(full_sample).as_dict() | digest == manifest.settings
    chosen = frozenset({DetectionId(1, 2, 3), DetectionId(4, 5, 6)})
    selection = Selection(9, 8, 7, Cone(10, 41, 0.5), ("2CXO J004248.5+411521",), (4, 5), chosen, 3)
    (tmp_path / "detections.txt").write_text("1.2.3\n4.5.6\n")
    settings = Settings(release="rel2.0", selection=selection)
    assert replace(manifest, settings=settings.as_dict()).read_settings(tmp_path) == settings
    older = settings.as_dict() | {"selection": {"colour": "blue"}}
    with pytest.raises(SettingError, match=r"has not the settings of this version .*'colour'"):
        replace(manifest, settings=older).read_settings(tmp_path)
