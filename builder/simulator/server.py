"""The archive on this machine: the services of `builder.simulator.services` over loopback HTTP, with faults on demand.

For tests, for benchmarks, and for trying the package out without the network.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import socket
import struct
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from builder.model.errors import SettingError
from builder.simulator.faults import Faults
from builder.simulator.habits import check_habits
from builder.simulator.replay import Replay
from builder.simulator.reply import Reply, error_page, error_text
from builder.simulator.services import Holdings, Services

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_MAX_FORM_BYTES = 16 * 2**20  # far more than any query or package set
_PIECE_BYTES = 2**18
_TAR_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it was answered.

    Attributes
    ----------
    time : float
        When the answer began, seconds since the epoch.
    service : str
        See `builder.simulator.services.Reply`.
    detections : tuple of str
        What was asked for, where the service takes detections.
    status : int
        HTTP status; 0 if the connection was reset before there was one.
    fault : str or None
        The kind of `builder.simulator.faults.TRANSIENT` that it met.
    size : int
        Bytes of the body that are sent.
    connections : int
        TCP connections open at that time, its own among them.
    """

    time: float
    service: str
    detections: tuple[str, ...]
    status: int
    fault: str | None
    size: int
    connections: int


class ArchiveServer:
    """The archive of some holdings; it runs in the background while it is used as a context manager.

    Parameters
    ----------
    port : int
        0 takes a free one.
    faults : Faults, optional
        None for a server that never fails.
    max_rows : int, optional
        Row limit of the catalog; a longer answer is cut there and says OVERFLOW.
    bytes_per_second : float, optional
        Limit on the bodies of all connections together.
    latency : float
        Seconds from here to there and back: for a connection, and again for each request.
    error_status : int
        Status of the answer to a bad query; the real service may use 200 or 400.
    habits : iterable of str
        How the services answer where it is not known how the real ones do: `builder.simulator.habits.HABITS`.
    log : Path, optional
        A file to which each request is added as a line of JSON.

    Attributes
    ----------
    url : str
        Base URL, the counterpart of ``https://cda.cfa.harvard.edu``.
    log : list of Request
        All requests so far.
    max_connections : int
        The most TCP connections that were open at the same time.

    Raises
    ------
    SettingError
        If the port cannot be used.

    Examples
    --------
    ::

        with ArchiveServer(MirrorHoldings(folder), faults=Faults(seed=1, transient={"503": 0.1})) as server:
            requests.get(f"{server.url}/csccli/retrieve", {"version": "cur", "packageset": "4938.0.43/arf/b"})
    """

    def __init__(
        self,
        holdings: Holdings | Replay,
        *,
        port: int = 0,
        faults: Faults | None = None,
        max_rows: int | None = None,
        bytes_per_second: float | None = None,
        latency: float = 0.0,
        error_status: int = HTTPStatus.OK,
        habits: Iterable[str] = (),
        log: Path | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.habits = check_habits(habits)
        self.services: Services | Replay
        if isinstance(holdings, Replay):
            self.services = holdings
        else:
            self.services = Services(holdings, self.faults, max_rows, error_status, self.habits)
        self.stopping = threading.Event()
        self.log: list[Request] = []
        self.max_connections = 0
        self._log_path = log
        self._bytes_per_second = bytes_per_second
        self.latency = latency
        self._paid_until = 0.0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._attempts: Counter[str] = Counter()
        self._deferred: dict[str, tuple[str, float]] = {}
        try:
            self._http = _HTTPServer(self, port)
        except (OSError, OverflowError) as error:
            raise SettingError(f"cannot listen on port {port} of {_HOST}: {error}; choose another") from error
        self.url = f"http://{_HOST}:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._close()

    def serve_forever(self) -> None:
        """Answer requests until interrupted; KeyboardInterrupt passes through."""
        try:
            self._http.serve_forever()
        finally:
            self._close()

    def _close(self) -> None:
        self.stopping.set()
        self._http.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:  # wakes the threads that wait for a next request
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                logger.debug("a connection was closed already")

    def connected(self, connection: socket.socket) -> None:
        """Count a new connection."""
        with self._lock:
            self._connections.add(connection)
            self.max_connections = max(self.max_connections, self._open())

    def disconnected(self, connection: socket.socket) -> None:
        """Count it no longer."""
        with self._lock:
            self._connections.discard(connection)

    def _open(self) -> int:
        return sum(map(_is_open, self._connections))

    def answer(self, path: str, parameters: dict[str, str], verb: str, length: int) -> tuple[Reply, str | None, float]:
        """Find the proper answer to a request, the fault that it meets, and a number in [0, 1) that shapes it."""
        reply = self.services.reply(path, parameters, verb, length)
        if reply.service == "results":
            # Its faults are those of the query: a client that repeats both still succeeds at the third attempt.
            with self._lock:
                return reply, *self._deferred.pop(path, (None, 0.0))
        key = f"{path} {sorted(parameters.items())}"
        with self._lock:
            attempt = self._attempts[key]
            self._attempts[key] += 1
        fault, shape = self.faults.transient_of(key, attempt), self.faults.uniform("shape", key, attempt)
        if fault is not None and reply.location and fault not in ("429", "503", "reset", "drip_headers", "continue"):
            with self._lock:  # a redirect has no body to be spoilt
                self._deferred[reply.location] = (fault, shape)
            fault = None
        return reply, fault, shape

    def record(self, reply: Reply, status: int, fault: str | None, size: int) -> None:
        """Log a request; before the answer leaves, so that who has the answer finds it in the log."""
        with self._lock:
            entry = Request(time.time(), reply.service, reply.detections, int(status), fault, size, self._open())
            self.log.append(entry)
            if self._log_path is not None:
                with self._log_path.open("a") as stream:
                    stream.write(json.dumps(dataclasses.asdict(entry)) + "\n")

    def pieces(self, body: bytes) -> list[bytes]:
        """Cut a body into the pieces that are sent: with limited bandwidth, a twentieth of a second's at most."""
        limit = self._bytes_per_second
        size = _PIECE_BYTES if limit is None else max(1, min(_PIECE_BYTES, int(limit / 20)))
        return [body[at : at + size] for at in range(0, len(body), size)]

    def pay(self, size: int) -> None:
        """Wait until the bandwidth allows so many bytes more."""
        if self._bytes_per_second is not None:
            with self._lock:
                self._paid_until = max(self._paid_until, time.monotonic()) + size / self._bytes_per_second
                until = self._paid_until
            self.stopping.wait(max(0.0, until - time.monotonic()))


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, archive: ArchiveServer, port: int) -> None:
        super().__init__((_HOST, port), _Handler)
        self.archive = archive

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            logger.debug("the client left: %s", error)
        else:
            logger.error("a request failed", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.archive.connected(self.connection)
        self.server.archive.stopping.wait(self.server.archive.latency)  # of the handshake

    def finish(self) -> None:
        self.server.archive.disconnected(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def do_HEAD(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, POST")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._serve("")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_FORM_BYTES:
            self.close_connection = True
            self.send_error(HTTPStatus.LENGTH_REQUIRED if not length else HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        self._serve(self.rfile.read(int(length)).decode("utf-8", "replace"))

    def _serve(self, form: str) -> None:
        self.server.archive.stopping.wait(self.server.archive.latency)
        address = urlsplit(self.path)
        parameters = dict(parse_qsl(f"{address.query}&{form}", keep_blank_values=True))
        reply, fault, shape = self.server.archive.answer(address.path, parameters, self.command, len(self.path))
        retry_after = None
        if fault in ("429", "503"):
            reply = dataclasses.replace(reply, body=b"Try again later.\n", status=int(fault), location="")
            if fault == "429" or shape < 0.5:
                seconds, dated = self.server.archive.faults.retry_after, int(shape * 1000) % 2
                retry_after = formatdate(time.time() + seconds, usegmt=True) if dated else str(seconds)
        elif fault == "html":
            reply = dataclasses.replace(error_page(reply.service, "Something went wrong."), detections=reply.detections)
        elif fault == "error_text":
            reply = error_text(reply.service, "something went wrong", reply.detections)
        elif fault == "empty":
            reply = dataclasses.replace(reply, body=b"")
        elif fault == "truncate_silent" and reply.content_type == "application/x-tar":
            reply = dataclasses.replace(reply, body=_cut_tar(reply.body, shape))
        elif fault == "truncate_silent":
            fault = "truncate"
        self._send(reply, fault, shape, retry_after)

    def _send(self, reply: Reply, fault: str | None, shape: float, retry_after: str | None) -> None:
        archive, size = self.server.archive, len(reply.body)
        if reply.slow:
            archive.record(reply, 0, fault, 0)
            archive.stopping.wait(archive.faults.slow_seconds)
            self.close_connection = True
            return
        if fault in ("drip_headers", "continue") or (fault == "reset" and (shape < 0.5 or not size)):
            archive.record(reply, 0, fault, 0)
            if fault == "drip_headers":
                self._drip(b"HTTP/1.1 200 OK\r\nX-Drip: " + b"." * 10_000)
            elif fault == "continue":
                self._continue()
            self._reset()
            return
        part = int(size * (0.1 + 0.8 * shape)) if fault in ("reset", "stall", "truncate", "drip") else size
        archive.record(reply, reply.status, fault, size if fault == "stall" else part)
        chunked = "chunked" in archive.habits and fault is None
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        if "unframed" in archive.habits and fault is None and not reply.location:
            self.close_connection = True
        elif chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(size))
        if reply.location:
            self.send_header("Location", self._location(reply.location))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self._write(reply.body[:part], chunked)
        if fault == "reset":
            self._reset()
        elif fault == "truncate":
            self.close_connection = True
        elif fault == "stall":
            archive.stopping.wait(archive.faults.stall_seconds)
            self._write(reply.body[part:])
        elif fault == "drip":
            self._drip(reply.body[part:])
            self._reset()

    def _location(self, path: str) -> str:
        archive = self.server.archive
        if "relative" in archive.habits:
            return path
        return (archive.url.replace(_HOST, "localhost") if "alias" in archive.habits else archive.url) + path

    def _drip(self, body: bytes) -> None:
        """Send a byte now and then."""
        end = time.monotonic() + self.server.archive.faults.stall_seconds
        for byte in body:
            if self.server.archive.stopping.wait(0.1) or time.monotonic() > end:
                return
            self.wfile.write(bytes([byte]))

    def _continue(self) -> None:
        end = time.monotonic() + self.server.archive.faults.stall_seconds
        while not self.server.archive.stopping.is_set() and time.monotonic() < end:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    def _write(self, body: bytes, chunked: bool = False) -> None:
        for piece in self.server.archive.pieces(body):
            self.server.archive.pay(len(piece))
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        # Lingering for no time sends RST; the descriptor must be closed here, as the socket object has other users.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True


def _is_open(connection: socket.socket) -> bool:
    """Tell whether the client still has the connection; its thread may not have noticed yet that it has not."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _cut_tar(body: bytes, shape: float) -> bytes:
    """Cut a tar short, within a member or, which is harder to notice, where one ends."""
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        ends = [member.offset_data + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK for member in tar]
    if shape < 0.5 and ends:
        return body[: ends[int(2 * shape * len(ends))]]
    return body[: int((ends[-1] if ends else len(body)) * shape)]
