"""The matrix of an RMF file, from its bytes to config `responses`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st

from builder.model.errors import ProductError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import Response, Spectrum
from builder.model.selection import Selection
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare
from builder.reduce.ogip import tables
from builder.reduce.response import read_response
from builder.reduce.spectrum import reduce_products
from builder.use.calibration import Calibration
from builder.use.verify import verify
from chandra_spectra import ChandraSpectra
from tests import fits_files as ff
from tests.folders import rehash

pytestmark = pytest.mark.usefixtures("without_pictures")

NAMES = ("n_grp", "f_chan", "n_chan", "matrix")


def read(data: bytes) -> Response:
    return read_response(tables(data, "x_rmf3.fits", "rmf"), "x_rmf3.fits")


def by_astropy(path: Path) -> dict[str, Any]:
    """The matrix as astropy reads it, without padding."""
    with fits.open(path) as hdus:
        data = hdus[1].data
        groups = [range(n) for n in data["N_GRP"]]
        return {
            "energy_lo": data["ENERG_LO"],
            "energy_hi": data["ENERG_HI"],
            "n_grp": data["N_GRP"],
            "f_chan": [row["F_CHAN"][g] for row, of in zip(data, groups, strict=True) for g in of],
            "n_chan": [row["N_CHAN"][g] for row, of in zip(data, groups, strict=True) for g in of],
            "matrix": np.concatenate([row["MATRIX"][: sum(row["N_CHAN"][: row["N_GRP"]])] for row in data]),
        }


def made(
    groups: list[list[tuple[int, list[float]]]], first: int = 1, *, variable: bool, name: str = "MATRIX", **damage: Any
) -> bytes:
    """An RMF of so many energies, each of groups of a first channel and values; lists of variable or fixed length."""

    def column(title: str, code: str, lists: list[list[float]]) -> fits.Column:
        if variable:
            array = np.empty(len(lists), dtype=object)
            array[:] = [np.array(values, dtype={"I": np.int16, "E": np.float32}[code]) for values in lists]
            return fits.Column(title, f"P{code}()", array=array)
        width = max(1, *map(len, lists))
        return fits.Column(title, f"{width}{code}", array=np.array([row + [0] * (width - len(row)) for row in lists]))

    energy = np.arange(1, len(groups) + 1, dtype=np.float32)
    lists: dict[str, list[list[Any]]] = {
        "F_CHAN": [[begin for begin, _ in of] for of in groups],
        "N_CHAN": [[len(values) for _, values in of] for of in groups],
        "MATRIX": [[value for _, values in of for value in values] for of in groups],
    }
    lists |= {key: value for key, value in damage.items() if key in lists}
    columns = [
        fits.Column("ENERG_LO", "E", array=damage.get("ENERG_LO", energy)),
        fits.Column("ENERG_HI", "E", array=energy + 1),
        fits.Column("N_GRP", "I", array=damage.get("N_GRP", [len(of) for of in groups])),
        *(column(title, "E" if title == "MATRIX" else "I", lists[title]) for title in lists),
    ]
    return ff.fits_bytes(ff.table(name, columns, TLMIN4=first))


VALUES = st.lists(st.floats(0, 1, width=32), max_size=5)
MATRICES = st.lists(st.lists(st.tuples(st.integers(1, 1000), VALUES), max_size=3), min_size=1, max_size=6)


@pytest.mark.parametrize("stem", ff.REAL.values(), ids=lambda stem: stem[5:10])
def test_the_matrix_of_a_real_detection_is_as_astropy_reads_it(stem: str) -> None:
    path = ff.REAL_FOLDER / f"{stem}_rmf3.fits"
    response = read(path.read_bytes())
    assert response.first_channel == 1
    for name, expected in by_astropy(path).items():
        assert np.array_equal(getattr(response, name), expected), name


@given(MATRICES, st.booleans(), st.integers(0, 1))
@ff.stable(60)
def test_any_matrix_reads_back(groups: list[list[tuple[int, list[float]]]], variable: bool, first: int) -> None:
    response = read(made(groups, first, variable=variable))
    assert response.first_channel == first
    assert response.n_grp.tolist() == [len(of) for of in groups]
    assert response.f_chan.tolist() == [begin for of in groups for begin, _ in of]
    assert response.n_chan.tolist() == [len(values) for of in groups for _, values in of]
    assert response.matrix.tolist() == [value for of in groups for _, values in of for value in values]


GOOD: list[list[tuple[int, list[float]]]] = [[(3, [0.25, 0.5])], [(4, [0.5]), (9, [0.5])]]


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"N_GRP": [1, 3]}, "F_CHAN is cut short"),
        ({"N_GRP": [-1, 2]}, "N_GRP has numbers below 0"),
        ({"N_CHAN": [[2], [1, 9]]}, "MATRIX is cut short"),
        ({"N_CHAN": [[-2], [1, 1]]}, "as many values as"),
        ({"F_CHAN": [[1024], [4, 9]]}, "lies outside"),
        ({"F_CHAN": [[0], [4, 9]]}, "lies outside"),
        ({"MATRIX": [[0.25, np.nan], [0.5, 0.5]]}, "which is no probability"),
        ({"MATRIX": [[0.25, -0.5], [0.5, 0.5]]}, "which is no probability"),
        ({"ENERG_LO": [2.0, 1.0]}, "energy has a bin"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_matrix_that_contradicts_itself_is_refused(damage: dict[str, Any], words: str, variable: bool) -> None:
    with pytest.raises(ProductError, match=words) as caught:
        read(made(GOOD, variable=variable, **damage))
    assert caught.value.reason in ("unreadable_rmf", "out_of_range", "bad_energies")


def test_a_matrix_that_holds_the_area_as_well_is_refused() -> None:
    """HDUCLAS3, CAL/GEN/92-002a, section 3.1: REDIST is a matrix alone; it would be folded in twice."""
    content = ff.plain_rmf()
    assert read(content).matrix.size == 32
    with pytest.raises(ProductError, match="HDUCLAS3 is 'FULL', not REDIST") as caught:
        read(ff.changed_card(content, "HDUCLAS3", "'FULL'", 1))
    assert caught.value.reason == "wrong_type"


def test_a_heap_that_is_cut_short_and_a_file_without_a_matrix_are_refused() -> None:
    data = made(GOOD, variable=True)
    short = ff.changed_card(data, "PCOUNT", "8", 1)
    with pytest.raises(ProductError, match="cut short"):
        read(short)
    with pytest.raises(ProductError, match="0 tables RSP_MATRIX instead of 1"):
        read(made(GOOD, variable=True, name="OTHER"))


def test_a_reduction_that_keeps_the_response_gives_the_same_spectrum() -> None:
    products = ff.real_products(DetectionId(4938, 0, 43))
    plain, full = (reduce_products(products, Recipe(), response=keep) for keep in (False, True))
    assert isinstance(plain, Spectrum)
    assert isinstance(full, Spectrum)
    assert plain.response is None
    assert full.response is not None
    for name in Spectrum.__slots__:
        if name != "response":
            assert np.array_equal(getattr(plain, name), getattr(full, name)), name


@pytest.mark.parametrize(("summed", "words"), [(False, "DATASUM of RSP_MATRIX"), (True, "F_CHAN is cut short")])
def test_a_matrix_that_cannot_be_kept_changes_nothing_but_itself(summed: bool, words: str) -> None:
    damaged = ff.damaged_matrix(summed=summed)
    plain, full = (reduce_products(damaged, Recipe(), response=keep) for keep in (False, True))
    assert isinstance(plain, Spectrum)
    assert isinstance(full, Spectrum)
    assert isinstance(full.response, str)
    assert words in full.response
    assert plain.response is None
    assert np.array_equal(plain.rate, full.rate)


# config responses


def test_rows_are_the_same_with_and_without_responses_that_cannot_be_kept(tmp_path: Path) -> None:
    """Such a response is null and says why, from the store to `verify`, the builder and `fold`."""
    detection = DetectionId(4938, 0, 43)
    files = ff.damaged_matrix(summed=True)
    archive = ff.mirror(tmp_path / "mirror", {detection: [files.pha, files.arf, files.rmf]})
    found = {}
    for keep in (False, True):
        folder = tmp_path / str(keep)
        prepare(folder, Settings(str(archive), responses=keep), cache=tmp_path / "cache")
        assert verify(folder, load=keep, recheck=1, archive=str(archive), cache=tmp_path / "a").failures == []
        found[keep] = pq.read_table(folder / "data").to_pylist()
    assert found[True] == found[False]
    (row,) = load_dataset(str(tmp_path / "True"), "responses", split="train", cache_dir=str(tmp_path / "hf"))
    assert row.pop("rmf_sha256") == found[True][0]["rmf_sha256"]
    assert "F_CHAN is cut short" in row.pop("fault")
    row.pop("ebounds_id")
    assert set(row.values()) == {None}
    counts = load_dataset(str(tmp_path / "True"), "counts", split="train", cache_dir=str(tmp_path / "hf"))
    with pytest.raises(SettingError, match=r"could not be kept: .*F_CHAN is cut short"):
        Calibration.load(str(tmp_path / "True"), cache_dir=str(tmp_path / "hf")).fold(np.subtract, counts[0])


def test_every_row_has_its_response_once_as_the_file_has_it(full_sample: Path, tmp_path: Path) -> None:
    responses = load_dataset(str(full_sample), "responses", split="train", cache_dir=str(tmp_path)).with_format("numpy")
    rows = load_dataset(str(full_sample), "counts", cache_dir=str(tmp_path))
    keys = responses["rmf_sha256"][:]
    assert sorted(keys) == sorted({key for split in rows.values() for key in split["rmf_sha256"]})
    known = {
        row["detection_id"]: row
        for split in rows.values()
        for row in split.select_columns(["detection_id", "rmf_sha256", "ebounds_id"])
    }
    for detection, stem in ff.REAL.items():
        row = responses[list(keys).index(known[str(detection)]["rmf_sha256"])]
        assert row["ebounds_id"] == known[str(detection)]["ebounds_id"]
        for name, expected in by_astropy(ff.REAL_FOLDER / f"{stem}_rmf3.fits").items():
            assert np.array_equal(row[name], expected), name


def test_the_rows_are_those_of_a_folder_without_responses(full_sample: Path, sample: Path) -> None:
    with pytest.raises(ValueError, match="responses"):
        load_dataset(str(sample), "responses", split="train")
    assert not (sample / "responses").exists()
    one, other = (
        pa.concat_tables(map(pq.read_table, sorted((folder / "data").iterdir()))).sort_by("object_id")
        for folder in (full_sample, sample)
    )
    assert one.select(other.column_names).to_pylist() == other.to_pylist()  # the one has labels, too


def test_the_builder_gives_the_responses_of_the_folder(full_sample: Path, tmp_path: Path) -> None:
    builder = ChandraSpectra(config_name="responses", archive="embedded", cache_dir=str(tmp_path))
    mine = next(iter(builder.as_streaming_dataset(split="train")))
    theirs = next(iter(load_dataset(str(full_sample), "responses", split="train", streaming=True)))
    assert mine == theirs


def test_a_response_that_several_rows_share_is_stored_once(mirror: Path, tmp_path: Path) -> None:
    """Where the catalog serves one RMF for two packages, it is one row."""
    selection = Selection(min_cnts=0, min_sig=0, max_theta=60, limit=3)
    first = prepare(tmp_path / "out", Settings(str(mirror), selection=selection, responses=True), cache=tmp_path)[0]
    (rows,) = first.shards("responses", "train").values()
    assert rows == len(set(pq.read_table(tmp_path / "out/counts")["rmf_sha256"].to_pylist()))


def test_verify_finds_a_response_that_is_another_than_in_the_archive(full_sample: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))
    path = folder / "responses/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    row = table.slice(1, 1).to_pylist()[0]
    row["matrix"][1000] *= 2
    changed = pa.Table.from_pylist([row], schema=table.schema)
    pq.write_table(pa.concat_tables([table.slice(0, 1), changed, table.slice(2)]), path)
    rehash(folder)
    assert verify(folder, load=False).failures == []  # it is as good a matrix as any
    (failure,) = verify(folder, load=False, recheck=62).failures
    assert failure.startswith(f"responses/train-00000-of-00001.parquet: {row['rmf_sha256']}: matrix[1000] is")


def test_verify_finds_a_null_in_the_responses(full_sample: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))
    path = folder / "responses/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    names = table.column_names.index("n_grp")
    pq.write_table(
        table.set_column(names, table.schema.field("n_grp"), pa.nulls(len(table), table["n_grp"].type)), path
    )
    rehash(folder)
    failures = verify(folder, load=False).failures
    assert sum("n_grp is null, without a fault" in line for line in failures) > 5


@pytest.mark.parametrize("name", ["ebounds_id", "n_grp", "f_chan", "n_chan", "matrix", "rmf_sha256", "fault"])
def test_verify_finds_a_damaged_response(name: str, full_sample: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full_sample, tmp_path / "chandra_spectra"))
    path = folder / "responses/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    row = table.slice(2, 1).to_pylist()[0]
    value = row[name]
    row[name] = [*value[:-1], -1] if isinstance(value, list) else "0" * len(value or "fault")
    changed = pa.Table.from_pylist([row], schema=table.schema)
    pq.write_table(pa.concat_tables([table.slice(0, 2), changed, table.slice(3)]), path)
    rehash(folder)
    assert any(line.startswith("responses/") for line in verify(folder, load=False).failures)
