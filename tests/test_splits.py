"""Splits by place on the sky: no source on two sides, whatever the selection."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from builder.archive.catalog import from_rows
from builder.dataset.catalog_file import read_catalog, write_catalog
from builder.dataset.layout import Manifest
from builder.dataset.rows import healpix
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.splits import SPLITS, Splits
from builder.prepare import prepare
from builder.simulator.products import SimulatedArchive
from builder.use.verify import verify
from chandra_spectra import ChandraSpectra
from tests.fits_files import detection, stable
from tests.folders import rehash
from tests.runs import command

SHARES = (
    st.integers(0, 100)
    .flatmap(lambda a: st.tuples(st.just(a), st.integers(0, 100 - a)))
    .map(lambda pair: (*pair, 100 - sum(pair)))
)

pytestmark = pytest.mark.usefixtures("without_pictures")


def rows(folder: Path, config: str = "data") -> dict[int, dict[str, Any]]:
    """The scalars of all rows by object_id, each with the split of its file."""
    found = {}
    for path in sorted((folder / config).glob("*.parquet")):
        table = pq.read_table(path)
        table = table.select([name for name in table.column_names if not pa.types.is_nested(table[name].type)])
        found.update({row["object_id"]: row | {"file": path.name.partition("-")[0]} for row in table.to_pylist()})
    return found


# the rule


def test_the_split_of_a_cell_is_the_documented_hash() -> None:
    cells = [0, 34, 2401, 3071]
    places = [int.from_bytes(hashlib.sha256(f"healpix {cell}".encode()).digest()[:8], "big") / 2**64 for cell in cells]
    expected = ["train" if u < 0.8 else "validation" if u < 0.9 else "test" for u in places]
    assert [*map(Splits().of, cells)] == expected


@given(SHARES)
@stable(50)
def test_the_shares_of_the_sky_are_those_asked_for_within_statistics(shares: tuple[int, int, int]) -> None:
    of = [*map(Splits(shares=shares).of, range(3072))]
    for split, share in zip(SPLITS, shares, strict=True):
        p = share / 100
        assert abs(of.count(split) - 3072 * p) <= 4 * np.sqrt(3072 * p * (1 - p))


@given(SHARES, SHARES)
@stable(50)
def test_a_larger_share_of_train_takes_no_cell_out_of_it(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    small, large = sorted((one, other))
    before, after = ([*map(Splits(shares=shares).of, range(3072))] for shares in (small, large))
    assert all(now == "train" for was, now in zip(before, after, strict=True) if was == "train")


def test_cells_are_those_of_healpix_nested() -> None:
    """ang2pix_nest of Gorski et al. 2005, ApJ 622, 759, from its formulas and from cdshealpix 0.9, which agree."""
    cells = {
        (349.87226376752, 0.59919444122383): 1174,
        (353.00167610021, 0.26889973421926): 1174,  # the real sources
        (0.0, 90.0): 255,
        (0.0, -90.0): 2048,
        (0.0, 1.0): 1216,
        (123.0, -89.99): 2304,
    }
    nowhere = [(None, 1.0), (1.0, None), (math.nan, 1.0), (1.0, 90.001), (1.0, -90.001)]
    ra, dec = (pa.chunked_array([pa.array(values, pa.float64())]) for values in zip(*cells, *nowhere, strict=True))
    assert healpix(ra, dec).to_pylist() == [*cells.values(), *[None] * len(nowhere)]


def test_a_row_without_a_position_is_train() -> None:
    assert [*map(Splits(shares=(0, 0, 100)).of, [None, 5])] == ["train", "test"]


@pytest.mark.parametrize("text", ["none:80/10/10", "source:80/10/10", "source:70/20/10", "source:100/0/0"])
def test_the_text_of_splits_reads_back(text: str) -> None:
    assert str(Splits.parse(text)) == text
    assert Splits.parse("source") == Splits()
    assert Splits.parse("none") == Splits(divided=False)


@pytest.mark.parametrize(
    "text",
    ["", "name", "source:", "source:80/10", "source:80/10/20", "source:80/10/10/0", "source:90/20/-10", "source "],
)
def test_other_texts_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        Splits.parse(text)
    assert "\n" not in str(caught.value)


def test_no_source_of_a_large_sky_is_in_two_splits() -> None:
    catalog = pa.Table.from_pylist(
        [{name: row[name] for name in ("name", "ra", "dec")} for row in SimulatedArchive(3000).rows]
    )
    sides = defaultdict(set)
    for name, split in zip(
        catalog["name"].to_pylist(), map(Splits().of, healpix(catalog["ra"], catalog["dec"]).to_pylist()), strict=True
    ):
        sides[name].add(split)
    assert {len(found) for found in sides.values()} == {1}
    assert {split for found in sides.values() for split in found} == set(SPLITS)
    assert len(sides) < len(catalog)  # there are sources with several detections


# a prepared folder


@pytest.mark.parametrize("config", ["data", "counts"])
def test_the_files_of_the_splits_share_out_the_rows_as_the_column_says(
    config: str, full_sample: Path, sample: Path
) -> None:
    divided, whole = rows(full_sample, config), rows(sample, config)
    assert {row["file"] for row in whole.values()} == {"train"}
    assert {row["file"] for row in divided.values()} == set(SPLITS)
    assert all(row["file"] == row["split"] for row in divided.values())
    for key, row in whole.items():  # the one has labels, too
        assert {name: divided[key][name] for name in row} | {"file": ""} == row | {
            "file": ""
        }  # the one has labels, too
    assert divided.keys() == whole.keys()
    for split in SPLITS:
        ids = [number for number, row in divided.items() if row["file"] == split]
        assert ids == sorted(ids)  # each in the catalog's order


def test_no_source_and_no_sky_cell_of_a_folder_is_in_two_splits(full_sample: Path) -> None:
    for key in ("name", "healpix"):
        sides = defaultdict(set)
        for row in rows(full_sample).values():
            sides[row[key]].add(row["split"])
        assert {len(found) for found in sides.values()} == {1}


def test_a_source_keeps_its_split_under_other_cuts(full_sample: Path, tmp_path: Path) -> None:
    cuts = Selection(min_cnts=300, min_sig=0, max_theta=60)
    prepare(tmp_path / "few", Settings(archive="embedded", selection=cuts, splits=Splits(divided=True)))
    few, many = rows(tmp_path / "few"), rows(full_sample)
    assert 0 < len(few) < len(many)
    assert all(row["split"] == many[number]["split"] for number, row in few.items())


def test_hdf5_stays_in_the_catalogs_order_and_tells_the_split(full_sample: Path) -> None:
    with h5py.File(full_sample / "chandra_spectra.hdf5") as file:
        numbers = file["object_id"][:].tolist()
        assert numbers == sorted(numbers)
        known = rows(full_sample)
        assert file["split"].asstr()[:].tolist() == [known[number]["split"] for number in numbers]


def test_load_dataset_gives_the_splits_and_the_card_their_sizes(full_sample: Path, tmp_path: Path) -> None:
    loaded = load_dataset(str(full_sample), cache_dir=str(tmp_path))
    assert list(loaded) == list(SPLITS)
    files = {file.path: file.rows for file in Manifest.read(full_sample).files}
    text = (full_sample / "README.md").read_text(encoding="utf-8")
    for split, share in zip(SPLITS, (80, 10, 10), strict=True):
        assert set(loaded[split]["split"]) == {split}
        assert len(loaded[split]) == files[f"data/{split}-00000-of-00001.parquet"]
        assert f"| `{split}` | {share} % | {len(loaded[split])} |" in text
    assert "--splits" not in text
    assert len(load_dataset(str(full_sample), split="+".join(SPLITS), cache_dir=str(tmp_path))) == 62


def test_a_split_without_rows_has_no_files_and_the_folder_loads(tmp_path: Path) -> None:
    chosen = Selection(limit=2)
    settings = Settings(archive="embedded", selection=chosen, splits=Splits.parse("source:100/0/0"))
    prepare(tmp_path / "out", settings)
    loaded = load_dataset(str(tmp_path / "out"), "counts", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2}
    assert verify(tmp_path / "out", load=False).failures == []


def test_the_builder_gives_the_splits_of_the_folder(full_sample: Path, tmp_path: Path) -> None:
    builder = ChandraSpectra(archive="embedded", cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    mine, theirs = builder.as_dataset(), load_dataset(str(full_sample), cache_dir=str(tmp_path / "other"))
    assert list(mine) == list(theirs)
    for split in SPLITS:
        assert mine[split].to_list() == theirs[split].select_columns(mine[split].column_names).to_list()


def test_a_split_whose_detections_are_all_rejected_is_left_out_by_the_builder(mirror: Path, tmp_path: Path) -> None:
    """90018.1.25 has no RMF file in the sample, and of these three it alone lies in a cell of the test split."""
    chosen = {DetectionId(4938, 0, 43), DetectionId(7867, 0, 2), DetectionId(90018, 1, 25)}
    rows = [row for row in read_catalog(mirror / "catalog.vot").to_pylist() if detection(row) in chosen]
    known = {"src_cnts_aper_b": 100, "theta": 1, "flux_significance_b": 9, "flux_bb_aper_b": 1e-13}
    write_catalog(mirror / "catalog.vot", from_rows(row | known for row in rows))
    builder = ChandraSpectra(archive=str(mirror), min_cnts=0, splits="source", cache_dir=str(tmp_path / "cache"))
    builder.download_and_prepare()
    assert {split: len(found) for split, found in builder.as_dataset().items()} == {"train": 2}


def test_wrong_splits_end_the_command_in_one_line(tmp_path: Path) -> None:
    result = command("prepare", tmp_path / "out", "--archive", "embedded", "--splits", "50/50")
    assert result.returncode == 1
    assert result.stderr == (
        "chandra-spectra: splits '50/50': give source, source:70/20/10 for other shares, or none\n"
    )
    assert list(tmp_path.iterdir()) == []


# what verify finds


@pytest.fixture
def folder(full_sample: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))


def test_verify_finds_a_whole_divided_folder_right(full_sample: Path) -> None:
    report = verify(full_sample)
    assert report.failures == []
    assert "62 responses" in report.checks[3].scope


@pytest.mark.parametrize("config", ["data", "counts"])
def test_verify_names_file_and_row_of_a_value_in_any_split(config: str, folder: Path) -> None:
    path = folder / config / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    found = table.to_pylist()
    detection, found[3]["phi"] = found[3]["detection_id"], 1.5
    pq.write_table(pa.Table.from_pylist(found, schema=table.schema), path)
    rehash(folder)
    failures = verify(folder, load=False).failures
    assert any(
        line.startswith(f"{config}/test-00000-of-00001.parquet: {detection} (row 3): phi")
        or f"{detection} (row 3)" in line
        for line in failures
    )


def test_verify_finds_a_row_that_stands_in_the_files_of_another_split(folder: Path) -> None:
    for config in ("data", "counts"):
        train, test = (folder / config / f"{split}-00000-of-00001.parquet" for split in ("train", "test"))
        one, other = pq.read_table(train), pq.read_table(test)
        pq.write_table(pa.concat_tables([one, other.slice(0, 1)]), train)
        pq.write_table(other.slice(1), test)

    def count(manifest: dict[str, Any]) -> None:
        for file in manifest["files"]:
            if file["path"].startswith(("data/", "counts/")):
                file["rows"] = pq.read_metadata(folder / file["path"]).num_rows

    rehash(folder, count)
    assert verify(folder, load=False).failed


@pytest.mark.parametrize("damage", ["changed", "missing", "longer"])
def test_verify_finds_a_damaged_split_in_hdf5_and_blames_nothing_else(damage: str, folder: Path) -> None:
    with h5py.File(folder / "chandra_spectra.hdf5", "r+") as file:
        if damage == "changed":
            file["split"][5] = "test" if file["split"].asstr()[5] == "train" else "train"
        elif damage == "missing":
            del file["split"]
        else:
            file["split"].resize(63, axis=0)
    rehash(folder)
    (failure,) = verify(folder, load=False).failures
    assert "split" in failure and failure.startswith("chandra_spectra.hdf5")
