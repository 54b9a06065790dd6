"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stays_locked(lock: Path) -> bool:
    """Whether it is held by one who waits: it is for a moment by whoever takes a slot."""
    try:
        with FileLock(lock, thread_local=False).acquire(timeout=0.5):
            return False
    except Timeout:
        return True
