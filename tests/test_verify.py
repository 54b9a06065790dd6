"""Verify finds whatever is wrong with a prepared folder, and nothing where nothing is."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.dataset import shards
from builder.dataset.hdf5 import HDF5Writer
from builder.dataset.layout import Manifest
from builder.dataset.rows import public
from builder.model.columns import COLUMNS, columns_of
from builder.model.errors import OutputError, SettingError
from builder.model.schema import arrow_schema, features
from builder.model.settings import Recipe, Settings
from builder.model.splits import Splits
from builder.prepare import prepare
from builder.simulator.server import ArchiveServer
from builder.use import verify
from builder.use.verify import Report
from builder.workspace import holdings
from tests.folders import rehash
from tests.runs import command

HDF5 = "chandra_spectra.hdf5"
pytestmark = pytest.mark.usefixtures("without_pictures")

SHARDS = {
    config: f"{name}/train-00000-of-00001.parquet"
    for config, name in (("spectra", "data"), ("counts", "counts"), ("ebounds", "ebounds"))
}
FILES = (*SHARDS.values(), HDF5, "rejections.parquet", "README.md")
ROW, DETECTION = 7, "90001.0.35"
FEW = 10
"""Rows that most changes are among: the others need not become Python's."""


def content(folder: Path, **options: Any) -> Report:
    return verify.verify(folder, load=False, **options)


LIMIT = re.compile("_(?:lo|hi)lim")
"""Columns that are like those whose limits they are."""


def other(value: Any) -> Any:
    """A value of the same type that differs, as little as its type allows in Parquet."""
    if isinstance(value, list):
        return [*value[:-1], other(value[-1])]
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        return value[:-1] + ("x" if value[-1:] != "x" else "y")
    if isinstance(value, float):
        return float(np.nextafter(np.float32(value), np.float32(np.inf)))
    return value + 1


def test_the_sample_is_found_right_and_loads_cold(sample: Path) -> None:
    report = verify.verify(sample)
    assert report.failures == []
    assert [check.claim for check in report.checks if not check.scope] == ["reduced again, the numbers are the same"]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(group=False, subtract=False),
        Recipe(0, 20, min_counts=1),
        Recipe(0.8759999871253967, 5.8546, min_counts=50),  # 0.8759999871253967 is the very edge of a channel
    ],
    ids=["ungrouped", "all channels", "narrow"],
)
def test_other_recipes_are_found_right_and_give_the_same_numbers_again(recipe: Recipe, tmp_path: Path) -> None:
    prepare(tmp_path / "out", Settings(archive="embedded", recipe=recipe), cache=tmp_path / "cache")
    report = content(tmp_path / "out", recheck=5, seed=1)
    assert report.failures == []
    assert report.checks[-1].scope == "5 of 62 rows, from embedded"
    with h5py.File(tmp_path / "out" / HDF5) as file:
        said = file["spectrum_flux"].attrs["description"]
    assert ("background-subtracted" in said) == recipe.subtract


def test_shards_and_slices_of_any_size_are_read_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_ROWS", 10)
    monkeypatch.setattr(shards, "_SHARD_BYTES", 300_000)
    folder = tmp_path / "out"
    prepare(folder, Settings(archive="embedded", splits=Splits(divided=False)), cache=tmp_path / "cache")
    assert len(list((folder / "data").iterdir())) == 1
    assert content(folder, slice_rows=7).failures == []
    path = folder / "counts" / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    detection, rows[3]["phi"] = rows[3]["detection_id"], 1.5
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    rehash(folder)
    failures = content(folder, slice_rows=7).failures
    assert any(line.startswith(f"counts/{path.name}: {detection} (row 5") for line in failures), failures


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found(name: str, folder: Path) -> None:
    path = folder / name
    original = path.read_bytes()
    chosen = random.Random(name)
    for position in [0, len(original) - 1, *chosen.sample(range(len(original)), 12)]:
        damaged = bytearray(original)
        damaged[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        failures = verify.verify(folder, content=False, load=False).failures
        assert len(failures) == 1 and failures[0].startswith(f"{name}: has the SHA-256 "), (position, failures)


def test_every_flipped_byte_of_the_manifest_is_found(folder: Path) -> None:
    """But in what only the clock knows: when, and how long it took."""
    path = folder / "manifest.json"
    original = path.read_bytes()
    unknown: list[int] = []
    for key in ("created", "seconds"):
        start = original.index(b'"%s": ' % key.encode()) + len(key) + 4
        unknown += range(start, original.index(b"\n", start) - 1)
    chosen = random.Random(0)
    for position in chosen.sample(sorted(set(range(len(original))) - set(unknown)), 60):
        damaged = bytearray(original)
        damaged[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        try:
            failures = verify.verify(folder, content=False, load=False).failures
        except OutputError as error:
            failures = [str(error)]
        assert failures and "\n" not in failures[0], (position, damaged[position])


def test_missing_cut_and_unnamed_files_are_all_named(folder: Path) -> None:
    (folder / "counts" / "train-00000-of-00001.parquet").unlink()
    (folder / "chandra_spectra.py").write_text("import os\n")
    (folder / "data" / "train-00001-of-00001.parquet").write_bytes(b"PAR1")
    (folder / HDF5).write_bytes((folder / HDF5).read_bytes()[:-1])
    failures = verify.verify(folder).failures
    assert [line.partition(":")[0] for line in failures] == [
        SHARDS["counts"],
        HDF5,
        "chandra_spectra.py",
        "data/train-00001-of-00001.parquet",
    ]
    assert "is missing" in failures[0] and "bytes, the manifest says" in failures[1]


def test_a_card_edited_by_hand_is_found_and_the_rows_are_checked_all_the_same(folder: Path) -> None:
    (folder / "README.md").write_text((folder / "README.md").read_text() + "mine\n")
    report = content(folder)
    assert [line.partition(":")[0] for line in report.failures] == ["README.md"]
    assert report.checks[2].scope == "62 rows"


def handfuls(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names in sixes, to be changed at once, each in another row; what others follow from is changed alone."""
    alone = {"object_id", "detection_id", "obsid", "obi", "region_id", "cycle", "healpix", "split", "ebounds_id"}
    names = [name for name in names if not LIMIT.search(name)]
    rest = [name for name in names if name not in alone]
    return [
        *((name,) for name in names if name in alone),
        *(tuple(rest[start : start + 6]) for start in range(0, len(rest), 6)),
    ]


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (config, names)
        for config in ("spectra", "counts", "ebounds")
        for names in (
            handfuls(column.name for column in columns_of(config))
            if config != "ebounds"
            else [(column.name,) for column in columns_of(config)]
        )
    ],
)
def test_one_changed_value_in_parquet_is_found(config: str, names: tuple[str, ...], folder: Path) -> None:
    path = folder / SHARDS[config]
    table = pq.read_table(path)
    detections = table["detection_id"].to_pylist() if config != "ebounds" else []
    for row, name in enumerate(names, 0 if config == "ebounds" else ROW):
        column, _, key = name.partition(".")
        index = table.schema.get_field_index(column)
        values = table[column].to_pylist()
        if key:
            values[row][key] = other(values[row][key])
        else:
            values[row] = "x" if name == "caldb_version" else other(values[row])  # null in simulated files
        table = table.set_column(index, table.field(index), pa.array(values, table.field(index).type))
    pq.write_table(table, path)
    rehash(folder)
    failures = content(folder).failures
    assert failures
    assert all(line.count("\n") == 0 for line in failures)
    if config != "ebounds":
        assert any(path.name in line or HDF5 in line for line in failures)
        for row, name in enumerate(names, ROW):
            said = name.rpartition(".")[2].partition("_")[0]
            assert any(detections[row] in line and said in line for line in failures) or name == "detection_id"


@pytest.mark.parametrize("names", handfuls(column.hdf5_name for column in COLUMNS))
def test_one_changed_value_in_hdf5_is_found(names: tuple[str, ...], folder: Path) -> None:
    columns = {column.hdf5_name: column for column in COLUMNS}
    detections = pq.read_table(folder / SHARDS["spectra"], columns=["detection_id"])["detection_id"].to_pylist()
    with h5py.File(folder / HDF5, "r+") as file:
        for row, name in enumerate(names, ROW):
            column, dataset = columns[name], file[name]
            if h5py.check_string_dtype(dataset.dtype):
                dataset[row] = other(dataset.asstr()[row])
            elif column.length is None:
                dataset[row] = dataset[row] + (dataset[row] * 1e-6 if column.full_type == pa.float64() else 1)
                if np.isnan(dataset[row]):
                    dataset[row] = 0
            else:
                values = dataset[row]
                values[3] = np.nextafter(np.float32(values[3]), np.float32(9)) if values.dtype.kind == "f" else 9
                dataset[row] = values
    rehash(folder)
    failures = content(folder).failures
    assert len(failures) == len(names)
    for row, (name, line) in enumerate(zip(names, failures, strict=True), ROW):
        assert line.startswith(f"{HDF5}: {detections[row]} (row {row}): {name}")
        assert ", in Parquet " in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("theta"), "theta: is missing"),
        (lambda file: file.create_dataset("extra", data=1), "extra: is no column"),
        (lambda file: file["spectrum_ene"].attrs.__setitem__("unit", "eV"), "its unit is 'eV', not 'keV'"),
        (lambda file: file["phi"].resize(61, axis=0), "phi: has 61 rows, not 62"),
        (lambda file: file["ebounds/energy_lo"].__setitem__((0, 5), 1.0), "ebounds: the grids are not those"),
        (lambda file: file.attrs.__setitem__("release", "rel9"), "attribute release is rel9, not rel2.1"),
    ],
)
def test_an_hdf5_file_that_is_not_like_the_rest_is_found(
    change: Callable[[h5py.File], None], words: str, folder: Path
) -> None:
    with h5py.File(folder / HDF5, "r+") as file:
        change(file)
    rehash(folder)
    assert any(words in line for line in content(folder).failures)


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], first: int = FEW) -> None:
    """Change the first rows in Parquet and in HDF5 alike, so that they agree with each other and with the manifest."""
    tables = {config: pq.read_table(folder / SHARDS[config]).flatten() for config in ("spectra", "counts")}
    columns = {column.name: tables[column.configs[0]][column.name] for column in COLUMNS}
    with h5py.File(folder / HDF5) as file:
        attributes = dict(file.attrs)
        for column in columns_of("spectra"):
            if column.length is not None:  # as doubles
                columns[column.name] = pa.array(list(file[column.hdf5_name][:]), column.full_type)
    whole, schema = pa.table(columns), arrow_schema(COLUMNS)
    changed = pa.Table.from_pylist(change(whole.slice(0, first).to_pylist()), schema=schema)
    table = pa.concat_tables([changed, whole.slice(first).cast(schema)])
    for config in tables:
        pq.write_table(public(table, config).cast(features(config).arrow_schema), folder / SHARDS[config])
    with HDF5Writer(folder / HDF5, attributes) as writer:
        writer.append(table)
        writer.append_ebounds(pq.read_table(folder / SHARDS["ebounds"]))

    def count(manifest: dict[str, Any]) -> None:
        manifest["counts"].update(rows=len(table), selected=len(table) + manifest["counts"]["rejected"])
        for entry in manifest["files"]:
            if entry["path"] in (SHARDS["spectra"], SHARDS["counts"], HDF5):
                entry["rows"] = len(table)

    rehash(folder, count)


def setting(name: str, value: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        row = rows[ROW]
        row[name] = value(row[name]) if callable(value) else value
        return rows

    return change


def element(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [*values[:index], value(values[index]) if callable(value) else value, *values[index + 1 :]]


def shifted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move the border of two bins by a tenth of a channel."""
    row = rows[ROW]
    row["spectrum.ene_high_bin"][4] += 0.00146
    row["spectrum.ene_low_bin"][5] += 0.00146
    return rows


def without_bin(number: int) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for name in list(rows[ROW]):
            if name.startswith("spectrum."):
                del rows[ROW][name][number]
        rows[ROW]["n_bins"] -= 1
        return rows

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows[:ROW], rows[ROW + 1], rows[ROW], *rows[ROW + 2 :]], "does not come after"),
        (lambda rows: [*rows[: ROW + 1], rows[ROW], *rows[ROW + 1 :]], "does not come after"),
        (lambda rows: [*rows[:ROW], *rows[ROW + 1 :]], "63 detections, but rows and rejections are of 62"),
        (setting("object_id", lambda number: number + 10), "object_id 9000100000360 must be 90001.0.35 and"),
        (setting("detection_id", "90001.0.36"), "detection_id 90001.0.36 and object_id"),
        (setting("region_id", 36), "must be 90001.0.36 and 9000100000360"),
        (setting("cycle", "e9"), "the cycle is e1, e2 or left out"),
        (setting("obsid", None), "obsid is null"),
        (setting("healpix", 17), "healpix is 17, its place on the sky is in"),
        (setting("dec", 0.0), "its place on the sky is in"),
        (setting("pha_file", lambda name: name.replace("pha3", "arf3")), "is not the pha file of 90001.0.35"),
        (setting("rmf_sha256", "0" * 63), "rmf_sha256 000"),
        (setting("n_bins", 3), "spectrum.flux has 430 values, n_bins is 3"),
        (setting("spectrum.flux", element(3, float("nan"))), "spectrum.flux is nan"),
        (setting("spectrum.flux_error", element(3, 0.0)), "spectrum.flux_error is 0.0"),
        (setting("spectrum.ene_center_bin", element(3, 1.0)), "the centre 1.0 of the bin"),
        (shifted, "does not reach from the edge of a channel"),
        (without_bin(10), "does not begin where the one before ends"),
        (without_bin(0), "keV of the 0.5-8 keV that are kept"),
        (without_bin(-1), "keV of the 0.5-8 keV that are kept"),
        (setting("source_counts", lambda number: number + 1), "source_counts is 18286, the kept channels have 18285"),
        (setting("background_counts_total", 0), "background_counts_total is 0, the kept channels have"),
        (setting("counts", element(100, lambda number: number + 1)), "source_counts is 18285, the kept channels have"),
        (setting("counts", element(900, -1)), ": counts has -1"),
        (setting("background_counts", element(900, -1)), ": background_counts has -1"),
        (setting("exposure", 0.0), "exposure is 0.0, not a number of 0.001 to 1e+09"),
        (setting("background_scale", float("inf")), "background_scale is inf"),
        (setting("arf.specresp", lambda values: values[:-1]), "specresp and psf_frac have"),
        (setting("arf.specresp", element(9, -1.0)), "arf.specresp is -1.0 cm2"),
        (setting("arf.energy_hi", element(9, 0.0)), "arf has a bin"),
        (setting("ebounds_id", "0123456789abcdef"), "ebounds_id 0123456789abcdef is not in config ebounds"),
    ],
)
def test_what_cannot_be_true_is_found_though_all_files_agree(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], words: str, folder: Path
) -> None:
    rewrite(folder, change)
    failures = content(folder).failures
    assert any(words in line for line in failures), failures
    assert "90001.0.3" in "".join(failures) or "63 detections" in words


def test_a_grid_there_twice_or_of_no_row_is_found(folder: Path) -> None:
    path = folder / SHARDS["ebounds"]
    table = pq.read_table(path)
    grid = table.slice(0, 1).to_pylist()[0]
    low, high = (np.float64(grid[name]) / 2 for name in ("energy_lo", "energy_hi"))
    key = hashlib.sha256(low.tobytes() + high.tobytes()).hexdigest()[:16]
    unused = pa.Table.from_pylist([{"ebounds_id": key, "energy_lo": low, "energy_hi": high}], schema=table.schema)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1), unused]), path)

    def count(manifest: dict[str, Any]) -> None:
        (entry,) = (file for file in manifest["files"] if file["path"] == SHARDS["ebounds"])
        entry["rows"] += 2

    rehash(folder, count)
    failures = "\n".join(content(folder).failures)
    assert f"{grid['ebounds_id']} (row {len(table)}): is there twice" in failures
    assert f"{key}: no row has this grid" in failures


def test_a_few_counts_in_a_bin_are_found(folder: Path) -> None:
    rewrite(folder, setting("counts", lambda values: [*values[:200], 0, 0, 0, 0, 0, 0, 0, 0, *values[208:]]))
    assert any("counts, not 5 or more" in line for line in content(folder).failures)


def test_rewriting_alone_changes_nothing(folder: Path) -> None:
    rewrite(folder, lambda rows: rows)
    assert content(folder).failures == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{**rows[0], "reason": "moonlight"}, rows[1]], "the reason 'moonlight' is not known"),
        (lambda rows: [rows[0], rows[0]], "is there twice"),
        (lambda rows: [{**rows[0], "detection_id": DETECTION}, rows[1]], "is in rejections.parquet, too"),
        (lambda rows: [{**rows[0], "detection_id": "4938"}, rows[1]], "'4938' is not a detection"),
        (lambda rows: rows[:1], "number of rows is 1, not 2"),
    ],
)
def test_wrong_rejections_are_found(change: Callable[[Any], Any], words: str, folder: Path) -> None:
    path = folder / "rejections.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)

    def fit(manifest: dict[str, Any]) -> None:
        reasons = pq.read_table(path)["reason"].to_pylist()
        manifest["counts"]["reasons"] = {reason: reasons.count(reason) for reason in sorted(reasons)}

    rehash(folder, fit)
    assert any(words in line for line in content(folder).failures)


@pytest.mark.parametrize("key", ["detections", "selected", "rows", "rejected"])
def test_counts_that_do_not_add_up_are_found(key: str, folder: Path) -> None:
    rehash(folder, lambda manifest: manifest["counts"].update({key: manifest["counts"][key] + 1}))
    assert any("manifest.json" in line for line in content(folder).failures)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("counts"),
        lambda manifest: manifest["files"][3].pop("bytes"),
        lambda manifest: manifest["settings"].pop("splits"),
        lambda manifest: manifest["settings"].update(splits="by moonlight"),
        lambda manifest: manifest.update(files=7),
    ],
)
def test_a_manifest_of_another_version_is_one_clear_line(
    change: Callable[[dict[str, Any]], object], folder: Path
) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match=rf"^{path} is damaged or of another version: .*again with --force$"):
        content(folder)


def test_a_manifest_with_a_part_that_this_version_does_not_know_is_read(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = Manifest.read(folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert Manifest.read(folder) == manifest


def test_many_failures_are_counted_and_the_first_listed(folder: Path) -> None:
    rewrite(folder, lambda rows: [{**row, "source_counts": row["source_counts"] + 1} for row in rows], first=62)
    check = content(folder).checks[5]
    assert (check.failed, len(check.failures)) == (62, 20)


def test_only_reducing_again_finds_what_agrees_with_everything_else(folder: Path) -> None:
    rewrite(folder, setting("exposure", lambda seconds: seconds + 1))
    assert content(folder).failures == []
    (line,) = content(folder, recheck=62).failures
    assert line.startswith(f"{HDF5}: {DETECTION} (row {ROW}): exposure is ")
    assert "the archive's files give" in line


@pytest.mark.parametrize("kind", ["pha", "arf", "rmf"])
def test_the_cycles_of_an_observation_may_share_a_response_but_no_spectrum(kind: str, folder: Path) -> None:
    def share(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, f"{kind}_file": row[f"{kind}_file"].replace(f"_{row['cycle']}_", "_")} for row in rows]

    rewrite(folder, share, first=62)
    failures = content(folder).failures
    assert [f"is not the {kind} file of" in line for line in failures] == ([True] * 2 if kind == "pha" else [])


def test_a_mirror_and_a_server_serve_for_reducing_again(sample: Path, mirror: Path, tmp_path: Path) -> None:
    with ArchiveServer(holdings(str(mirror), None, 0, None), port=0) as server:
        for archive in (str(mirror), server.url):
            report = content(sample, recheck=4, archive=archive, cache=tmp_path / "cache")
            assert report.failures == []
            assert report.checks[-1].scope == f"4 of 62 rows, from {archive}"


def test_rechecking_needs_an_archive_that_is_there(sample: Path) -> None:
    with pytest.raises(SettingError, match="no such folder"):
        content(sample, recheck=1, archive="nowhere")


def test_the_command_marks_the_checks_names_failures_and_exits_with_1(folder: Path) -> None:
    right = command("verify", folder, "--no-load", "--recheck", 2)
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.count("✓") == 8 and "✗" not in right.stdout
    rewrite(folder, setting("healpix", 17))
    wrong = command("verify", folder)
    assert wrong.returncode == 1
    assert wrong.stderr == f"chandra-spectra: {folder} is not what it should be (failures: 1)\n"
    assert wrong.stdout.count("✗") == 1
    assert f"{SHARDS['spectra']}: {DETECTION} (row {ROW}): healpix is 17, " in wrong.stdout


def test_verifying_something_else_is_one_clear_line(tmp_path: Path) -> None:
    result = command("verify", tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "is not a prepared folder" in result.stderr
