"""One way to ask the archive over HTTP: polite, patient, and sure of what came.

A request is sent as a POST form, since 150 products make an address that is too long for some proxies. The answer is
streamed to a file beside its place, checked to be the thing that was asked for, and only then renamed. Whether to ask
again is decided by the kind of failure, never by its words.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout

from builder import __version__
from builder.model.errors import ArchiveError, RefusedError, StoreError, TransientError, UnavailableError
from builder.model.settings import DEFAULT_CONNECTIONS

logger = logging.getLogger(__name__)

_LONG = 35.0
"""Seconds of a pause that whoever waits is told of: longer than any before a host is given up that never answered."""

USER_AGENT = f"chandra-spectra/{__version__} (dataset builder)"
_CHUNK = 2**20
_REDIRECTS = 5
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # RFC 9110: the same request may succeed later
_BARRED = frozenset({401, 403, 407, 451})  # no request of this client is welcome

Check = Callable[[Path], None]
"""Raises TransientError where a file is not what was asked for, RefusedError where asking again is of no use."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of the waiting for an archive.

    Attributes
    ----------
    connect, read : float
        Seconds to wait for a connection, and for the next bytes of an answer.
    first, total : float
        Seconds after which a request is given up: before the host was ever reached, and after.
    base, longest : float
        Backoff: the n-th pause is drawn from 0.5 to 1 times ``min(base * 2**n, longest)`` seconds.
    """

    connect: float = 10.0
    read: float = 120.0
    first: float = 40.0
    total: float = 900.0
    base: float = 1.0
    longest: float = 120.0

    @classmethod
    def within(cls, seconds: float) -> Patience:
        """Give up a request after so many seconds, and wait for no part of it any longer."""
        usual = cls()
        connect, read, first = (min(limit, seconds) for limit in (usual.connect, usual.read, usual.first))
        return cls(connect, read, first, total=seconds)


class Slots:
    """The connections that a run may have open, shared by all its processes.

    Each slot is a folder with a lock: whoever holds the lock may have one connection open, and has the folder to
    itself. The system frees the lock of a process that dies, and whoever takes the slot next finds and removes what
    it left, so that the disk in use is bounded as the connections are.

    Parameters
    ----------
    folder : Path
        Shared by all that share the budget.
    """

    def __init__(self, folder: Path, number: int = DEFAULT_CONNECTIONS) -> None:
        self.folder, self.number = folder, number

    @contextlib.contextmanager
    def take(self) -> Iterator[Path]:
        """Wait for a slot; gives its folder, emptied now and when the context ends.

        Raises
        ------
        StoreError
            If the folder cannot be written.
        """
        try:
            lock, folder = self._acquire()
            try:
                _empty(folder)
                yield folder
            finally:
                _empty(folder)
                lock.release()
        except OSError as error:
            raise StoreError(f"cannot use {self.folder}: {error.strerror or error}") from error

    def _acquire(self) -> tuple[FileLock, Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Who waits for a slot, and nobody else, looks for one: waiting costs little, and none who waits is overtaken.
        with FileLock(self.folder / "next.lock", thread_local=False).acquire(poll_interval=0.1):
            while True:
                for index in range(self.number):
                    lock = FileLock(self.folder / f"slot-{index}.lock", thread_local=False)
                    with contextlib.suppress(Timeout):
                        lock.acquire(timeout=0)
                        return lock, self.folder / f"slot-{index}"
                time.sleep(0.02)


@contextlib.contextmanager
def one_session() -> Iterator[requests.Session]:
    """Give a session whose connection is closed when the context ends.

    Its own ``close`` leaves that to the garbage collector, and the archive would see one connection too many.
    """
    with requests.Session() as session:
        try:
            yield session
        finally:
            for adapter in session.adapters.values():
                pools = adapter.poolmanager.pools  # type: ignore[attr-defined]
                for key in list(pools.keys()):
                    pools[key].close()


def _empty(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()


@dataclass
class Client:
    """Downloads with retries, to one host.

    Parameters
    ----------
    base : str
        Base URL; redirects stay on its host.
    sleep, clock : callable
        `time.sleep` and `time.monotonic`, for tests to replace.
    """

    base: str
    patience: Patience = field(default_factory=Patience)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _reached: bool = False

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc

    def download(self, session: requests.Session, url: str, path: Path, check: Check, max_bytes: int) -> None:
        """Ask for `url` until a whole and right answer is at `path`.

        Parameters
        ----------
        session : requests.Session
            Whose one connection is used.
        url : str
            Its query is sent as a form.
        max_bytes : int
            An answer that is larger is broken or hostile.

        Raises
        ------
        RefusedError
            The archive refuses this request.
        UnavailableError
            No right answer came for as long as `patience` says.
        ArchiveError
            The archive refuses this client.
        StoreError
            The disk is full or cannot be written.
        """
        begun, attempt = self.clock(), 0
        while True:
            try:
                return self._try(session, url, path, check, max_bytes)
            except TransientError as error:
                pause = min(self.patience.base * 2**attempt, self.patience.longest) * random.uniform(0.5, 1)
                pause = max(pause, error.retry_after or 0)
                limit = self.patience.total if self._reached else self.patience.first
                if self.clock() - begun + pause > limit:
                    raise UnavailableError(
                        f"{self.host}: {error}; gave up after {attempt + 1} tries: check the network and the "
                        "service, then run the same command again to go on"
                    ) from error
                told = logging.WARNING if pause >= _LONG else logging.INFO
                logger.log(told, "%s: %s; asking again in %.0f s", self.host, error, pause)
                attempt += 1
                self.sleep(pause)

    def _try(self, session: requests.Session, url: str, path: Path, check: Check, max_bytes: int) -> None:
        partial = path.with_name(path.name + ".partial")
        try:
            with self._open(session, url) as response, partial.open("wb") as file:
                body = _decoded(response)
                while chunk := body.read(_CHUNK):
                    if file.tell() + len(chunk) > max_bytes:
                        raise RefusedError(f"{url[:100]} answered more than {max_bytes} bytes")
                    file.write(chunk)
                came, announced = response.raw.tell(), response.headers.get("Content-Length", "")
                if announced.isdecimal() and announced != str(came):
                    raise TransientError(f"an answer was cut short: {came} of {announced} bytes")
            check(partial)
            partial.replace(path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TransientError(f"an answer is not the whole gzip it is said to be: {error}") from error
        except (requests.exceptions.InvalidURL, urllib3.exceptions.LocationValueError) as error:
            raise ArchiveError(f"{self.host}: no request can be sent there: {error}") from error
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):  # requests keeps OpenSSL's name of the failure only there
                raise TransientError(_reason(error)) from error
            raise ArchiveError(f"{self.host}: the certificate is not trusted: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise TransientError(_reason(error)) from error
        except OSError as error:  # requests' own exceptions are OSErrors too, and are dealt with above
            raise StoreError(f"cannot write {path}: {error.strerror}; finished packages are kept") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _open(self, session: requests.Session, url: str) -> requests.Response:
        """Send the request and follow redirects, to the same host only."""
        target, _, query = url.partition("?")
        method, form = "POST", parse_qsl(query, keep_blank_values=True)
        for _hop in range(_REDIRECTS):
            response = session.request(
                method,
                target,
                data=form or None,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=(self.patience.connect, self.patience.read),
                allow_redirects=False,
                stream=True,
            )
            self._reached = True
            if not response.is_redirect:
                return _checked(response)
            response.close()
            target = self._redirected(target, response.headers["Location"])
            if response.status_code not in (307, 308):
                method, form = "GET", []
        raise ArchiveError(f"{self.host} redirects in a circle")

    def _redirected(self, target: str, location: str) -> str:
        """Return the address of a redirect; ArchiveError if it is on another host, or none."""
        try:
            target = urljoin(target, location)
            base, other = urlsplit(self.base), urlsplit(target)
        except ValueError as error:
            raise ArchiveError(f"{self.host} redirects to {location!r}: {error}") from error
        secured = base.hostname == other.hostname and other.scheme == "https"
        if not secured and (base.scheme, base.netloc) != (other.scheme, other.netloc):
            raise ArchiveError(f"{self.host} redirects to another host, {other.netloc}: refused")
        return target


def _decoded(response: requests.Response) -> IO[bytes]:
    """Return the body as it is meant: some servers call a gzipped file a file sent in gzip, though none was asked for.

    Not as requests decodes it, which takes a stream that is cut short for whole.
    """
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise TransientError(f"an answer is encoded as {encoding!r}, which was not asked for")
    raw = cast("IO[bytes]", response.raw)
    return raw if encoding == "identity" else cast("IO[bytes]", gzip.GzipFile(fileobj=raw))


def _checked(response: requests.Response) -> requests.Response:
    status = response.status_code
    if status == 200:
        return response
    words = f"status {status} {response.reason or ''}".strip()
    wait = _retry_after(response.headers.get("Retry-After", ""))
    response.close()
    if status in _RETRIED:
        raise TransientError(words, wait)
    kind = ArchiveError if status in _BARRED else RefusedError
    raise kind(f"{urlsplit(response.url).netloc}{urlsplit(response.url).path} answered {words}")


def _retry_after(value: str) -> float | None:
    """Return the seconds to wait, from either form of Retry-After (RFC 9110, section 10.2.3)."""
    if value.strip().isascii() and value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _reason(error: requests.RequestException | urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError) and "resolve" in str(error).lower():
        return "the host's name cannot be resolved"
    return "the connection was refused or lost"
