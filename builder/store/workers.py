"""The processes that reduce: how they start, and how they end."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.context import BaseContext

_NEEDED = ("builder.store.fill", "builder.archive.products", "builder.reduce.spectrum", "pandas")
"""What a worker imports; the last is imported by pyarrow with the first array that it makes."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3), in glibc's malloc.h; the latter's greatest value is 32 MiB."""


def reducer_of(workers: int) -> Executor:
    """Return an executor of so many processes; of one thread of this process where that is all."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    # A forked child of a process with threads may deadlock: workers are children of one without, which imports once
    # what all of them need. What macOS links Python with does not bear even that.
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_NEEDED])
        with contextlib.suppress(OSError):  # where TMPDIR is too long for a socket, or on a file system without any
            return _started(workers, context)
    return _started(workers, multiprocessing.get_context("spawn"))


def _started(workers: int, context: BaseContext) -> Executor:
    """Return a pool of which one worker is started, in the way that all will be; OSError where that cannot be."""
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT}
    )  # inherited: Ctrl-C is the first process's business
    try:
        pool.submit(os.getpid)
    except OSError:
        pool.shutdown()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _begin_worker() -> None:
    """Do not outlive the first process, and keep the memory of one file for the next."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # glibc would give large blocks back, to have them zeroed again for each file: an eighth of a worker's CPU.
    with contextlib.suppress(AttributeError, OSError):  # another C library
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        allocator.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
