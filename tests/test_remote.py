"""The archive over HTTP, through all that goes wrong: nothing is lost, and nothing is fetched twice."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builder.dataset.layout import Manifest
from builder.model.errors import ArchiveError, CatalogError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.sky import Cone
from builder.prepare import prepare
from builder.simulator.faults import PERMANENT, TRANSIENT, Faults
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from builder.workspace import make_plan, open_workspace
from tests.fits_files import detection
from tests.folders import contents
from tests.impatient import RememberedArchive, changes, impatient, impatient_command
from tests.runs import Run, command
from tests.waiting import stays_locked, wait_for

KINDS = sorted(TRANSIENT)


@pytest.fixture(scope="module")
def archive() -> SimulatedArchive:
    return RememberedArchive(250, seed=1)


@pytest.fixture(scope="module")
def port() -> int:
    """The address is written into the files, so servers that must give the same bytes share one.

    It lies below those that systems give to whoever asks for any, else a connection could have it between two servers.
    """
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in changes():
        monkeypatch.setattr(*change)


def data_of(folder: Path) -> dict[str, bytes]:
    """The files with rows."""
    files = contents(folder).items()
    return {path: data for path, data in files if path.endswith((".parquet", ".hdf5")) and path != "rejections.parquet"}


def reason_of(faults: Faults, detection: DetectionId) -> str | None:
    """What the detection's permanent fault must be rejected for, None if it must not be."""
    fault = faults.permanent_of(detection)
    if fault == "corrupt_fits":
        return f"unreadable_{faults.kind_of(detection)}"
    return {"bad_gzip": "damaged_gzip", "omitted": None, "gone": "missing_pha"}.get(fault or "", fault)


SLOW = ("stall", "drip", "drip_headers")  # each costs a second
TRANSIENT_FAULTS = {kind: 0.03 if kind in SLOW else 0.09 for kind in TRANSIENT}
PERMANENT_FAULTS = dict.fromkeys(PERMANENT, 0.03)


def test_every_good_detection_is_a_row_and_every_bad_one_a_rejection_with_the_right_reason(
    archive: SimulatedArchive, port: int, tmp_path: Path
) -> None:
    faults = Faults(1, TRANSIENT_FAULTS, PERMANENT_FAULTS, stall_seconds=2)
    with ArchiveServer(archive, port=port, faults=faults) as server:
        settings = Settings(server.url)
        manifest = prepare(tmp_path / "faulty", settings, cache=tmp_path / "a", workers=2).manifest
        met = Counter(request.fault for request in server.log if request.fault)
        assert set(met) & set(TRANSIENT) == set(TRANSIENT), "the run met every kind of transient fault"
        assert server.max_connections <= 4
    with ArchiveServer(archive, port=port, faults=Faults(1, {}, PERMANENT_FAULTS)) as server:
        prepare(tmp_path / "calm", settings, cache=tmp_path / "b")
    ids = [detection(row) for row in archive.rows]
    expected = {str(one): reason for one in ids if (reason := reason_of(faults, one))}
    rejections = pq.read_table(tmp_path / "faulty" / "rejections.parquet").to_pylist()
    found = {".".join(row["detection_id"].split(".")[:3]): row["reason"] for row in rejections}
    assert found == expected
    rows = pq.read_table(tmp_path / "faulty" / "data", columns=["detection_id"])["detection_id"].to_pylist()
    assert {".".join(name.split(".")[:3]) for name in rows} == {str(one) for one in ids} - set(expected)
    counts = manifest.counts
    assert counts.selected == counts.rows + counts.rejected == len(rows) + len(rejections)
    assert data_of(tmp_path / "faulty") == data_of(tmp_path / "calm")
    assert len(data_of(tmp_path / "calm")) == 8  # three splits of two configs, ebounds and the HDF5 file


def test_a_run_killed_ten_times_ends_with_the_same_bytes_and_fetches_no_finished_package_again(
    archive: SimulatedArchive, port: int, tmp_path: Path
) -> None:
    chance = random.Random(5)
    with ArchiveServer(archive, port=port, bytes_per_second=20e6) as server:
        words = preparing(server, tmp_path, "--workers", 1, "--limit", 175)
        finished: set[tuple[str, ...]] = set()
        for more in (0, 1, 2, 0, 1, 2, 1, 0, 2, 1):  # packages to be finished before the kill
            start, before = len(server.log), len(stored(tmp_path))
            killed = Run(*words, change=impatient)
            wait_for(functools.partial(has_finished, server, start, tmp_path, before + more))
            time.sleep(chance.uniform(0, 0.3))
            killed.process.kill()
            assert killed.wait().returncode == -signal.SIGKILL
            assert not asked(server, start) & finished
            finished |= {detections for detections in asked(server, 0) if key_of(detections) in stored(tmp_path)}
        start = len(server.log)
        result = run(*words)
        assert result.returncode == 0, result.stderr
        assert asked(server, start), "the last run had work left"
        assert not asked(server, start) & finished
        assert len(finished) >= 10, "runs that were killed finished packages"
        whole = Settings(server.url, selection=Selection(limit=175))
        prepare(tmp_path / "whole", whole, cache=tmp_path / "fresh")
    assert data_of(tmp_path / "out") == data_of(tmp_path / "whole")
    left = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".partial", ".tar")]
    assert left == []


def preparing(server: ArchiveServer, folder: Path, *more: object) -> tuple[object, ...]:
    """The words that prepare the folder `out` from a server, with a cache beside it."""
    return ("prepare", folder / "out", "--archive", server.url, "--cache", folder / "cache", *more)


def run(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return Run(*words, cwd=cwd, change=impatient).wait()


def stored(folder: Path) -> set[str]:
    """Names of the finished packages below a folder."""
    return {path.name for path in folder.rglob("*.arrows")}


def has_finished(server: ArchiveServer, start: int, folder: Path, number: int) -> bool:
    """Whether a run has asked for a package since an entry of the log, and so many are finished."""
    return bool(asked(server, start)) and len(stored(folder)) >= number


def asked(server: ArchiveServer, start: int) -> set[tuple[str, ...]]:
    """The packages that were asked for since an entry of the log."""
    return {request.detections for request in server.log[start:] if request.service == "retrieve"}


def key_of(detections: tuple[str, ...]) -> str:
    from builder.archive.packages import Package
    from builder.model.settings import Recipe

    ids = tuple(dict.fromkeys(DetectionId.parse(text) for text in detections))
    return f"{Package(0, ids).key('rel2.1', Recipe())}.arrows"


@pytest.mark.parametrize("workers", [1, 4])
def test_the_archive_never_sees_more_connections_than_the_budget(
    workers: int, archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, selection=Selection(limit=40))
        prepare(tmp_path / "out", settings, cache=tmp_path / "cache", workers=workers, connections=3)
        assert 1 < server.max_connections <= 3


class HeldArchive(RememberedArchive):
    """Gives no files before it is told to."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.give = threading.Event()

    def files(self, detection: DetectionId) -> list[File]:
        self.give.wait(60)
        return super().files(detection)


def test_two_runs_that_share_a_cache_share_the_budget(tmp_path: Path) -> None:
    archive = HeldArchive(40)
    with ArchiveServer(archive) as server:
        runs = [
            Run(
                "prepare",
                tmp_path / str(number),
                "--archive",
                server.url,
                "--group-counts",
                5 + number,
                "--workers",
                1,
                "--cache",
                tmp_path / "cache",
                "--connections",
                2,
                change=functools.partial(impatient, read=60),
            )
            for number in range(2)
        ]
        wait_for(lambda: stays_locked(tmp_path / "cache" / "downloads" / "next.lock"))
        archive.give.set()
        assert [one.wait().returncode for one in runs] == [0, 0]
        assert server.max_connections <= 2
        # Both ask for the same packages, since their recipes differ.
        packages = [request.detections for request in server.log if request.service == "retrieve"]
    assert len(packages) == 2 * len(set(packages))


def test_a_finished_run_that_is_run_again_asks_nothing(archive: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, selection=Selection(limit=30))
        prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
        before = len(server.log)
        prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
        assert len(server.log) == before
        prepare(tmp_path / "other", settings, cache=tmp_path / "cache")
        assert [request.service for request in server.log[before:] if request.service == "retrieve"] == []


def test_an_answer_cut_at_the_row_limit_is_asked_for_in_parts_until_it_is_whole(
    archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive, max_rows=60) as server:
        settings = Settings(server.url)
        planned = make_plan(open_workspace(settings, tmp_path), settings)
        queries = [request for request in server.log if request.service == "sync"]
    assert len(planned.catalog) == 250
    assert len(queries) > 9


@pytest.mark.parametrize("words", [{"names": ("X'; --",)}, {"obsids": (-1,)}, {"limit": 0}])
def test_wrong_words_of_a_selection_are_refused(words: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Selection(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(min_cnts=1000, min_sig=20, max_theta=4),
        Selection(cone=Cone(0.5, 10, 40)),
        Selection(cone=Cone(200, 80, 35)),
        Selection(cone=Cone(10, -90, 50)),
        Selection(obsids=(90000, 90003)),
        Selection(limit=7),
    ],
)
def test_each_way_to_select_gives_what_a_cut_over_all_rows_gives(
    selection: Selection, archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, selection=selection)
        planned = make_plan(open_workspace(settings, tmp_path), settings)
    expected = sorted((row["obsid"], row["obi"], row["region_id"]) for row in archive.rows if selection.keeps(row))
    found = [(row["obsid"], row["obi"], row["region_id"]) for row in planned.catalog.to_pylist()]
    assert found == expected[: selection.limit]
    assert found


def test_names_and_a_list_of_detections_select_just_those(archive: SimulatedArchive, tmp_path: Path) -> None:
    wanted = [row for row in archive.rows if archive.rows.index(row) % 50 == 3]
    ids = frozenset(detection(row) for row in wanted)
    with ArchiveServer(archive) as server:
        for selection in (
            Selection(detections=ids),
            Selection(names=tuple(row["name"] for row in wanted), detections=ids),
        ):
            settings = Settings(server.url, selection=selection)
            planned = make_plan(open_workspace(settings, tmp_path), settings)
            assert {d for package in planned.packages for d in package.detections} == ids
            assert planned.duplicates == 0


def test_a_mirror_is_downloaded_in_pieces_and_builds_the_same_dataset_offline(
    archive: SimulatedArchive, port: int, tmp_path: Path
) -> None:
    mirror, limit = tmp_path / "mirror", ("--limit", 60)
    with ArchiveServer(archive, port=port, bytes_per_second=20e6) as server:
        words = ("download", mirror, "--archive", server.url, "--cache", tmp_path / "cache", *limit)
        process = subprocess.Popen(impatient_command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        index = mirror / "packages.jsonl"
        wait_for(lambda: index.exists() and index.stat().st_size)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = {tuple(json.loads(line)["detections"]) for line in index.read_text().splitlines(True) if "\n" in line}
        with index.open("a") as torn:
            torn.write('{"file": "packages/torn')
        start = len(server.log)
        result = run(*words)
        assert result.returncode == 0, result.stderr
        assert not whole & asked(server, start)
        online = Settings(server.url, selection=Selection(limit=60))
        prepare(tmp_path / "online", online, cache=tmp_path / "cache")
    offline = prepare(tmp_path / "offline", Settings(str(mirror)), cache=tmp_path / "cache").manifest
    assert offline.counts.rows == Manifest.read(tmp_path / "online").counts.rows
    one, two = data_of(tmp_path / "online"), data_of(tmp_path / "offline")
    for name in one:
        assert name.endswith(".hdf5") or one[name] == two[name]  # the HDF5 file names the archive
    assert list(mirror.rglob("*.partial")) == []


def test_the_options_that_notes_and_scripts_use_work_as_they_are(archive: SimulatedArchive, tmp_path: Path) -> None:
    import h5py

    cuts = ("--min_cnts", 4000, "--min_sig", 80, "--max_theta", 5)
    with ArchiveServer(archive) as server:
        words = ("download", *cuts, "--output_file", "catalog.hdf5", "--file_path", "DIR", "--archive", server.url)
        result = run(*words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    result = run(
        "prepare", "--cat_file", "catalog.hdf5", "--file_path", "DIR", "--output_file", "spectra.hdf5", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "catalog.hdf5") as catalog, h5py.File(tmp_path / "spectra.hdf5") as spectra:
        rows = [(row["obsid"], row["region_id"]) for row in archive.rows if Selection(4000, 80, 5).keeps(row)]
        assert list(zip(catalog["obsid"], catalog["region_id"], strict=True)) == sorted(rows)
        assert set(spectra["name"].asstr()) == set(catalog["name"].asstr())
        assert catalog["theta"][:].max() < 5


def test_downloads_are_kept_when_asked_for(archive: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, selection=Selection(limit=20))
        prepare(f"{tmp_path}/out", settings, cache=f"{tmp_path}/c", keep_downloads=f"{tmp_path}/kept")
    assert list((tmp_path / "c" / "downloads").rglob("*.tar")) == []
    prepare(tmp_path / "again", Settings(str(tmp_path / "kept")), cache=tmp_path / "d")
    assert data_of(tmp_path / "again").keys() == data_of(tmp_path / "out").keys()


def test_what_was_rejected_is_tried_again_when_asked_for(archive: SimulatedArchive, port: int, tmp_path: Path) -> None:
    faults = Faults(3, {}, {"missing_rmf": 0.2})
    words = ("prepare", tmp_path / "out", "--limit", 50, "--cache", tmp_path / "cache", "--workers", 1)
    with ArchiveServer(archive, port=port, faults=faults) as server:
        result = run(*words, "--archive", server.url)
        assert result.returncode == 3
        assert "are rejected" in result.stderr
        assert result.stderr.count("\n") == 1
        assert Manifest.read(tmp_path / "out").counts.rejected > 2
    with ArchiveServer(archive, port=port) as server:
        assert run(*words, "--archive", server.url).returncode == 3
        result = run(*words, "--archive", server.url, "--retry-rejected")
        assert result.returncode == 0, result.stderr
        assert Manifest.read(tmp_path / "out").counts.rejected == 0


@pytest.mark.parametrize(
    ("send", "number", "delays"),
    [
        (os.killpg, signal.SIGINT, [0.0]),
        (os.killpg, signal.SIGINT, [1.0]),
        (os.killpg, signal.SIGINT, [0.0, 0.05]),
        (os.kill, signal.SIGTERM, [0.2]),
    ],
    ids=["^C at the start", "^C", "^C twice", "TERM"],
)
def test_an_interrupt_ends_the_run_with_one_line(
    send: Callable[[int, int], None],
    number: signal.Signals,
    delays: list[float],
    archive: SimulatedArchive,
    tmp_path: Path,
) -> None:
    """A terminal sends Ctrl-C to the workers, too."""
    with ArchiveServer(archive, bytes_per_second=15e6) as server:
        words = impatient_command(*preparing(server, tmp_path, "--workers", 2))
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            wait_for(lambda: len(workers_of(process.pid)) == 2)  # they are still importing
            for delay in delays:
                time.sleep(delay)
                send(process.pid, number)
            _, errors = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1, errors
    assert "run the same command again to go on" in errors
    assert "interrupted" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc, which Linux has")
def test_a_second_interrupt_ends_a_run_whose_workers_hang(archive: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive, bytes_per_second=15e6) as server, (tmp_path / "errors").open("w+") as errors:
        words = impatient_command(*preparing(server, tmp_path, "--workers", 2))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        try:
            wait_for(lambda: len(workers_of(process.pid)) == 2)
            for worker in workers_of(process.pid):
                os.kill(worker, signal.SIGSTOP)
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        assert "interrupted; what was finished is kept" in errors.readline()


def test_no_network_is_one_line_that_names_the_host(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        words = ("--archive", url, "--cache", tmp_path / "cache", "--patience", 1)
        result = command("prepare", tmp_path / "out", *words)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert url.removeprefix("http://") in result.stderr
    assert "check the network" in result.stderr
    assert not (tmp_path / "out").exists()


def small_disk() -> None:
    impatient()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,) * 2)


def test_a_full_disk_is_one_line_and_what_was_finished_is_kept(archive: SimulatedArchive, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same error path, another errno."""
    with ArchiveServer(archive) as server:
        words = preparing(server, tmp_path, "--limit", 30, "--workers", 1)
        result = Run(*words, change=small_disk).wait()
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert "cannot write" in result.stderr
        assert not (tmp_path / "out").exists()
        assert run(*words).returncode == 0


@pytest.mark.parametrize("what", ["cache", "output"])
def test_a_place_that_cannot_be_written_is_one_line(what: str, mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root may write into any folder, but nobody into a file
    places = {"cache": tmp_path / "cache", "output": tmp_path / "out"} | {what: tmp_path / "file" / "below"}
    result = run("prepare", places["output"], "--archive", mirror, "--cache", places["cache"], "--workers", 1)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert str(tmp_path / "file") in result.stderr


def test_the_workers_of_a_killed_run_do_not_stay(archive: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive, bytes_per_second=20e6) as server:
        words = impatient_command(*preparing(server, tmp_path, "--workers", 2))
        process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(asked(server, 0)) > 6)  # so the workers have reduced some
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not group_lives(process.pid))


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def workers_of(process: int | None) -> list[int]:
    """Processes started for a run to reduce, by the one that it has for that."""
    return [worker for child in children_of(process) for worker in children_of(child)]


def children_of(process: int | None) -> list[int]:
    with contextlib.suppress(OSError):  # it ended
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        return [int(child) for path in tasks for child in path.read_text().split()]
    return []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc, which Linux has")
def test_a_worker_that_is_killed_ends_the_run_with_one_line_and_costs_nothing_that_was_finished(
    archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive, bytes_per_second=15e6) as server:
        words = preparing(server, tmp_path, "--workers", 2, "--limit", 60)
        broken = Run(*words, change=impatient)
        wait_for(lambda: list((tmp_path / "cache").rglob("*.arrows")))
        os.kill(workers_of(broken.process.pid)[0], signal.SIGKILL)
        result = broken.wait(60)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert "a worker process was killed" in result.stderr
        finished = {path.name for path in (tmp_path / "cache").rglob("*.arrows")}
        start = len(server.log)
        assert run(*words).returncode == 0
        assert not {key_of(detections) for detections in asked(server, start)} & finished


class Elsewhere(Selection):
    """Asks a table that the service does not have."""

    def queries(self, schema: str) -> Iterator[str]:
        yield f"FROM {schema}.nowhere n"


def test_the_services_own_words_are_shown_when_it_refuses_a_query(archive: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive) as server, pytest.raises(CatalogError, match=r"the catalog says: .*nowhere"):
        prepare(tmp_path / "out", Settings(server.url, selection=Elsewhere()), cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("release", "service", "schema"),
    [("rel2.0", "csc2tap", "csc2"), ("rel2.2", "csc22tap", "csc22"), ("cur", "csc_snapshot_tap", "csc_snapshot")],
)
def test_catalog_and_files_are_of_one_release(
    release: str, service: str, schema: str, archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive) as server:
        settings = Settings(server.url, release, selection=Selection(limit=5))
        workspace = open_workspace(settings, tmp_path)
        planned = make_plan(workspace, settings)
        assert planned.origin is not None
        assert planned.origin.service == f"{server.url}/{service}"
        assert (planned.origin.schema, planned.origin.version) == (schema, release)
        with workspace.archive.fetch(planned.packages[0]) as fetched:
            assert all(f"version={release}&" in url for url in fetched.urls.values())


def test_a_later_release_is_asked_for_by_the_rule_of_the_others_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_workspace(Settings("http://127.0.0.1:9", "rel2.3"), tmp_path)
    assert "rel2.3 is not known to this version" in caplog.text
    with pytest.raises(SettingError, match=r"unknown release 'rel1.1': choose one of rel2.1"):
        Settings("http://127.0.0.1:9", "rel1.1")


def test_a_second_download_adds_to_a_mirror_and_asks_again_for_what_was_refused(
    archive: SimulatedArchive, tmp_path: Path
) -> None:
    from builder.archive.interface import Fetched
    from builder.archive.mirror import Mirror, MirrorArchive
    from builder.archive.packages import Package

    first, second = (detection(row) for row in archive.rows[:2])
    package = Package(0, (first, second))
    mirror = Mirror(tmp_path / "mirror")
    with ArchiveServer(archive) as server:
        for limit in (5, 2):
            settings = Settings(server.url, selection=Selection(limit=limit))
            mirror.write_catalog(make_plan(open_workspace(settings, tmp_path), settings))
    held = make_plan(open_workspace(Settings(str(tmp_path / "mirror")), tmp_path), Settings(str(tmp_path / "mirror")))
    assert len(held.catalog) == 5
    (tmp_path / "a.tar").write_bytes(b"\0" * 10240)
    mirror.add(package, Fetched((tmp_path / "a.tar",), {}, {second: "404"}))
    assert package not in Mirror(tmp_path / "mirror")
    assert Package(0, (first,)) in Mirror(tmp_path / "mirror")
    with MirrorArchive(tmp_path / "mirror", "rel2.1").fetch(package) as fetched:
        assert fetched.unserved == {second: "404"}
    mirror.add(Package(0, (second,)), Fetched((tmp_path / "a.tar",), {}))
    assert package in Mirror(tmp_path / "mirror")
    with MirrorArchive(tmp_path / "mirror", "rel2.1").fetch(package) as fetched:
        assert fetched.unserved == {}


def test_trying_the_rejected_again_keeps_what_was_finished_where_the_archive_fails(
    mirror: Path, tmp_path: Path
) -> None:
    settings = Settings(str(mirror))
    prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
    before = sorted((tmp_path / "cache").rglob("*.arrows"))
    for tar in (mirror / "packages").iterdir():
        tar.unlink()
    with pytest.raises(ArchiveError, match="is missing"):
        prepare(tmp_path / "again", settings, cache=tmp_path / "cache", retry_rejected=True)
    assert sorted((tmp_path / "cache").rglob("*.arrows")) == before
