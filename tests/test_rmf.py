"""One RMF an observation: the same rows as with each detection's own, from fewer bytes."""

from __future__ import annotations

import functools
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import builder.dataset.card
import builder.workspace
from builder.archive.csc import HttpArchive
from builder.archive.http import Client, Patience
from builder.archive.mirror import open_mirror
from builder.archive.packages import Package, plan
from builder.dataset.layout import Manifest
from builder.model.errors import ArchiveError, OutputError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare, prepare_share
from builder.simulator.faults import Faults
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from builder.store.fill import download, results
from builder.store.packages import Store
from builder.use.calibration import Calibration
from builder.use.verify import verify
from builder.workspace import make_plan, open_workspace
from chandra_spectra import ChandraSpectra
from tests import fits_files
from tests.folders import contents
from tests.impatient import RememberedArchive
from tests.runs import command

pytestmark = pytest.mark.usefixtures("without_pictures")

ABOUT_THE_RMF = ["rmf_file", "rmf_sha256", "ebounds_from"]
Files = dict[DetectionId, list[File]]


@functools.cache
def simulated(interleaved: float = 0.0) -> Files:
    """The files of two observations, of 11 and 18 detections."""
    archive = SimulatedArchive(29, seed=3, interleaved=interleaved)
    detections = [DetectionId(row["obsid"], row["obi"], row["region_id"]) for row in archive.rows]
    return {detection: archive.files(detection) for detection in detections}


@pytest.fixture
def files() -> Files:
    return {detection: list(files) for detection, files in simulated().items()}


def small_packages(monkeypatch: pytest.MonkeyPatch, size: int = 5) -> None:
    monkeypatch.setattr(builder.workspace, "plan", functools.partial(plan, size=size))


def other_grid(file: File, shift: float = 0.002) -> File:
    """The RMF with other channel energies."""
    data = bytearray(gzip.decompress(file.data))
    begin, middle, _ = fits_files.spans(bytes(data))[-1]
    rows = np.frombuffer(data, [("channel", ">i4"), ("low", ">f4"), ("high", ">f4")], 1024, middle).copy()
    rows["low"] += np.float32(shift)
    rows["high"] += np.float32(shift)
    data[middle : middle + rows.nbytes] = rows.tobytes()
    fits_files.set_sums(data, [(begin, middle, middle + -(-rows.nbytes // 2880) * 2880)])
    return File(file.name, gzip.compress(bytes(data), 1, mtime=0))


def damaged(file: File) -> File:
    return File(file.name, file.data[: len(file.data) // 2])


def garbled(file: File) -> File:
    data = gzip.decompress(file.data)
    return File(file.name, gzip.compress(data.replace(b"EBOUNDS ", b"NOTHING "), 1, mtime=0))


def of_another(file: File) -> File:
    data = gzip.decompress(file.data)
    return File(file.name, gzip.compress(data.replace(b"REGIONID= '0", b"REGIONID= '1"), 1, mtime=0))


def change_rmf(files: Files, detection: DetectionId, change: Callable[[File], File] | None) -> None:
    pha, arf, rmf = files[detection]
    files[detection] = [pha, arf] if change is None else [pha, arf, change(rmf)]


def table(folder: Path, name: str = "data") -> pa.Table:
    """The rows of all splits, in the order of the catalog."""
    rows = pq.read_table(folder / name)
    return rows.sort_by("object_id") if "object_id" in rows.column_names else rows


def both(archive: Path | str, tmp_path: Path, **options: Any) -> tuple[Path, Path]:
    """Folders that were prepared either way."""
    for rmf in ("each", "observation"):
        prepare(tmp_path / rmf, Settings(str(archive), rmf=rmf, **options), cache=tmp_path / f"cache-{rmf}")
    return tmp_path / "each", tmp_path / "observation"


def check_same(each: Path, observation: Path, extra: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """All rows but for the `extra` ones, and all columns but for those about the RMF, are equal."""
    for name in ("data", "counts"):
        expected, found = table(each, name), table(observation, name)
        assert {*found["detection_id"].to_pylist()} - {*expected["detection_id"].to_pylist()} == extra
        found = found.filter(pc.invert(pc.is_in(found["detection_id"], pa.array(sorted(extra), pa.string()))))
        assert found.drop_columns(ABOUT_THE_RMF).equals(expected.drop_columns(ABOUT_THE_RMF))
    assert table(observation, "ebounds").equals(table(each, "ebounds"))


def firsts(folder: Path) -> dict[str, str]:
    """Whose RMF served each observation."""
    rows = table(folder).select(["detection_id", "ebounds_from"]).to_pylist()
    return {DetectionId.parse(row["detection_id"]).observation: row["ebounds_from"] for row in rows}


# --- the same rows ---


def test_the_embedded_sample_has_the_same_rows_and_one_for_a_detection_without_an_rmf(
    sample: Path, tmp_path: Path
) -> None:
    prepare(tmp_path / "out", Settings("embedded", rmf="observation"))
    check_same(sample, tmp_path / "out", {"90018.1.25"})
    rows = table(tmp_path / "out").to_pylist()
    for row in rows:
        assert (row["rmf_file"] is None) == (row["rmf_sha256"] is None) == (row["ebounds_from"] != row["detection_id"])
    assert all(row["ebounds_from"] == row["detection_id"] for row in table(sample).to_pylist())
    assert {*Manifest.read(tmp_path / "out").counts.reasons} == {"damaged_gzip"}


@pytest.mark.parametrize("interleaved", [0.0, 1.0])
def test_simulated_observations_have_the_same_rows(interleaved: float, tmp_path: Path) -> None:
    each, observation = both(fits_files.mirror(tmp_path / "mirror", dict(simulated(interleaved))), tmp_path)
    check_same(each, observation)
    first = {DetectionId.parse(name).observation: name for name in reversed(table(each)["detection_id"].to_pylist())}
    assert firsts(observation) == first
    assert table(observation)["rmf_file"].null_count == len(table(each)) - len(first)


@pytest.mark.parametrize(
    "change", [None, damaged, garbled, of_another], ids=lambda each: getattr(each, "__name__", "none")
)
def test_where_the_first_rmf_is_of_no_use_the_next_one_serves(
    change: Callable[[File], File] | None, files: Files, tmp_path: Path
) -> None:
    first, second, third, *_ = files
    change_rmf(files, first, change)
    change_rmf(files, second, None)
    each, observation = both(fits_files.mirror(tmp_path / "mirror", dict(files)), tmp_path)
    check_same(each, observation, {str(first), str(second)})
    assert firsts(observation)[first.observation] == str(third)
    assert Manifest.read(observation).counts.rejected == 0


def test_where_no_rmf_is_of_use_the_rejections_are_those_of_each(files: Files, tmp_path: Path) -> None:
    for number, detection in enumerate(files):
        if detection.obsid == 90000:
            change_rmf(files, detection, [None, damaged, garbled][number % 3])
    each, observation = both(fits_files.mirror(tmp_path / "mirror", dict(files)), tmp_path)
    check_same(each, observation)
    assert pq.read_table(each / "rejections.parquet").equals(pq.read_table(observation / "rejections.parquet"))
    assert Manifest.read(observation).counts.rejected == 11


def test_a_first_rmf_of_another_grid_makes_its_observation_fall_back_to_each(files: Files, tmp_path: Path) -> None:
    first = min(files)
    change_rmf(files, first, other_grid)
    each, observation = both(fits_files.mirror(tmp_path / "mirror", dict(files)), tmp_path)
    check_same(each, observation)
    assert len(table(each, "ebounds")) == 2
    assert Manifest.read(observation).own_rmfs == (first.observation,)
    rows = [row for row in table(observation).to_pylist() if row["obsid"] == first.obsid]
    assert all(row["ebounds_from"] == row["detection_id"] and row["rmf_file"] for row in rows)


def test_an_observation_in_two_packages_whose_grids_differ_falls_back_in_both(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packages(monkeypatch)
    change_rmf(files, list(files)[7], other_grid)  # the first of the second package, and no other package's
    mirror = fits_files.mirror(tmp_path / "mirror", dict(files))
    each, observation = both(mirror, tmp_path)
    check_same(each, observation)
    rows = table(observation).to_pylist()
    assert [row["rmf_file"] is not None for row in rows[:11]] == [True] * 11
    assert Manifest.read(observation).own_rmfs == ("90000.0",)

    monkeypatch.setenv("CHANDRA_SPECTRA_CACHE", str(tmp_path / "cache"))
    builder_ = ChandraSpectra(
        config_name="counts", archive=str(mirror), rmf="observation", cache_dir=str(tmp_path / "hf")
    )
    builder_.download_and_prepare()
    assert (
        builder_.as_dataset("train")
        .with_format("arrow")[:]
        .drop_columns(ABOUT_THE_RMF)
        .equals(table(each, "counts").drop_columns(ABOUT_THE_RMF))
    )


def test_each_package_of_an_observation_takes_its_own_first(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packages(monkeypatch)
    each, observation = both(fits_files.mirror(tmp_path / "mirror", dict(files)), tmp_path)
    check_same(each, observation)
    rows = table(observation).to_pylist()
    own = [number for number, row in enumerate(rows) if row["rmf_file"]]
    assert own == [0, 7, 11, 18, 25]


# --- the same bytes ---


def data(folder: Path) -> dict[str, bytes]:
    return {path: content for path, content in contents(folder).items() if path.endswith((".parquet", ".hdf5"))}


def test_workers_shares_interruption_and_the_other_way_in_the_store_change_no_byte(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packages(monkeypatch)
    change_rmf(files, min(files), None)
    change_rmf(files, max(files), other_grid)
    change_rmf(files, list(files)[18], other_grid)
    settings = Settings(str(fits_files.mirror(tmp_path / "mirror", dict(files))), rmf="observation")
    prepare(tmp_path / "out", settings, cache=tmp_path / "one")
    expected = data(tmp_path / "out")

    prepare(tmp_path / "four", settings, cache=tmp_path / "four-cache", workers=4)
    assert data(tmp_path / "four") == expected

    for share in range(2):
        prepare_share(settings, (share, 2), cache=tmp_path / "shares")
    prepare(tmp_path / "shared", settings, cache=tmp_path / "shares")
    assert data(tmp_path / "shared") == expected

    other = tmp_path / "other"
    prepare(tmp_path / "each", Settings(settings.archive), cache=other)
    for path in sorted((tmp_path / "one" / "store").rglob("*.arrows"))[::2]:  # of a run that was cut off
        shutil.copy(path, other / path.relative_to(tmp_path / "one"))
    prepare(tmp_path / "resumed", settings, cache=other)
    assert data(tmp_path / "resumed") == expected


# --- over HTTP ---


@pytest.fixture(scope="module")
def archive() -> SimulatedArchive:
    return RememberedArchive(60, seed=3)


def served(server: ArchiveServer) -> int:
    return sum(request.size for request in server.log if request.service == "retrieve")


def test_of_an_archive_over_http_one_rmf_an_observation_is_asked_for(archive: SimulatedArchive, tmp_path: Path) -> None:
    sizes, tables = {}, {}
    for rmf in ("each", "observation"):
        with ArchiveServer(archive) as server:
            words = ("--rmf", rmf, "--min-cnts", 0, "--min-sig", 0, "--max-theta", 60, "--cache", tmp_path / rmf)
            result = command("prepare", tmp_path / f"{rmf}-out", "--archive", server.url, "--workers", 1, *words)
            assert (result.returncode, result.stderr) == (0, "")
            sizes[rmf] = served(server)
            tables[rmf] = table(tmp_path / f"{rmf}-out", "counts").drop_columns(ABOUT_THE_RMF)
            requests = len([request for request in server.log if request.service == "retrieve"])
            assert requests == {"each": 2, "observation": 1}[rmf]
    assert tables["observation"].equals(tables["each"])
    assert sizes["observation"] < sizes["each"] / 3  # simulated RMFs are small


@pytest.mark.parametrize("habits", [[], ["files-only"], ["strict-package"]], ids=" ".join)
def test_faults_of_the_service_and_of_files_leave_the_rows_of_each(
    habits: list[str], archive: SimulatedArchive, tmp_path: Path
) -> None:
    """A detection whose RMF alone is at fault is a row, as nothing of it is needed."""
    permanent = dict.fromkeys(("missing_rmf", "missing_arf", "omitted", "bad_gzip", "gone"), 0.08)
    faults = Faults(5, {"503": 0.1, "html": 0.05}, permanent)
    ids = [DetectionId(row["obsid"], row["obi"], row["region_id"]) for row in archive.rows]
    found = {}
    for rmf in ("each", "observation"):
        with ArchiveServer(archive, faults=faults, habits=habits) as server:
            client = Client(server.url, Patience(base=0.01, longest=0.02))
            http = HttpArchive(server.url, "rel2.1", tmp_path / rmf, client)
            packages = [Package(start, tuple(ids[start : start + 30]), rmf) for start in (0, 30)]
            rows = results(packages, http, Store(tmp_path / "store", "rel2.1", Recipe()))
            found[rmf] = {
                row["object_id"]: {name: row[name] for name in ("counts", "ebounds_id", "spectrum.flux")}
                for _, result in rows
                for row in result.spectra.to_pylist()
            }
    assert found["each"].items() <= found["observation"].items()
    more = {DetectionId.from_object_id(number).catalog for number in found["observation"].keys() - found["each"].keys()}
    assert more <= {one for one in ids if faults.kind_of(one) == "rmf" and faults.permanent_of(one) != "gone"}
    assert more


# --- mirrors ---


def test_a_mirror_that_was_downloaded_so_serves_the_same_and_no_other_way(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_packages(monkeypatch)
    change_rmf(files, min(files), None)
    change_rmf(files, max(files), other_grid)
    change_rmf(files, list(files)[25], other_grid)
    settings = Settings(str(fits_files.mirror(tmp_path / "whole", dict(files))), rmf="observation")
    workspace = open_workspace(settings, tmp_path / "cache")
    planned = make_plan(workspace, settings)
    with open_mirror(tmp_path / "small") as mirror:
        mirror.write_catalog(planned)
        download(planned.packages, workspace.archive, mirror)
    index = (tmp_path / "small" / "packages.jsonl").read_text()
    with open_mirror(tmp_path / "small") as mirror:
        assert all(package in mirror for package in planned.packages)
        download(planned.packages, workspace.archive, mirror)
    assert (tmp_path / "small" / "packages.jsonl").read_text() == index

    prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
    small = Settings(str(tmp_path / "small"), rmf="observation")
    prepare(tmp_path / "again", small, cache=tmp_path / "cache")
    assert table(tmp_path / "again", "counts").equals(table(tmp_path / "out", "counts"))
    assert Manifest.read(tmp_path / "again").own_rmfs == ("90001.0",)
    with pytest.raises(ArchiveError, match=r"made with --rmf observation, and has not the RMF of 90000\.0"):
        prepare(tmp_path / "refused", Settings(str(tmp_path / "small")), cache=tmp_path / "cache")

    each = [Package(package.start, package.detections) for package in planned.packages]
    with open_mirror(tmp_path / "small") as mirror:
        assert not all(package in mirror for package in each)
        download(each, workspace.archive, mirror)
        assert all(package in mirror for package in each)
    prepare(tmp_path / "completed", Settings(str(tmp_path / "small")), cache=tmp_path / "cache")
    assert len(table(tmp_path / "completed")) == len(files) - 1


def test_an_rmf_that_was_damaged_in_the_mirror_ends_the_run(files: Files, tmp_path: Path) -> None:
    """Rather than that another serves in its place without a word."""
    mirror = fits_files.mirror(tmp_path / "mirror", dict(files))
    tar = mirror / "packages" / "0.tar"
    content, rmf = bytearray(tar.read_bytes()), files[min(files)][2].data
    content[content.index(rmf) + len(rmf) - 5] ^= 0xFF
    tar.write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged: its checksum is wrong"):
        prepare(tmp_path / "out", Settings(str(mirror), rmf="observation"), cache=tmp_path / "cache")


def test_downloads_that_are_kept_on_the_way_build_the_same_again(files: Files, tmp_path: Path) -> None:
    change_rmf(files, min(files), other_grid)
    settings = Settings(str(fits_files.mirror(tmp_path / "whole", dict(files))), rmf="observation")
    prepare(tmp_path / "out", settings, cache=tmp_path / "cache", keep_downloads=tmp_path / "kept")
    again = Settings(str(tmp_path / "kept"), rmf="observation")
    prepare(tmp_path / "again", again, cache=tmp_path / "cache")
    assert table(tmp_path / "again", "counts").equals(table(tmp_path / "out", "counts"))


# --- refused ---


def test_responses_need_the_rmf_of_each(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="need the RMF of each detection"):
        Settings("embedded", responses=True, rmf="observation")
    with pytest.raises(SettingError, match="need the RMF of each detection"):
        ChandraSpectra(config_name="responses", archive="embedded", rmf="observation")
    with pytest.raises(SettingError, match="rmf must be each or observation, not 'one'"):
        Settings("embedded", rmf="one")
    words = ("--archive", "embedded", "--rmf", "observation", "--with-responses")
    result = command("prepare", tmp_path / "out", *words)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "need the RMF of each detection" in result.stderr


def test_a_folder_says_in_card_manifest_and_command_how_it_was_made(files: Files, tmp_path: Path) -> None:
    change_rmf(files, min(files), other_grid)
    settings = Settings(str(fits_files.mirror(tmp_path / "mirror", dict(files))), rmf="observation")
    manifest, _ = prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**One RMF an observation**" in card and "In 1 observation (90000.0) an RMF has other energies" in card
    assert "--rmf observation" in card
    assert manifest.settings["rmf"] == "observation"
    assert Manifest.read(tmp_path / "out").read_settings(tmp_path / "out").rmf == "observation"
    with pytest.raises(OutputError, match="see rmf in its manifest"):
        prepare(tmp_path / "out", Settings(settings.archive), cache=tmp_path / "cache")


# --- finished folders ---


def test_verify_fetches_rmfs_and_compares_their_energies(files: Files, tmp_path: Path) -> None:
    last = max(files)
    change_rmf(files, list(files)[2], None)
    sound = fits_files.mirror(tmp_path / "sound", dict(files))
    change_rmf(files, last, other_grid)
    odd = fits_files.mirror(tmp_path / "odd", dict(files))
    for name, archive, failures in (("sound", sound, 0), ("odd", odd, 1)):
        prepare(tmp_path / name / "out", Settings(str(archive), rmf="observation"), cache=tmp_path / "cache")
        report = verify(
            tmp_path / name / "out", recheck=100, load=False, archive=str(archive), cache=tmp_path / "cache"
        )
        *others, again = report.checks
        assert not any(check.failed for check in others), report
        assert bool(again.failed) == bool(failures)
        assert again.scope.startswith("28 of 29 rows") and again.scope.endswith("1 more without an RMF of use")
        assert all(str(last) in failure for failure in again.failures)


def test_export_gives_each_row_its_own_rmf(files: Files, tmp_path: Path) -> None:
    archive = fits_files.mirror(tmp_path / "mirror", dict(files))
    prepare(tmp_path / "out", Settings(str(archive), rmf="observation"), cache=tmp_path / "cache")
    words = ("--layout", "fits", "--detection", list(files)[1], "--archive", archive)
    result = command("export", tmp_path / "out", tmp_path / "fits", *words)
    assert (result.returncode, result.stderr) == (0, "")
    (name,) = (path.name for path in (tmp_path / "fits").rglob("*rmf3.fits"))
    assert name == list(files.values())[1][2].name.removesuffix(".gz")


def test_to_fold_a_row_without_an_rmf_is_refused(full_sample: Path) -> None:
    calibration = Calibration.load(str(full_sample))
    row = load_dataset(str(full_sample), "counts", split="train")[0] | {"rmf_sha256": None}
    with pytest.raises(SettingError, match="fold needs --rmf each"):
        calibration.fold(lambda low, high: np.ones_like(low), row)
