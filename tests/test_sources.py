"""Config `sources`: one row a master source, its detections summed."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset

from builder.dataset.layout import Manifest
from builder.dataset.slices import flat_tables
from builder.dataset.sources import sum_sources
from builder.model.schema import features
from builder.model.settings import Settings
from builder.use.calibration import Calibration
from builder.use.verify import verify
from chandra_spectra import ChandraSpectra, collate
from tests.folders import contents, rehash

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def loaded(full_sample: Path) -> dict[str, Dataset]:
    """Sources, and their detections, of all splits."""
    return {
        config: concatenate_datasets(list(load_dataset(str(full_sample), config).values())).with_format("numpy")
        for config in ("sources", "counts")
    }


@pytest.fixture(scope="module")
def detections(loaded: dict[str, Dataset]) -> dict[str, dict[str, Any]]:
    return {row["detection_id"]: row for row in loaded["counts"]}


@pytest.fixture(scope="module")
def calibration(full_sample: Path) -> Calibration:
    return Calibration.load(str(full_sample))


@pytest.fixture(scope="module")
def tables(full_sample: Path) -> list[pa.Table]:
    """The detections of split train, a few a table."""
    paths = sorted((full_sample / "counts").glob("train-*.parquet"))
    return list(flat_tables(paths, 7))


def sums(tables: list[pa.Table], at_once: int = 4000) -> list[dict[str, Any]]:
    return [row for table in sum_sources(lambda: iter(tables), at_once=at_once) for row in table.to_pylist()]


def all_ids(tables: list[pa.Table]) -> list[str]:
    return [name for table in tables for name in table["detection_id"].to_pylist()]


def changed(tables: list[pa.Table], column: str, values: dict[str, Any]) -> list[pa.Table]:
    """Give some detections other values."""
    table = pa.concat_tables(tables)
    number = table.column_names.index(column)
    ids, old = table["detection_id"].to_pylist(), table[column].to_pylist()
    new = [values.get(name, value) for name, value in zip(ids, old, strict=True)]
    field = table.schema.field(number)
    return [table.set_column(number, field, [pa.array(new, field.type)])]


# --- the sums


def test_each_detection_is_in_the_one_row_of_its_source(loaded: dict[str, Dataset]) -> None:
    sources, counts = loaded["sources"], loaded["counts"]
    listed = {detection: row["name"] for row in sources for detection in row["detection_ids"]}
    assert listed == dict(zip(counts["detection_id"], counts["name"], strict=True))
    assert len(set(sources["name"])) == len(sources) < len(counts)
    assert all(not len(row["other_detection_ids"]) for row in sources)


def test_counts_and_exposure_are_sums_and_the_area_is_their_mean(
    loaded: dict[str, Dataset], detections: dict[str, dict[str, Any]]
) -> None:
    assert max(len(row["detection_ids"]) for row in loaded["sources"]) > 2
    for row in loaded["sources"]:
        rows = [detections[name] for name in row["detection_ids"]]
        for name in ("counts", "background_counts", "source_counts", "background_counts_total"):
            assert np.array_equal(row[name], sum(each[name] for each in rows)), name
        assert row["exposure"] == math.fsum(each["exposure"] for each in rows)
        weights = [each["exposure"] for each in rows]
        mean = np.average([each["arf"]["specresp"].astype(float) for each in rows], axis=0, weights=weights)
        assert np.allclose(row["arf"]["specresp"], mean, rtol=1e-6)
        times = [each["gti_mjd_obs"] for each in rows if each["gti_mjd_obs"] == each["gti_mjd_obs"]]
        span = [min(times), max(times)] if times else [np.nan, np.nan]
        np.testing.assert_array_equal([row["first_mjd_obs"], row["last_mjd_obs"]], span)
        for name in ("name", "ra", "dec", "split", "healpix", "significance", "ebounds_id", "grating"):
            assert row[name] == rows[0][name] or row[name] != row[name], name
        longest = max(rows, key=lambda each: each["exposure"])
        assert row["rmf_sha256"] == longest["rmf_sha256"]


def test_a_source_with_one_detection_is_that_detection(
    loaded: dict[str, Dataset], detections: dict[str, dict[str, Any]]
) -> None:
    alone = [row for row in loaded["sources"] if len(row["detection_ids"]) == 1]
    assert len(alone) > 10
    for row in alone:
        own = detections[row["detection_ids"][0]]
        assert row["background_scale"] == own["background_scale"]
        assert np.array_equal(row["arf"]["specresp"], own["arf"]["specresp"])


def sherpa_data(row: dict[str, Any], energies: tuple[Any, Any]) -> Any:
    """Make Sherpa's data of a row, with a matrix by which each photon is counted in the channel of its energy."""
    from sherpa.astro.data import DataARF, DataPHA, DataRMF

    channel, exposure = np.arange(1, 1025.0), row["exposure"]
    data = DataPHA("source", channel, row["counts"].astype(float), exposure=exposure, backscal=1.0)
    background = DataPHA("background", channel, row["background_counts"].astype(float), exposure=exposure)
    background.backscal = 1 / row["background_scale"]
    low, high, area = (row["arf"][name].astype(float) for name in ("energy_lo", "energy_hi", "specresp"))
    data.set_arf(DataARF("arf", low, high, area, exposure=exposure))
    one = np.ones(low.size, dtype=np.uint32)
    first = np.searchsorted(energies[1], low, side="right").astype(np.uint32) + 1
    matrix = (one, first, one, np.ones(low.size))
    data.set_rmf(DataRMF("rmf", 1024, low, high, *matrix, offset=1, e_min=energies[0], e_max=energies[1]))
    data.set_background(background)
    data.set_analysis("energy")
    return data


def test_sherpa_subtracts_from_the_sum_what_it_subtracts_from_the_detections(
    loaded: dict[str, Dataset], detections: dict[str, dict[str, Any]], calibration: Calibration
) -> None:
    """Net counts of the kept channels."""

    def net(row: dict[str, Any]) -> float:
        data = sherpa_data(row, calibration.energies(row["ebounds_id"]))
        data.ignore(None, 0.5)
        data.ignore(8.0, None)
        data.subtract()
        return float(np.sum(data.get_dep(filter=True)))

    summed = [row for row in loaded["sources"] if len(row["detection_ids"]) > 1]
    assert len(summed) > 5
    for row in summed:
        expected = math.fsum(net(detections[name]) for name in row["detection_ids"])
        assert net(row) == pytest.approx(expected, rel=1e-9)


def test_sherpa_predicts_for_the_sum_what_it_predicts_for_the_detections(
    loaded: dict[str, Dataset], detections: dict[str, dict[str, Any]], calibration: Calibration
) -> None:
    """Exposure and mean area are such that the counts of a model add up."""
    from sherpa.astro.instrument import RSPModelPHA
    from sherpa.models.basic import PowLaw1D

    model = PowLaw1D("model")
    model.gamma, model.ampl = 1.7, 1e-4

    def predicted(row: dict[str, Any]) -> Any:
        data = sherpa_data(row, calibration.energies(row["ebounds_id"]))
        return row["exposure"] * RSPModelPHA(data.get_arf(), data.get_rmf(), data, model)(data.channel)

    for row in [row for row in loaded["sources"] if len(row["detection_ids"]) > 1][:5]:
        expected = sum(predicted(detections[name]) for name in row["detection_ids"])
        assert expected.max() > 1 and np.allclose(predicted(row), expected, rtol=1e-6)


def test_the_sums_do_not_depend_on_how_the_detections_are_read(tables: list[pa.Table]) -> None:
    whole = sums([pa.concat_tables(tables)])
    assert sums(tables, at_once=3) == sums(tables) == whole
    assert [row["detection_ids"][0] for row in whole] == sorted(
        (row["detection_ids"][0] for row in whole), key=lambda name: tuple(map(int, name.split(".")[:3]))
    )


def test_only_the_sums_of_some_sources_are_in_memory(tables: list[pa.Table]) -> None:
    """Each reading makes the next few, and none is made before it is asked for."""
    readings = 0

    def read() -> Iterator[pa.Table]:
        nonlocal readings
        readings += 1
        yield from tables

    made = sum_sources(read, at_once=10)
    assert len(next(made)) == 10 and readings == 2
    assert len(next(made)) == 10 and readings == 3


# --- what is not alike


def test_detections_with_a_grating_are_listed_and_not_summed(tables: list[pa.Table]) -> None:
    row = max(sums(tables), key=lambda row: len(row["detection_ids"]))
    first, *others = row["detection_ids"]

    def with_grating(names: list[str], word: str | None) -> dict[str, Any]:
        found = sums(changed(tables, "grating", dict.fromkeys(names, word)))
        return next(each for each in found if each["name"] == row["name"])

    found = with_grating([first], "HETG")
    assert (found["detection_ids"], found["other_detection_ids"], found["grating"]) == (others, [first], "NONE")
    assert sum(found["counts"]) < sum(row["counts"]) and found["exposure"] < row["exposure"]
    found = with_grating(others, "HETG")  # shorter, but without a grating
    assert (found["detection_ids"], found["other_detection_ids"]) == ([first], others)
    assert with_grating([first], None)["detection_ids"] == others
    found = with_grating([first, *others], "LETG")  # there are no others
    assert (found["detection_ids"], found["other_detection_ids"], found["grating"]) == ([first, *others], [], "LETG")
    assert found["counts"] == row["counts"]


def test_of_several_grids_the_one_with_the_longest_exposure_is_summed(tables: list[pa.Table]) -> None:
    row = max(sums(tables), key=lambda row: len(row["detection_ids"]))
    table = pa.concat_tables(tables)
    exposure = dict(zip(table["detection_id"].to_pylist(), table["exposure"].to_pylist(), strict=True))
    for name in row["detection_ids"]:
        odd = changed(tables, "ebounds_id", {name: "f" * 16})
        found = next(each for each in sums(odd) if each["name"] == row["name"])
        assert (found["detection_ids"] == [name]) == (exposure[name] > row["exposure"] / 2)
        assert sorted(found["detection_ids"] + found["other_detection_ids"]) == sorted(row["detection_ids"])


def test_detections_without_a_name_are_sources_of_their_own(tables: list[pa.Table]) -> None:
    found = sums(changed(tables, "name", dict.fromkeys(all_ids(tables))))
    assert len(found) == sum(map(len, tables))
    assert all(row["name"] is None and len(row["detection_ids"]) == 1 for row in found)


def test_without_any_background_counts_the_scale_is_the_mean_by_exposure(tables: list[pa.Table]) -> None:
    found = sums(changed(tables, "background_counts_total", dict.fromkeys(all_ids(tables), 0)))
    table = pa.concat_tables(tables).select(["detection_id", "background_scale", "exposure"]).to_pylist()
    known = {row["detection_id"]: row for row in table}
    for row in found:
        rows = [known[name] for name in row["detection_ids"]]
        mean = np.average([r["background_scale"] for r in rows], weights=[r["exposure"] for r in rows])
        assert row["background_scale"] == pytest.approx(mean, rel=1e-12)


# --- the folder


def test_rows_of_sources_are_rebinned_and_collated_as_those_of_counts(
    loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    rows = loaded["sources"].with_format("arrow")[:]
    batch = collate(rows)
    assert batch["counts"].shape == (len(rows), 1024) and batch["arf"]["mask"].all()
    assert isinstance(batch["detection_ids"][0], list)
    rebinned = calibration.rebin(rows, [0.5, 2, 7])
    assert rebinned["counts"].shape == (len(rows), 2)


def test_the_builder_gives_the_sources_of_the_folder(full_sample: Path, tmp_path: Path) -> None:
    builder = ChandraSpectra(
        config_name="sources", archive="embedded", splits="source", cache_dir=str(tmp_path / "builder")
    )
    builder.download_and_prepare()
    own, prepared = builder.as_dataset(), load_dataset(str(full_sample), "sources", cache_dir=str(tmp_path / "folder"))
    assert own["train"].features == features("sources")
    for split in ("train", "validation", "test"):  # a user's labels are of the folder alone
        assert own[split].to_dict() == prepared[split].remove_columns("class").to_dict()


def test_the_manifest_and_the_card_say_that_there_are_sources(full_sample: Path) -> None:
    manifest = Manifest.read(full_sample)
    assert manifest.sources and manifest.read_settings(full_sample).sources
    card = (full_sample / "README.md").read_text()
    assert "--sources" in card and "`other_detection_ids`" in card and "Settings" not in card
    assert not Settings("embedded").sources


def _change(name: str, change: Any) -> Any:
    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[2][name] = change(rows[2][name])
        return pa.Table.from_pylist(rows, table.schema)

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change("counts", lambda value: [*value[:-1], 7]), r"counts\[1023\] is 7, the detections give 0"),
        (_change("exposure", lambda value: value + 1), "exposure is .*, the detections give"),
        (_change("other_detection_ids", lambda value: ["1.0.1"]), "other_detection_ids has 1 values"),
        (_change("name", lambda value: None), "name is None"),
        (lambda table: table.slice(1), "number of rows|is"),
    ],
)
def test_verify_finds_a_source_that_is_not_the_sum(full_sample: Path, tmp_path: Path, change: Any, words: str) -> None:
    folder = Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))
    path = next((folder / "sources").glob("train-*.parquet"))
    pq.write_table(change(pq.read_table(path)), path)
    rehash(folder)
    failures = verify(folder, load=False).failures
    assert any(line.startswith(f"sources/{path.name}") and re.search(words, line) for line in failures), failures


def test_the_other_files_are_those_of_a_folder_without_sources(full_sample: Path) -> None:
    names = {path for path in contents(full_sample) if path.startswith("sources/")}
    assert names == {f"sources/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}
