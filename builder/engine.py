"""From packages to finished packages: read from the store, or fetched, reduced and stored.

There is one way to a finished package, `make`. `fill` does it for many at once, in any order; `results` reads them
in the catalog's order and makes what is missing or damaged, so what comes out does not depend on how it was filled.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from builder.archive import Archive, Fetched
from builder.catalog import Package
from builder.errors import ChandraSpectraError, StoreError
from builder.records import Rejection, Spectrum
from builder.store import PackageResult, Store, package_result

__all__ = ["fill", "make", "reduce_package", "results"]

logger = logging.getLogger(__name__)

Reduce = Callable[[Package, Fetched, Store], None]


def reduce_package(package: Package, fetched: Fetched, store: Store) -> None:
    """Reduce the files of a package and keep the result in the store.

    Raises
    ------
    ArchiveError
        If a part is not a whole tar.
    StoreError
        If the result cannot be written.
    """
    from builder.products import group_products, members  # Sherpa's import is left to whoever reduces
    from builder.reduction import reduce_products

    files = (file for part in fetched.parts for file in members(part))
    served = [detection for detection in package.detections if detection not in fetched.unserved]
    outcomes: list[Spectrum | Rejection] = [
        reduce_products(products, store.recipe, fetched.url) for products in group_products(served, files)
    ]
    outcomes += [
        Rejection(detection, "fetch", "not_served", message, fetched.url)
        for detection, message in fetched.unserved.items()
    ]
    store.write(package, package_result(package.detections, outcomes))


def make(package: Package, archive: Archive, store: Store, reduce: Reduce = reduce_package) -> None:
    """Fetch, reduce and store one package."""
    with archive.fetch(package) as fetched:
        reduce(package, fetched, store)


def results(packages: Iterable[Package], archive: Archive, store: Store) -> Iterator[tuple[Package, PackageResult]]:
    """Every package's result, in the order given: read from the store, or made where it is missing or damaged."""
    for package in packages:
        try:
            result = store.read(package)
        except StoreError as error:
            if package in store:
                logger.warning("%s; it is made again", error)
            make(package, archive, store)
            result = store.read(package)
        yield package, result


def fill(
    packages: Iterable[Package],
    archive: Archive,
    store: Store,
    *,
    workers: int = 1,
    connections: int = 4,
    done: Callable[[Package], None] = lambda package: None,
) -> None:
    """Make every package that the store lacks.

    Fetching overlaps reducing: each of `connections` threads fetches a package, hands it to a worker and waits for it,
    so that no more than `connections` packages are on disk.

    Parameters
    ----------
    packages : iterable of Package
    archive : Archive
    store : Store
    workers : int
        Processes that reduce; with 1 it is a thread of this process.
    connections : int
        Packages in hand at once.
    done : callable
        Called with each package as it is finished, those that were there already included.

    Raises
    ------
    ChandraSpectraError
        The first that a package raises; what was finished is kept, what was not begun is left.
    """
    missing = []
    for package in packages:
        if package in store:
            done(package)
        else:
            missing.append(package)
    if not missing:
        return
    workers = min(workers, len(missing))
    with _reducer(workers) as reducer, ThreadPoolExecutor(max(connections, workers)) as threads:
        reduce = functools.partial(_reduce_in, reducer)
        futures: dict[Future[None], Package] = {
            threads.submit(make, package, archive, store, reduce): package for package in missing
        }
        try:
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, return_when=FIRST_EXCEPTION, timeout=0.2)
                for future in finished:
                    future.result()
                    done(futures[future])
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            reducer.shutdown(wait=False, cancel_futures=True)
            raise


def _reducer(workers: int) -> Executor:
    if workers == 1:
        return ThreadPoolExecutor(1)
    # A forked child of a process with threads may deadlock; spawned ones start clean on every platform.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _reduce_in(reducer: Executor, package: Package, fetched: Fetched, store: Store) -> None:
    try:
        reducer.submit(reduce_package, package, fetched, store).result()
    except BrokenProcessPool as error:
        raise ChandraSpectraError(
            "a worker process was killed, perhaps for want of memory; run the same command again to go on, "
            "with fewer --workers if it recurs"
        ) from error
