"""The prepared folder: loads cold, holds the right numbers, is the same each time, and is never half there."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from builder.archive.mirror import MirrorArchive
from builder.archive.packages import Package
from builder.dataset.catalog_file import read_catalog, write_catalog
from builder.dataset.layout import Manifest
from builder.model.columns import COLUMNS, columns_of
from builder.model.errors import ArchiveError, ChandraSpectraError, OutputError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import REASONS, Rejection
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.splits import Splits
from builder.prepare import _rejected, prepare
from builder.store.packages import package_result
from builder.workspace import default_cache, make_plan, open_workspace
from tests.folders import contents
from tests.goldens import GOLDENS
from tests.runs import Run, command, python

pytestmark = pytest.mark.usefixtures("without_pictures")

EMBEDDED = Settings(archive="embedded", splits=Splits(divided=False))


def load(folder: Path, *arguments: str, **options: object) -> datasets.Dataset:
    """`load_dataset("chandra_spectra")` in the folder's parent, with an empty cache."""
    code = (
        "import gc, json, sys; from datasets import load_dataset\n"
        "args, options = json.loads(sys.argv[1])\n"
        "d = load_dataset('chandra_spectra', *args, split='train', **options)\n"
        "d = d.with_format('numpy') if not options.get('streaming') else d\n"
        "rows = [(r.get('detection_id', r.get('ebounds_id')), sorted(r)) for r in d]\n"
        "print(json.dumps(rows))\n"
        "del d; gc.collect()\n"  # as the card says of streams
    )
    cache = folder.parent / f"cache-{time.monotonic_ns()}"
    return python(code, json.dumps([arguments, options]), cwd=folder.parent, HF_HOME=str(cache))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("config", ["spectra", "counts", "ebounds"])
def test_each_config_loads_from_a_cold_cache(sample: Path, config: str, streaming: bool) -> None:
    rows = load(sample, config, streaming=streaming)
    assert len(rows) == (1 if config == "ebounds" else 62)
    assert {column.name.partition(".")[0] for column in columns_of(config)} == set(rows[0][1])


def test_the_default_config_is_spectra_and_its_rows_are_in_the_catalogs_order(sample: Path) -> None:
    rows = load(sample)
    ids = [DetectionId.parse(row[0]) for row in rows]
    assert ids == sorted(ids)
    assert "spectrum" in rows[0][1]
    assert "counts" not in rows[0][1]


def test_streaming_with_columns_and_filters_reads_only_those(sample: Path) -> None:
    rows = load(sample, streaming=True, columns=["detection_id", "theta"], filters=[["theta", "<", 3]])
    assert 0 < len(rows) < 62
    assert rows[0][1] == ["detection_id", "theta"]


@pytest.mark.parametrize("detection", GOLDENS)
def test_the_real_detections_hold_the_known_numbers_in_parquet_and_hdf5(sample: Path, detection: str) -> None:
    golden = GOLDENS[detection]
    (row,) = pq.read_table(sample / "data", filters=[("detection_id", "=", detection)]).to_pylist()
    assert row["n_bins"] == golden["n_bins"] == len(row["spectrum"]["flux"])
    assert row["spectrum"]["flux"][:3] == pytest.approx(golden["rate"], rel=1e-5)
    with h5py.File(sample / "chandra_spectra.hdf5") as file:
        index = list(file["detection_id"].asstr()).index(detection)
        assert file["spectrum_flux"].dtype.metadata["vlen"] == np.float64
        assert file["spectrum_flux"][index][:3] == pytest.approx(golden["rate"], rel=1e-5)
        assert file["spectrum_ene_lo"][index][0] == pytest.approx(golden["low"], abs=5e-5)
        assert len(file["spectrum_ene"][index]) == golden["n_bins"]
        if golden["error"]:
            assert file["spectrum_flux_err"][index][:3] == pytest.approx(golden["error"], rel=1e-5)


def test_every_column_is_the_same_in_hdf5_and_parquet(sample: Path) -> None:
    tables = {"spectra": pq.read_table(sample / "data"), "counts": pq.read_table(sample / "counts")}
    with h5py.File(sample / "chandra_spectra.hdf5") as file:
        for column in COLUMNS:
            table = tables[column.configs[0]]
            struct, _, field = column.name.rpartition(".")
            values = [row[struct][field] if struct else row[column.name] for row in table.to_pylist()]
            for expected, found in zip(values, file[column.hdf5_name][:], strict=True):
                if expected is None:
                    assert found == -1 or found == b"" or np.isnan(found)
                elif isinstance(expected, str):
                    assert found.decode() == expected
                elif column.dtype == "float32":
                    assert np.array_equal(np.float32(found), np.float32(expected)), column.name
                else:
                    assert np.array_equal(found, expected), column.name


def test_an_interleaved_observation_gives_a_row_for_each_cycle(sample: Path) -> None:
    rows = pq.read_table(sample / "data", columns=["detection_id", "object_id", "cycle", "name"]).to_pylist()
    pair = [row for row in rows if row["cycle"]]
    assert [row["cycle"] for row in pair] == ["e1", "e2"]
    assert pair[0]["name"] == pair[1]["name"]
    assert [DetectionId.from_object_id(row["object_id"]) for row in pair] == [
        DetectionId.parse(row["detection_id"]) for row in pair
    ]


def test_only_real_detections_carry_a_catalog_name_and_nothing_of_them_is_invented(sample: Path) -> None:
    rows = pq.read_table(sample / "data").to_pylist()
    real = [row for row in rows if not row["name"].startswith("SIM J")]
    assert [row["detection_id"] for row in real] == list(GOLDENS)
    assert all(row["flux_aper_b"] is None and row["hard_hm"] is None and row["var_prob_b"] is None for row in real)
    assert real[1]["theta"] == pytest.approx(0.896, abs=2e-3)  # 0.0149 deg between RA, DEC and RA_PNT, DEC_PNT


def test_rows_and_rejections_add_up_to_the_selected(sample: Path) -> None:
    counts = Manifest.read(sample).counts
    rejections = pq.read_table(sample / "rejections.parquet").to_pylist()
    assert counts.selected == counts.rows + counts.rejected == 64
    assert sorted(row["reason"] for row in rejections) == ["damaged_gzip", "missing_rmf"]
    assert all(row["message"] and row["url"] for row in rejections)


def test_the_manifest_names_every_file_with_its_size_and_checksum(sample: Path) -> None:
    manifest = Manifest.read(sample)
    named = {file.path for file in manifest.files} | {"manifest.json"}
    assert named == {str(path.relative_to(sample)) for path in sample.rglob("*") if path.is_file()}
    for file in manifest.files:
        content = (sample / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.pictures
def test_two_runs_in_different_folders_give_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path / "again", EMBEDDED, cache=tmp_path / "cache", workers=1).manifest
    for path in (path.relative_to(sample) for path in sample.rglob("*") if path.is_file()):
        if path.name != "manifest.json":
            assert (tmp_path / "again" / path).read_bytes() == (sample / path).read_bytes(), path
    assert replace(Manifest.read(sample), created=other.created, seconds=other.seconds) == other


def test_a_finished_folder_is_left_alone(sample: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    result = command("prepare", sample, "--archive", "embedded", "--splits", "none")
    assert result.returncode == 0
    assert "nothing to do" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in sample.rglob("*")}


def test_other_settings_do_not_overwrite_without_force(mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(output, Settings(archive=str(mirror)), cache=tmp_path / "cache")
    before = (output / "manifest.json").read_bytes()
    other = Settings(archive=str(mirror), release="rel2.0")
    with pytest.raises(OutputError, match="--force"):
        prepare(output, other, cache=tmp_path / "cache")
    assert (output / "manifest.json").read_bytes() == before
    manifest, done = prepare(output, other, cache=tmp_path / "cache", force=True)
    assert done
    assert manifest.settings["release"] == "rel2.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mirror", "out"]


def test_a_run_that_fails_leaves_the_old_folder_whole_and_nothing_else(mirror: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(output, EMBEDDED)
    before = contents(output)
    tar = sorted((mirror / "packages").iterdir())[-1]
    tar.write_bytes(tar.read_bytes()[:-5000])
    with pytest.raises(ArchiveError, match=r"bytes instead of"):
        prepare(output, Settings(archive=str(mirror)), cache=tmp_path / "cache", force=True)
    assert before == contents(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mirror", "out"]


def die_at(module: str, name: str) -> None:
    *owner, name = name.split(".")
    place = functools.reduce(getattr, owner, importlib.import_module(module))
    setattr(place, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))


def test_a_run_that_is_killed_leaves_the_old_folder_and_the_next_one_completes_it(
    mirror: Path, sample: Path, tmp_path: Path
) -> None:
    """Before a package is kept, before the folder is begun and amid it; the swap is in test_staging."""
    output, cache = tmp_path / "out", tmp_path / "cache"
    shutil.copytree(sample, output)
    before = contents(output)
    words = ("prepare", output, "--archive", mirror, "--cache", cache, "--force", "--workers", 1)
    for module, name in (
        ("builder.store.packages", "Store.write"),
        ("builder.prepare", "staging_folder"),
        ("builder.dataset.hdf5", "HDF5Writer.append"),
        ("builder.dataset.layout", "Manifest.write"),
    ):
        assert Run(*words, change=functools.partial(die_at, module, name)).wait().returncode == -signal.SIGKILL
        assert before == contents(output)
    assert len(list(tmp_path.glob(".out.*"))) == 1
    result = command(*words)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mirror", "out"]
    assert Manifest.read(output).settings["archive"] == "mirror"


def test_a_disk_that_is_full_as_the_folder_is_written_is_one_line_and_the_old_folder_stays(
    folder: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    script = f'ulimit -f 300; exec {sys.executable} -m builder.cli prepare "$0" --archive embedded --force'
    result = subprocess.run(["bash", "-c", script, folder], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "cannot write" in result.stderr and "what was there before is kept" in result.stderr
    assert before == contents(tmp_path)


def test_a_folder_moved_away_amid_the_swap_is_brought_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(output, EMBEDDED)
    output.replace(tmp_path / ".out.old")
    done = prepare(output, EMBEDDED).fresh
    assert not done
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_store_file_is_found_and_made_again(mirror: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare(tmp_path / "one", Settings(archive=str(mirror)), cache=cache)
    for path in (cache / "store").rglob("*.arrows"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    prepare(tmp_path / "two", Settings(archive=str(mirror)), cache=cache)
    for name in ("data/train-00000-of-00001.parquet", "chandra_spectra.hdf5"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_finished_package_is_never_fetched_again(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(archive=str(mirror))
    prepare(tmp_path / "one", settings, cache=tmp_path / "cache")

    def fetch(self: MirrorArchive, package: object, **_: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(MirrorArchive, "fetch", fetch)
    prepare(tmp_path / "two", settings, cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="fetched"):
        prepare(tmp_path / "three", Settings(archive=str(mirror), release="rel2.0"), cache=tmp_path / "cache")


def test_only_what_other_files_may_change_is_tried_again(tmp_path: Path) -> None:
    source = open_workspace(EMBEDDED, tmp_path)
    packages = {}
    for number, reason in enumerate(REASONS):
        detection = DetectionId(number, 0, 1)
        packages[reason] = Package(number, (detection,))
        source.store.write(packages[reason], package_result((detection,), [Rejection(detection, "reduce", reason, "")]))
    missing = Package(0, (DetectionId(1, 2, 3),))
    planned = replace(make_plan(source, EMBEDDED), packages=(*packages.values(), missing))
    kept = {packages[reason] for reason in ("no_background", "no_counts", "not_acis")}
    assert _rejected(planned.packages, source) == {*packages.values()} - kept


def test_downloads_are_not_kept_by_the_workers_of_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no keep_downloads with dask"):
        prepare(tmp_path / "out", EMBEDDED, keep_downloads=tmp_path / "kept", dask="tcp://127.0.0.1:1")
    assert not list(tmp_path.iterdir())


def test_a_selection_without_detections_is_refused(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(ChandraSpectraError, match="no detection"):
        prepare(
            tmp_path / "out", Settings(archive=str(mirror), selection=Selection(min_cnts=1e9)), cache=tmp_path / "c"
        )
    assert not (tmp_path / "out").exists()


def test_the_card_is_what_the_hub_accepts(sample: Path) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(sample / "README.md")
    assert card.data.license == "other"
    assert card.data.size_categories == ["n<1K"]
    assert {config["config_name"] for config in card.data.configs} == {"spectra", "counts", "ebounds"}
    assert "62 X-ray spectra" in card.text
    assert "simulated" in card.text
    assert "@" not in card.text.replace("@article", "")


def test_force_never_replaces_a_folder_with_somebody_elses_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "app"}')
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not the manifest of a prepared folder"):
        prepare(tmp_path, EMBEDDED, force=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["force", "retry_rejected"])
def test_what_somebody_else_put_into_the_folder_is_not_replaced_with_it(option: str, folder: Path) -> None:
    for name in (".git/HEAD", "data/notes.txt", "notes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
        with pytest.raises(OutputError, match=rf"{folder / name} would be lost with the old folder: move it away"):
            prepare(folder, EMBEDDED, force=option == "force", retry_rejected=option == "retry_rejected")
        assert (folder / name).read_text() == "mine"
        (folder / name).unlink()
    assert prepare(folder, EMBEDDED, force=option == "force", retry_rejected=option == "retry_rejected").fresh


def test_a_folder_with_a_damaged_manifest_is_replaced_by_force_unless_it_holds_what_is_no_part_of_one(
    folder: Path,
) -> None:
    (folder / "manifest.json").write_text("{")
    (folder / "notes").write_text("mine")
    with pytest.raises(OutputError, match="notes would be lost"):
        prepare(folder, EMBEDDED, force=True)
    (folder / "notes").unlink()
    with pytest.raises(OutputError, match=r"is damaged or of another version: .*--force"):
        prepare(folder, EMBEDDED)
    assert prepare(folder, EMBEDDED, force=True).fresh


def test_a_shard_that_was_cut_short_is_not_taken_for_finished(folder: Path) -> None:
    (shard,) = (folder / "data").iterdir()
    os.truncate(shard, 1000)
    with pytest.raises(OutputError, match=rf"{shard} is not what the manifest says: .*--force"):
        prepare(folder, EMBEDDED)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("CHANDRA_SPECTRA_CACHE", "/chosen")
    assert default_cache() == Path("/chosen")
    monkeypatch.delenv("CHANDRA_SPECTRA_CACHE")
    assert default_cache() == Path("/caches/chandra_spectra")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == Path.home() / ".cache" / "chandra_spectra"


def test_an_output_that_is_a_link_is_replaced_where_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    for force in (False, True):
        prepare(tmp_path / "out", EMBEDDED, force=force)
    assert (tmp_path / "out").is_symlink()
    assert Manifest.read(tmp_path / "scratch").counts.rows == 62
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scratch"]


def test_a_run_does_not_touch_the_unfinished_folder_of_another_output(tmp_path: Path) -> None:
    (tmp_path / ".out.v2.123.incomplete").mkdir()
    (tmp_path / ".out.123.incomplete").mkdir()
    prepare(tmp_path / "out", EMBEDDED)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.v2.123.incomplete", "out"]


def test_two_runs_into_the_same_folder_do_not_take_each_others_work_away(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from builder.files import workplace\n"
        "with workplace(Path(sys.argv[1])) as place:\n"
        "    (place / 'half').touch(); print(place, flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        place = Path(other.stdout.readline().strip())
        with pytest.raises(OutputError, match="another run is writing"):  # before anything is asked
            prepare(tmp_path / "out", Settings("http://127.0.0.1:9"))
        assert (place / "half").exists()
        other.kill()  # as it is dead, what it left is in nobody's way
        other.wait()
        prepare(tmp_path / "out", EMBEDDED)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_catalog_file_that_changed_is_not_taken_for_finished(mirror: Path, tmp_path: Path) -> None:
    rows = read_catalog(mirror / "catalog.vot")
    write_catalog(tmp_path / "catalog.parquet", rows)
    prepare(tmp_path / "out", Settings(str(mirror), catalog=str(tmp_path / "catalog.parquet")), cache=tmp_path / "c")
    write_catalog(tmp_path / "catalog.parquet", rows.slice(0, 10))
    with pytest.raises(OutputError, match="--force"):
        prepare(
            tmp_path / "out", Settings(str(mirror), catalog=str(tmp_path / "catalog.parquet")), cache=tmp_path / "c"
        )


def test_a_catalog_that_changes_while_it_is_built_from_is_not_taken_for_finished(mirror: Path, tmp_path: Path) -> None:
    rows = read_catalog(mirror / "catalog.vot")
    settings = Settings(str(mirror), catalog=str(tmp_path / "catalog.parquet"))
    write_catalog(tmp_path / "catalog.parquet", rows)

    def change(*progress: object) -> None:
        write_catalog(tmp_path / "catalog.parquet", rows.slice(0, 10))

    manifest = prepare(tmp_path / "out", settings, cache=tmp_path / "c", progress=change).manifest
    assert manifest.counts.detections == len(rows)
    with pytest.raises(OutputError, match="another catalog"):
        prepare(tmp_path / "out", settings, cache=tmp_path / "c")


def test_a_mirror_whose_catalog_grew_is_not_taken_for_finished(mirror: Path, tmp_path: Path) -> None:
    whole = read_catalog(mirror / "catalog.vot")
    cuts = Selection(min_cnts=0, min_sig=0, max_theta=60)
    for rows in (whole.slice(0, 20), whole):
        write_catalog(mirror / "catalog.vot", rows)
        if len(rows) == len(whole):
            with pytest.raises(OutputError, match="other settings"):
                prepare(tmp_path / "out", Settings(str(mirror), selection=cuts), cache=tmp_path / "c")
        done = prepare(tmp_path / "out", Settings(str(mirror), selection=cuts), cache=tmp_path / "c", force=True).fresh
        assert done
        assert not prepare(tmp_path / "out", Settings(str(mirror), selection=cuts), cache=tmp_path / "c").fresh


def test_threads_that_open_a_mirror_at_once_find_all_of_it(mirror: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from builder.archive.mirror import read_index
    from builder.archive.packages import Package

    lines = read_index(mirror) * 200
    (mirror / "packages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    packages = [Package(0, (DetectionId.parse(name),)) for name in lines[-1]["detections"]]
    for _ in range(5):
        archive = MirrorArchive(mirror, "rel2.1")

        def parts(package: Package, archive: MirrorArchive = archive) -> int:
            with archive.fetch(package) as fetched:
                return len(fetched.parts)

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(parts, packages)) == {1}
