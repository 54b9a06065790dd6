"""Connections to the archive: how many there may be, and what one of them has to stand."""

from __future__ import annotations

import contextlib
import http.client
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, ClassVar

import requests
import urllib3
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter

from builder.model.errors import StoreError
from builder.model.settings import DEFAULT_CONNECTIONS

_LEAST = 1000
"""Bytes a second that an answer must bring, or it is as good as none."""

_IDLE = 2.0
"""Seconds for which a connection is kept that nobody waits for: longer than from one package to the next."""

_MAX_HEADERS = 2**18
"""Bytes before an answer's body: http.client takes 6.5 MB, and as many `100 Continue` as come."""

_WINDOW = 120.0
"""Seconds over which the rate is taken where a socket has no timeout."""


@dataclass(eq=False)
class _Slot:
    """A slot that this process holds, its connection, and how often it was kept and taken."""

    number: int
    lock: FileLock
    folder: Path
    session: requests.Session
    turn: int = 0

    def close(self) -> None:
        """Close the connection, then let others have the slot."""
        close_connections(self.session)
        self.session.close()
        self.lock.release()


class Slots:
    """The connections that a run may have open, shared by all its processes.

    Each slot is a folder with a lock: whoever holds the lock may have one connection open, and has the folder to
    itself. The system frees the lock of a process that dies, and whoever takes the slot next finds and removes what
    it left, so that the disk in use is bounded as the connections are.

    A slot that nobody waits for is kept for a while with its connection, for what the same process fetches next: to
    open one takes several times as long as light takes to the archive and back.

    Parameters
    ----------
    folder : Path
        Shared by all that share the budget.
    """

    _kept: ClassVar[dict[Path, list[_Slot]]] = {}
    _guard = threading.Lock()

    def __init__(self, folder: Path, number: int = DEFAULT_CONNECTIONS) -> None:
        self.folder, self.number = folder, number

    @contextlib.contextmanager
    def take(self) -> Iterator[tuple[Path, requests.Session]]:
        """Wait for a slot; gives its folder, emptied now and when the context ends, and a session with one connection.

        Raises
        ------
        StoreError
            If the folder cannot be written.
        """
        try:
            slot, whole = self._acquire(), False
            try:
                _empty(slot.folder)
                yield slot.folder, slot.session
                whole = True
            finally:
                try:
                    _empty(slot.folder)
                finally:
                    if not (whole and self._keep(slot)):
                        slot.close()
        except OSError as error:
            raise StoreError(f"cannot use {self.folder}: {error.strerror or error}") from error

    def _acquire(self) -> _Slot:
        if slot := self._kept_one():
            return slot
        self.folder.mkdir(parents=True, exist_ok=True)
        # Who waits for a slot, and nobody else, looks for one: waiting costs little, and none who waits is overtaken.
        with FileLock(self.folder / "next.lock", thread_local=False).acquire(poll_interval=0.1):
            while True:
                for index in range(self.number):
                    lock = FileLock(self.folder / f"slot-{index}.lock", thread_local=False)
                    with contextlib.suppress(Timeout):
                        lock.acquire(timeout=0)
                        return _Slot(index, lock, self.folder / f"slot-{index}", new_session())
                time.sleep(0.02)
                if slot := self._kept_one():
                    return slot

    def _kept_one(self) -> _Slot | None:
        """Take a slot that this process has kept, and close those of a run with a larger budget."""
        with self._guard:
            kept = self._kept.pop(self.folder, [])
            for slot in kept:
                if slot.number >= self.number:
                    slot.turn += 1
                    slot.close()
            kept = [slot for slot in kept if slot.number < self.number]
            self._kept[self.folder] = kept
            if not kept:
                return None
            kept[-1].turn += 1
            return kept.pop()

    def _keep(self, slot: _Slot) -> bool:
        """Keep a slot for this process for a while, unless anybody waits for one."""
        if self._awaited():
            return False
        slot.turn += 1
        with self._guard:
            self._kept.setdefault(self.folder, []).append(slot)
        threading.Thread(target=self._attend, args=(slot, slot.turn), daemon=True).start()
        return True

    def _awaited(self) -> bool:
        path = self.folder / "next.lock"
        if not path.exists():  # the folder is gone, and with it the budget; to lock would make it again
            return True
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return True
        lock.release()
        return False

    def _attend(self, slot: _Slot, turn: int) -> None:
        """Close a slot that was kept, as soon as it was idle for long or anybody waits, unless it was taken again."""
        end = time.monotonic() + _IDLE
        while time.monotonic() < end:
            time.sleep(_IDLE / 20)
            if slot.turn != turn or self._awaited():
                break
        with self._guard:
            kept = self._kept.get(self.folder, [])
            if slot.turn != turn or slot not in kept:
                return
            kept.remove(slot)
        slot.close()


def _empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()


def new_session() -> requests.Session:
    """Make a session with one connection, which no answer holds for ever."""
    session = requests.Session()
    _watch(session)
    return session


@contextlib.contextmanager
def one_session() -> Iterator[requests.Session]:
    """Give such a session, whose connection is closed when the context ends."""
    with requests.Session() as session, mount(session):
        yield session


@contextlib.contextmanager
def mount(session: requests.Session) -> Iterator[None]:
    """Let a session have one connection, which is watched, and is closed when the context ends."""
    _watch(session)
    try:
        yield
    finally:
        close_connections(session)


def _watch(session: requests.Session) -> None:
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(pool_connections=1, pool_maxsize=1))


def close_connections(session: requests.Session) -> None:
    """Close what a session has open.

    Its own ``close`` leaves that to the garbage collector, and the archive would see one connection too many.
    """
    for adapter in session.adapters.values():
        pools = adapter.poolmanager.pools  # type: ignore[attr-defined]
        for key in list(pools.keys()):
            pools[key].close()


class _Wire(io.RawIOBase):
    """What comes through a socket, as long as it comes fast enough and, before a body, is not too long.

    A socket's own timeout is begun again by each byte.
    """

    def __init__(self, connection: socket) -> None:
        super().__init__()
        self._raw = connection.makefile("rb", buffering=0)
        self._window = connection.gettimeout() or _WINDOW
        self._since = self._seen = 0.0
        self.left: float = _MAX_HEADERS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        size = self._raw.readinto(buffer) or 0
        now = time.monotonic()
        self._since, self._seen, self.left = self._since or now, self._seen + size, self.left - size
        if self.left < 0:
            raise TimeoutError(f"more than {_MAX_HEADERS} bytes of headers")
        if (elapsed := now - self._since) > self._window:
            if self._seen < _LEAST * elapsed:
                raise TimeoutError(f"less than {_LEAST} bytes a second")
            self._since, self._seen = now, 0
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self._wire = _Wire(sock)
        self.fp = io.BufferedReader(self._wire)

    def begin(self) -> None:
        super().begin()
        self._wire.left = float("inf")


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Answer


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _Answer


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager
