"""However the store is filled, the folder is the same bytes; a lost worker costs a package, not the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.archive.interface import Choose, Fetched, Record, forget
from builder.archive.mirror import Mirror, MirrorArchive
from builder.archive.packages import Package
from builder.dataset.layout import Manifest
from builder.model.errors import ArchiveError, ChandraSpectraError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare, prepare_share
from builder.simulator.server import ArchiveServer
from builder.store.fill import download, fill, fill_by
from builder.store.packages import Store
from builder.workspace import make_plan, open_workspace
from tests.folders import contents
from tests.impatient import RememberedArchive
from tests.runs import Run, command
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("without_pictures")

N = 220


@pytest.fixture(scope="module")
def archive() -> RememberedArchive:
    return RememberedArchive(N)


@pytest.fixture(scope="module")
def server(archive: RememberedArchive) -> Iterator[ArchiveServer]:
    with ArchiveServer(archive, bytes_per_second=80e6) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: ArchiveServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The folder of a run with one worker."""
    folder = tmp_path_factory.mktemp("one")
    prepare(folder / "out", Settings(server.url), cache=folder / "cache", workers=1)
    return data_of(folder / "out")


def data_of(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which says when it was made."""
    return {path: data for path, data in contents(folder).items() if path != "manifest.json"}


@pytest.mark.pictures
def test_four_workers_give_the_same_bytes_as_one(
    server: ArchiveServer, expected: dict[str, bytes], tmp_path: Path
) -> None:
    prepare(tmp_path / "out", Settings(server.url), cache=tmp_path / "cache", workers=4)
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("listed", [False, True], ids=["each asks the catalog", "listed in a file"])
def test_three_shards_and_then_an_assembly_give_the_same_bytes_and_fetch_nothing_twice(
    server: ArchiveServer, expected: dict[str, bytes], tmp_path: Path, listed: bool
) -> None:
    start = len(server.log)
    words = ("--archive", server.url, "--cache", tmp_path / "cache", "--workers", 1)
    selection = tmp_path / "cache" / "selection.vot"
    file = ("--cat-file", selection) if listed else ()
    if listed:
        assert command("catalog", selection, *words[:4]).returncode == 0
    for index in range(3):
        result = command("prepare", "--shard", f"{index}/3", *file, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    result = command("prepare", tmp_path / "out", *words)
    assert result.returncode == 0, result.stderr
    asked = [request.detections for request in server.log[start:] if request.service == "retrieve"]
    assert len(asked) == len(set(asked)) == 5
    assert data_of(tmp_path / "out") == expected


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "-1/2"])
def test_a_wrong_shard_is_one_clear_line(shard: str, tmp_path: Path) -> None:
    result = command("prepare", "--shard", shard, "--archive", "embedded", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "is not I/N" in result.stderr


@pytest.mark.parametrize("option", [("--keep-downloads", "kept"), ("--dask", "tcp://x")], ids=lambda words: words[0])
def test_a_shard_goes_with_nothing_but_filling_the_store(option: tuple[str, str], tmp_path: Path) -> None:
    result = command("prepare", "--shard", "0/2", "--archive", "embedded", *option, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "--shard only fills the store" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.pictures
def test_a_store_on_a_file_system_of_fsspec_gives_the_same_bytes(
    server: ArchiveServer, expected: dict[str, bytes], tmp_path: Path
) -> None:
    settings, store = Settings(server.url), "memory://store"
    start = len(server.log)
    assert prepare_share(settings, (0, 2), cache=tmp_path / "cache", store=store) == 3
    prepare(tmp_path / "out", settings, cache=tmp_path / "cache", store=store)
    asked = [request.detections for request in server.log[start:] if request.service == "retrieve"]
    assert len(asked) == len(set(asked)) == 5
    assert data_of(tmp_path / "out") == expected
    source = open_workspace(settings, tmp_path / "cache", store=store)
    assert str(source.store.root).startswith(store)
    package = make_plan(source, settings).packages[0]
    assert package in source.store


def test_after_an_error_no_further_package_is_begun(tmp_path: Path) -> None:
    begun: list[Package] = []
    raised = threading.Event()

    class Failing(MirrorArchive):
        @contextlib.contextmanager
        def fetch(self, package: Package, record: Record = forget, choose: Choose | None = None) -> Iterator[Fetched]:
            begun.append(package)
            if len(begun) > 1:
                raised.wait(30)  # its thread may have begun the next before the error was seen, but not another
            with super().fetch(package, record, choose) as fetched:
                yield fetched

    before = set(threading.enumerate())
    packages = [Package(number, (DetectionId(number, 0, 1),)) for number in range(5)]
    with pytest.raises(ArchiveError, match="has no files of"):
        download(packages, Failing(tmp_path, "rel2.1"), Mirror(tmp_path), connections=1)
    raised.set()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert len(begun) <= 2


def test_after_an_error_no_worker_is_left(mirror: Path, tmp_path: Path) -> None:
    """They would end by themselves, but the interpreter may trip over that at its own end."""
    source = open_workspace(Settings(str(mirror)), tmp_path)
    first, *_ = make_plan(source, Settings(str(mirror))).packages
    second = Package(1, (DetectionId(1, 0, 1),))

    class Failing(MirrorArchive):
        @contextlib.contextmanager
        def fetch(self, package: Package, record: Record = forget, choose: Choose | None = None) -> Iterator[Fetched]:
            if package is not first:
                wait_for(multiprocessing.active_children)
            with super().fetch(package, record, choose) as fetched:
                yield fetched

    with pytest.raises(ArchiveError, match="has no files of"):
        fill([first, second], Failing(mirror, "rel2.1"), source.store, workers=2)
    assert multiprocessing.active_children() == []


UNGUARDED = """
from pathlib import Path
from builder.prepare import prepare
from builder.model.settings import Settings
prepare("out", Settings("mirror"), cache=Path("cache"), workers=2)
"""


def test_a_script_whose_workers_would_run_it_again_is_told_what_it_lacks(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "if __name__ == '__main__':" in run.stderr.splitlines()[-1]


def test_a_folder_for_temporary_files_in_which_no_socket_can_be_changes_nothing(sample: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 25)  # the path of a socket has 107 bytes at most
    deep.mkdir()
    words = ("prepare", "out", "--archive", "embedded", "--splits", "none", "--cache", "cache", "--workers", "2")
    command = [sys.executable, "-m", "builder.cli", *words]
    environment = os.environ | {"TMPDIR": str(deep), "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    (shard,) = Manifest.read(tmp_path / "out").shards("spectra", "train")
    assert (tmp_path / "out" / shard).read_bytes() == (sample / shard).read_bytes()
    assert not [*deep.iterdir()]


CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=3, processes=True, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, *(w.process.pid for w in cluster.workers.values()), flush=True)
        sys.stdin.read()
"""


@dataclass(frozen=True)
class Cluster:
    """A Dask cluster of two processes with three threads each, in a folder of its own."""

    folder: Path
    address: str
    workers: list[int]
    process: subprocess.Popen[str]


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address, *workers = process.stdout.readline().split()
        yield Cluster(folder, address, [int(worker) for worker in workers], process)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            process.communicate("", timeout=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_all_threads_of_a_dask_cluster_share_one_budget_in_the_cache_of_the_first_process(
    server: ArchiveServer, cluster: Cluster, tmp_path: Path
) -> None:
    server.max_connections = 0
    words = ("--archive", server.url, "--cache", "cache", "--connections", 1, "--dask", cluster.address)
    result = command("prepare", "out", *words, "--limit", 110, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(list((tmp_path / "cache").rglob("*.arrows"))) == 3
    assert server.max_connections == 1
    assert not list(cluster.folder.rglob("*.arrows"))


def test_workers_find_a_mirror_and_a_store_that_are_named_from_the_folder_of_the_first_process(
    cluster: Cluster, mirror: Path, tmp_path: Path
) -> None:
    words = ("--archive", mirror.name, "--store", "store", "--dask", cluster.address)
    result = command("prepare", "out", *words, "--min-cnts", 0, "--min-sig", 0, "--max-theta", 60, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert list((tmp_path / "store").rglob("*.arrows")) and not list(cluster.folder.rglob("*.arrows"))


def test_a_dask_cluster_gives_the_same_bytes_with_one_rmf_an_observation(
    cluster: Cluster, mirror: Path, tmp_path: Path
) -> None:
    words = ("--archive", mirror, "--rmf", "observation", "--min-cnts", 0, "--min-sig", 0, "--max-theta", 60)
    for name, more in (("alone", ("--workers", 1)), ("dask", ("--dask", cluster.address))):
        result = command("prepare", tmp_path / name, *words, "--cache", tmp_path / f"{name}-cache", *more)
        assert (result.returncode, result.stderr) == (0, "")
    assert data_of(tmp_path / "dask") == data_of(tmp_path / "alone")


def test_workers_that_write_to_a_store_of_their_own_end_the_run(cluster: Cluster, mirror: Path, tmp_path: Path) -> None:
    """Each process has a memory:// of its own."""
    from distributed import Client

    settings = Settings(str(mirror), selection=Selection(0, 0, 60))
    source = open_workspace(settings, tmp_path, store="memory://theirs")
    packages = make_plan(source, settings).packages
    refused = pytest.raises(ChandraSpectraError, match="the workers write to another store than this process reads")
    with Client(cluster.address) as client, refused:
        fill_by(client.get_executor(), packages, source.archive, source.store, lag=1)


def test_a_dask_cluster_that_loses_a_worker_half_way_gives_the_same_bytes(
    server: ArchiveServer, expected: dict[str, bytes], cluster: Cluster, tmp_path: Path
) -> None:
    words = ("--archive", server.url, "--cache", tmp_path / "cache", "--dask", cluster.address)
    run = Run("prepare", tmp_path / "out", *words)
    wait_for(lambda: list((tmp_path / "cache").rglob("*.arrows")) or not run.process.is_alive())
    os.kill(cluster.workers[0], signal.SIGKILL)
    result = run.wait(120)
    assert result.returncode == 0, result.stderr
    assert data_of(tmp_path / "out") == expected


def test_a_dask_scheduler_that_is_lost_half_way_is_one_clear_line(archive: RememberedArchive, tmp_path: Path) -> None:
    with ArchiveServer(archive, bytes_per_second=1e5) as slow, started(tmp_path) as cluster:
        run = Run("prepare", "out", "--archive", slow.url, "--cache", "cache", "--dask", cluster.address, cwd=tmp_path)
        wait_for(lambda: any(request.service == "retrieve" for request in slow.log) or not run.process.is_alive())
        os.killpg(cluster.process.pid, signal.SIGKILL)
        result = run.wait(60)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "their scheduler is lost; run the same command again" in result.stderr


def test_what_a_worker_raises_without_a_word_is_named(tmp_path: Path) -> None:
    class Wordless(Executor):
        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(MemoryError())
            return future

    package = Package(0, (DetectionId(1, 0, 1),))
    with pytest.raises(ChandraSpectraError, match="could not make a package: MemoryError; run"):
        fill_by(Wordless(), [package], MirrorArchive(tmp_path, "cur"), Store(tmp_path, "cur", Recipe()))


def test_a_dask_scheduler_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    result = command("prepare", tmp_path / "out", "--archive", "embedded", "--dask", "nonsense://x")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "nonsense://x" in result.stderr
