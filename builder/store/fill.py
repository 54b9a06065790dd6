"""From packages to finished packages: read from the store, or fetched, reduced and stored.

There is one way to a finished package, `make`. `fill` does it for many at once, in any order; `results` reads them
in the catalog's order and makes what is missing or damaged, so what comes out does not depend on how it was filled.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, as_completed
from concurrent.futures.process import BrokenProcessPool

from builder.archive.interface import Archive, Fetched
from builder.archive.mirror import Mirror, MirrorArchive
from builder.archive.packages import Package
from builder.model.errors import ChandraSpectraError, SettingError, StoreError, require
from builder.model.ids import DetectionId
from builder.model.records import Energies, Rejection, Spectrum, ebounds_id
from builder.model.settings import DEFAULT_CONNECTIONS
from builder.model.text import Progress
from builder.store.energies import Agreement, Choice, Grids
from builder.store.packages import PackageResult, Store, package_result
from builder.store.workers import reducer_of

logger = logging.getLogger(__name__)

Reduce = Callable[[Package, Fetched, Store, dict[str, Energies]], None]
Done = Callable[[Package], None]

_LAG = 70
"""Seconds for which a network file system may go on saying that a file is not there: NFS up to 60 (acdirmax)."""


def reduce_package(package: Package, fetched: Fetched, store: Store, energies: dict[str, Energies]) -> None:
    """Reduce the files of a package and keep the result in the store.

    Parameters
    ----------
    energies : dict of str to Energies
        Of the observations whose detections are reduced without their own RMFs.

    Raises
    ------
    ArchiveError
        If a part is not a whole tar, or has been damaged since it was kept.
    StoreError
        If the result cannot be written.
    """
    from builder.archive.products import group_products, members  # Sherpa's import is left to whoever reduces
    from builder.reduce.spectrum import reduce_products

    files = (file for part in fetched.parts for file in members(part))
    outcomes: list[Spectrum | Rejection] = []
    served = set()
    for products in group_products(package.detections, files):
        detection, shared = products.detection.catalog, energies.get(products.detection.observation)
        if detection in fetched.unserved and not (shared and products.pha and products.arf):
            continue
        served.add(detection)
        outcomes.append(
            reduce_products(
                products,
                store.recipe,
                fetched.urls[detection],
                response=store.responses,
                bins=store.bins,
                energies=shared,
            )
        )
    if any(isinstance(outcome, Rejection) for outcome in outcomes):  # to look always would cost a twentieth more
        fetched.check()
    outcomes += [
        Rejection(detection, "fetch", "not_served", message, fetched.urls[detection])
        for detection, message in fetched.unserved.items()
        if detection not in served
    ]
    store.write(package, package_result(package.detections, outcomes, store.bins))


def make(
    package: Package, archive: Archive, store: Store, reduce: Reduce = reduce_package, mirror: Mirror | None = None
) -> None:
    """Fetch, reduce and store one package, and keep its files in `mirror` where one is given."""
    choice = Choice(package)
    with archive.fetch(package, choose=choice) as fetched:
        if choice.useless:  # as the archive has them, or since
            fetched.check()
        if mirror is not None:
            mirror.add(package, fetched)
        reduce(package, fetched, store, choice.energies)


def results(
    packages: Iterable[Package], archive: Archive, store: Store, plan: Iterable[Package] = ()
) -> Iterator[tuple[Package, PackageResult]]:
    """Yield the result of every package in order, read from the store, or made where it is missing or damaged.

    Parameters
    ----------
    plan : iterable of Package
        All packages, where some of them may have observations in common with others of which they are not told yet:
        see `Agreement`. What is yielded is the package as it was made.
    """
    agreement = agree(plan, archive, store)
    for package in packages:
        settled = agreement.settle(package)
        yield settled, _result(settled, archive, store)


def _result(package: Package, archive: Archive, store: Store) -> PackageResult:
    try:
        return store.read(package)
    except StoreError as error:
        if package in store:
            logger.warning("%s; it is made again", error)
        make(package, archive, store)
        return store.read(package)


def agree(plan: Iterable[Package], archive: Archive, store: Store) -> Agreement:
    """Find where the detections of an observation need their own RMFs, by the rows that were made without."""

    def grids(package: Package) -> Grids:
        spectra, found = _result(package, archive, store).spectra, dict[str, frozenset[str]]()
        numbers, ids = (spectra[name].to_pylist() for name in ("object_id", "ebounds_id"))
        for number, grid in zip(numbers, ids, strict=True):
            key = DetectionId.from_object_id(number).observation
            found[key] = found.get(key, frozenset()) | {grid}
        return found

    return Agreement(plan, grids)


def fill(
    packages: Iterable[Package],
    archive: Archive,
    store: Store,
    *,
    workers: int = 1,
    connections: int = DEFAULT_CONNECTIONS,
    mirror: Mirror | None = None,
    again: frozenset[Package] = frozenset(),
    done: Done = lambda package: None,
) -> None:
    """Make every package that the store lacks.

    Fetching overlaps reducing: each of several threads fetches a package, hands it to a worker and waits for it. There
    are as many as keep both the connections and the workers busy. A package keeps its connection's place until it is
    reduced, so that of an archive over HTTP no more than `connections` are on disk.

    Parameters
    ----------
    workers : int
        Processes that reduce; with 1 it is a thread of this process.
    connections : int
        Packages in hand at once, or `workers` where they are more and the archive is a mirror.
    mirror : Mirror, optional
        Where to keep the files as well; a package that it lacks is made again.
    again : frozenset of Package
        Packages to make again, though they are finished.
    done : callable
        Called with each package as it is finished, those that were there already included.

    Raises
    ------
    ChandraSpectraError
        The first that a package raises; what was finished is kept, what was not begun is left.
    """
    packages = list(packages)
    finished = store.finished(packages) - again
    missing = _missing(packages, lambda p: p in finished and (mirror is None or p in mirror), done)
    workers = min(workers, len(missing)) or 1
    reducer = reducer_of(workers)
    try:
        task = functools.partial(
            make, archive=archive, store=store, reduce=functools.partial(_reduce_in, reducer), mirror=mirror
        )
        # Threads that wait for a slot would make those that have one close their connection.
        _each(missing, task, connections if archive.remote else max(connections, workers), done)
    finally:
        # The interpreter waits for the workers in any case, but may trip over a pool that closes at that moment.
        reducer.shutdown(wait=True, cancel_futures=True)


def fill_by(
    executor: Executor,
    packages: Iterable[Package],
    archive: Archive,
    store: Store,
    *,
    again: frozenset[Package] = frozenset(),
    lag: int = _LAG,
    done: Done = lambda package: None,
) -> None:
    """Do as `fill`, each package made by a worker of an executor, such as that of a Dask cluster.

    Each worker fetches, reduces and writes to the store, which it must share, as it must the cache with the locks of
    the connections; nothing but the word that it is done comes back. This process must see what was written within
    `lag` seconds.

    Raises
    ------
    ChandraSpectraError
        As `fill`, and if the workers are lost, or write to a store of their own.
    """
    packages = list(packages)
    finished = store.finished(packages) - again
    missing = _missing(packages, lambda package: package in finished, done)
    futures = {executor.submit(make, package, archive, store): package for package in missing}
    for future in as_completed(futures):
        try:
            future.result()
        except ChandraSpectraError:
            raise
        except Exception as error:  # what a cluster says of workers that it lost is its own business
            lost = isinstance(error, CancelledError)  # it says nothing
            reason = "their scheduler is lost" if lost else str(error) or type(error).__name__
            raise ChandraSpectraError(
                f"the workers could not make a package: {reason}; run the same command again to go on"
            ) from error
        _check_shared(futures[future], store, lag)
        done(futures[future])


def _check_shared(package: Package, store: Store, lag: int) -> None:
    """Raise ChandraSpectraError where this process does not see what a worker has written."""
    for _ in range(lag):
        if package in store:
            return
        time.sleep(1)
    raise ChandraSpectraError(
        "the workers write to another store than this process reads: give --cache or --store on a file system that "
        "all of them share"
    )


def download(
    packages: Iterable[Package],
    archive: Archive,
    mirror: Mirror,
    *,
    connections: int = DEFAULT_CONNECTIONS,
    done: Done = lambda package: None,
) -> None:
    """Fetch every package that a mirror lacks into it; parameters and errors as for `fill`."""
    packages = list(packages)

    def fetch(package: Package) -> None:
        with archive.fetch(package, choose=Choice(package)) as fetched:
            mirror.add(package, fetched)

    def grids(package: Package) -> Grids:
        choice = Choice(package)
        with MirrorArchive(mirror.folder, archive.release).fetch(package, choose=choice):
            return {key: frozenset({ebounds_id(found.low, found.high)}) for key, found in choice.energies.items()}

    _each(_missing(packages, lambda package: package in mirror, done), fetch, connections, done)
    settled = [package for package in map(Agreement(packages, grids).settle, packages) if package.own]
    _each(_missing(settled, lambda package: package in mirror, _nothing), fetch, connections, _nothing)


def _nothing(package: Package) -> None:
    """Count nothing: the package was counted before."""


def counter(progress: Progress, step: str, total: int) -> Callable[[Package], None]:
    """Turn finished packages into progress in detections."""
    count = 0

    def done(package: Package) -> None:
        nonlocal count
        count += len(package.detections)
        progress(step, count, total)

    progress(step, 0, total)
    return done


@contextlib.contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Return the executor of a Dask cluster; SettingError where it does not answer."""
    require("distributed", "dask", "--dask")
    from distributed import Client

    try:
        client = Client(address, timeout=30)
    except (OSError, TimeoutError, ValueError) as error:
        raise SettingError(f"no Dask scheduler at {address}: {error}") from error
    with client:
        yield client.get_executor()


def _missing(packages: Iterable[Package], there: Callable[[Package], bool], done: Done) -> list[Package]:
    missing = []
    for package in packages:
        if there(package):
            done(package)
        else:
            missing.append(package)
    return missing


def _each(packages: list[Package], task: Callable[[Package], None], number: int, done: Done) -> None:
    """Run a task for each package in `number` threads.

    An error or an interrupt ends it at once: the threads are daemons, so one that waits for an archive holds up neither
    this function nor the end of the process, as those of an executor would.
    """
    waiting: queue.SimpleQueue[Package] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[Package, BaseException | None]] = queue.SimpleQueue()
    for package in packages:
        waiting.put(package)
    stop = threading.Event()

    def work() -> None:
        # Ctrl-C reaches every process of a terminal, and is the first thread's business. A worker process that starts
        # here inherits this; by itself it could say so only after a second of imports.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while not stop.is_set():
            try:
                package = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                task(package)
                finished.put((package, None))
            except BaseException as error:  # noqa: BLE001  it is raised where the results are awaited
                finished.put((package, error))

    try:
        for _ in range(min(number, len(packages))):
            threading.Thread(target=work, daemon=True).start()
        for _ in packages:
            package, error = finished.get()
            if error is not None:
                raise error
            done(package)
    finally:
        stop.set()


def _reduce_in(
    reducer: Executor, package: Package, fetched: Fetched, store: Store, energies: dict[str, Energies]
) -> None:
    try:
        reducer.submit(reduce_package, package, fetched, store, energies).result()
    except BrokenProcessPool as error:
        raise ChandraSpectraError(
            "a worker process was killed, perhaps for want of memory; run the same command again to go on, with fewer "
            "--workers if it recurs. A script that calls prepare must be a file, no pipe, and do so below: "
            "if __name__ == '__main__':"
        ) from error
