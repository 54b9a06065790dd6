"""One way to ask the archive over HTTP: polite, patient, and sure of what came.

The answer is streamed to a file beside its place, checked to be the thing that was asked for, and only then renamed.
Whether to ask again is decided by the kind of failure, never by its words.
"""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import logging
import random
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast
from urllib.parse import SplitResult, parse_qsl, urljoin, urlsplit

import requests
import urllib3

from builder import __version__
from builder.archive.connections import close_connections
from builder.model.errors import (
    ArchiveError,
    RefusedError,
    StoreError,
    TooSlowError,
    TransientError,
    UnavailableError,
    WrongAnswerError,
)
from builder.model.text import text_of

logger = logging.getLogger(__name__)

_LONG = 35.0
"""Seconds of a pause that whoever waits is told of: longer than any before a host is given up that never answered."""

USER_AGENT = f"chandra-spectra/{__version__} (dataset builder)"
_CHUNK = 2**20
_REDIRECTS = 5
_TRIES = 3
"""Tries of a request that fails in one way though the service answers others, or whose answer is complete but wrong."""

_MANY = 2 * _TRIES
"""Tries of a request that fails in several ways though the service answers others."""

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # RFC 9110: the same request may succeed later
_BARRED = frozenset({401, 403, 407, 451})  # no request of this client is welcome
_WORDS = 2**14
"""Bytes of an error's page that are read for its words."""

_ALIASES = (frozenset({"cda.cfa.harvard.edu", "cda.harvard.edu"}), frozenset({"localhost", "127.0.0.1", "::1"}))
"""Names of one and the same host."""

_PORTS = {"http": 80, "https": 443}

Check = Callable[[Path, bool], None]
"""A function that is given a file and whether its transfer told its own end.

It raises WrongAnswerError where the file is not what was asked for, TransientError where it is cut short, and
RefusedError where asking again is of no use.
"""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits of the waiting for an archive.

    Attributes
    ----------
    connect, read : float
        Seconds to wait for a connection, and for the next bytes of an answer.
    query : float
        Seconds to wait for the first bytes of the answer to a query, which the service may have to work for.
    first, total : float
        Seconds after which a request is given up: before the host was ever reached, and after.
    base, longest : float
        Backoff: the n-th pause is drawn from 0.5 to 1 times ``min(base * 2**n, longest)`` seconds.
    """

    connect: float = 10.0
    read: float = 120.0
    query: float = 1800.0
    first: float = 40.0
    total: float = 900.0
    base: float = 1.0
    longest: float = 120.0

    @classmethod
    def within(cls, seconds: float) -> Patience:
        """Give up a request after so many seconds, and wait for no part of it any longer."""
        usual = cls()
        connect, read, first = (min(limit, seconds) for limit in (usual.connect, usual.read, usual.first))
        return cls(connect, read, seconds, first, total=seconds)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    url : str
        With its parameters as a query.
    max_bytes : int
        An answer that is larger is broken or hostile.
    verb : {'GET', 'POST'}
        A POST sends the query as a form.
    slow : bool
        The service may have to work for it: it is waited for longer, and never sent while an earlier one may be worked
        on.
    """

    url: str
    check: Check
    max_bytes: int
    verb: str = "GET"
    slow: bool = False


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
    _lasting: set[str] = field(default_factory=set)

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.base).netloc

    def download(
        self, session: requests.Session, request: Request, path: Path, alive: Callable[[], bool] = lambda: False
    ) -> None:
        """Ask until a whole and right answer is at `path`.

        An answer that is complete but wrong gets three tries. Any other failure is waited for as long as `patience`
        says, unless the service is seen to answer something else meanwhile: then the third failure in one way decides,
        or the sixth in all.

        Parameters
        ----------
        session : requests.Session
            Whose one connection is used.
        alive : callable
            Asks the service for something else; whether that comes.

        Raises
        ------
        RefusedError
            The archive refuses this request, or cannot answer it.
        WrongAnswerError
            It answers something else, and nothing else tells whether it is in order.
        TooSlowError
            The service may still be working for this request.
        UnavailableError
            No right answer came for as long as `patience` says.
        ArchiveError
            The archive refuses this client.
        StoreError
            The disk is full or cannot be written.
        """
        begun, attempt, believed = self.clock(), 0, False
        met: Counter[str] = Counter()
        while True:
            sent = time.monotonic()
            try:
                return self.ask(session, request, path)
            except TransientError as error:
                attempt += 1
                if request.slow and (error.status == 504 or time.monotonic() - sent > self.patience.read):
                    raise TooSlowError(f"{self.host}: {error}") from error
                kind = self._kind(request, error)
                if kind in self._lasting:
                    raise RefusedError(str(error)) from error
                met[kind] += 1
                if believed and (met[kind] >= _TRIES or attempt >= _MANY):
                    if isinstance(error, WrongAnswerError) or error.status == 500:
                        self._lasting.add(kind)
                    raise RefusedError(f"{error}, in {attempt} tries") from error
                believed = believed or (attempt >= _TRIES - 1 and alive())
                if isinstance(error, WrongAnswerError) and attempt >= _TRIES and not believed:
                    raise WrongAnswerError(f"{self.host}: {error}, in {attempt} tries") from error
                self.pause(error, attempt, begun)
            except (RefusedError, StoreError):
                raise
            except ArchiveError as error:  # it may be barred from this one thing only
                if alive():
                    raise RefusedError(str(error)) from error
                raise

    def pause(self, error: TransientError, attempt: int, begun: float) -> None:
        """Wait before the next try; UnavailableError where the time is up."""
        pause = min(self.patience.base * 2 ** (attempt - 1), self.patience.longest) * random.uniform(0.5, 1)
        pause = max(pause, error.retry_after or 0)
        limit = self.patience.total if self._reached else min(self.patience.first, self.patience.total)
        if self.clock() - begun + pause > limit:
            raise UnavailableError(
                f"{self.host}: {error}; gave up after {attempt} tries: check the network and the service, then run the "
                "same command again to go on"
            ) from error
        told = logging.WARNING if pause >= _LONG else logging.INFO
        logger.log(told, "%s: %s; asking again in %.0f s", self.host, error, pause)
        self.sleep(pause)

    @staticmethod
    def _kind(request: Request, error: TransientError) -> str:
        """Name the form of a failure: one that was seen to last for one thing needs no more tries for the next."""
        return re.sub(r"\d+", "#", f"{urlsplit(request.url).path} {error}")

    def ask(self, session: requests.Session, request: Request, path: Path) -> None:
        """Ask once; errors as for `download`, and TransientError where asking again may help."""
        partial = path.with_name(path.name + ".partial")
        try:
            with self._open(session, request) as response, partial.open("wb") as file:
                body = _decoded(response)
                while chunk := body.read(_CHUNK):
                    if file.tell() + len(chunk) > request.max_bytes:
                        raise RefusedError(f"{request.url[:100]} answered more than {request.max_bytes} bytes")
                    file.write(chunk)
                came, announced = response.raw.tell(), response.headers.get("Content-Length", "")
                if announced.isdecimal() and announced != str(came):
                    raise TransientError(f"an answer was cut short: {came} of {announced} bytes")
                chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
            request.check(partial, bool(announced) or chunked or body is not response.raw)
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

    def _open(self, session: requests.Session, request: Request) -> requests.Response:
        """Send the request and follow redirects, to the same host only."""
        target, method, form = request.url, request.verb, None
        if method == "POST":
            target, _, query = target.partition("?")
            form = parse_qsl(query, keep_blank_values=True) or None
        for _hop in range(_REDIRECTS):
            response = session.request(
                method,
                target,
                data=form,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=(self.patience.connect, self.patience.query if request.slow else self.patience.read),
                allow_redirects=False,
                stream=True,
            )
            self._reached = True
            if not response.is_redirect:
                return _checked(response)
            response.close()
            before, target = target, self._redirected(target, response.headers["Location"])
            if urlsplit(before)[:2] != urlsplit(target)[:2]:
                close_connections(session)  # another one will be opened, and the budget is one
            if response.status_code not in (307, 308):
                method, form = "GET", None
        raise ArchiveError(f"{self.host} redirects in a circle")

    def _redirected(self, target: str, location: str) -> str:
        """Return the address of a redirect; ArchiveError if it is on another host, or none."""
        try:
            there = urlsplit(urljoin(target, location))
            base, port = urlsplit(self.base), there.port
        except ValueError as error:
            raise ArchiveError(f"{self.host} redirects to {location!r}: {error}") from error
        if there.scheme not in _PORTS:
            raise ArchiveError(f"{self.host} redirects to {there.geturl()[:200]}: refused, it is not HTTP")
        if not _same_host(base.hostname, there.hostname):
            raise ArchiveError(f"{self.host} redirects to another host, {there.netloc}: refused")
        if base.scheme == "https" and there.scheme == "http" and port in (None, 80, base.port):
            # A service behind a proxy that ends TLS knows no better than to call itself http.
            netloc = there.netloc.removesuffix(":80") if base.port is None else f"{there.hostname}:{base.port}"
            there = there._replace(scheme="https", netloc=netloc)
        secured = there.scheme == "https" and base.scheme == "http"
        if not secured and (there.scheme, _port(there)) != (base.scheme, _port(base)):
            raise ArchiveError(
                f"{self.host} redirects to {there.scheme}, port {_port(there)}, of the same host, instead of "
                f"{base.scheme}, port {_port(base)}: refused"
            )
        return there.geturl()


def _port(address: SplitResult) -> int:
    return address.port or _PORTS[address.scheme]


def _same_host(one: str | None, other: str | None) -> bool:
    return one == other or any({one, other} <= names for names in _ALIASES)


def _decoded(response: requests.Response) -> IO[bytes]:
    """Return the body as it is meant: some servers call a gzipped file a file sent in gzip, though none was asked for.

    Not as requests decodes it, which takes a stream that is cut short for whole.
    """
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise WrongAnswerError(f"an answer is encoded as {encoding!r}, which was not asked for")
    raw = cast("IO[bytes]", response.raw)
    return raw if encoding == "identity" else cast("IO[bytes]", gzip.GzipFile(fileobj=raw))


def _checked(response: requests.Response) -> requests.Response:
    status = response.status_code
    if status == 200:
        return response
    body = b""
    with response, contextlib.suppress(requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        body = response.raw.read(_WORDS, decode_content=True)
    said = text_of(body)
    refused = b"QUERY_STATUS" in body  # some services send their words on a query with 500
    words = f"status {status} {response.reason or ''}".strip() + (f": {said}" if said else "")
    wait = _retry_after(response.headers.get("Retry-After", ""))
    if status in _RETRIED and not refused:
        raise TransientError(words, wait, status)
    place = f"{urlsplit(response.url).netloc}{urlsplit(response.url).path} answered {words}"
    if status in _BARRED:
        raise ArchiveError(place)
    raise RefusedError(place, status)


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
