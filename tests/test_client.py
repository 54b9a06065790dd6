"""The HTTP client: when it asks again, how long it waits, and what it never accepts."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import gzip
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from builder.archive import connections as client_module
from builder.archive.answers import check_listing, check_votable, judge_tar
from builder.archive.catalog import from_rows, write_votable
from builder.archive.connections import Slots, one_session
from builder.archive.csc import HttpArchive
from builder.archive.http import Client, Patience, Request
from builder.archive.interface import forget
from builder.archive.packages import Package
from builder.archive.products import MAX_DETECTION_BYTES, MAX_MEMBER_BYTES, members
from builder.archive.tap import _middle
from builder.model.errors import ArchiveError, CatalogError, RefusedError, StoreError, TransientError, UnavailableError
from builder.model.ids import DetectionId
from builder.model.settings import Settings
from builder.prepare import prepare
from builder.simulator.faults import Faults
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from tests.fits_files import stable
from tests.tars import tar_bytes
from tests.waiting import stays_locked, wait_for

Answer = tuple[int, dict[str, str], bytes]
Answering = Callable[[str, str, int], Answer]
"""Gives the answer to a path and a form, and the number of the request, from 1."""


class Script:
    """A server that answers as a function says, and notes what it was asked."""

    def __init__(self, answer: Answering) -> None:
        script = self
        self.asked: list[tuple[str, str, str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode() or query
                script.asked.append((self.command, path, form, self.headers["User-Agent"]))
                status, headers, body = answer(path, form, len(script.asked))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, *arguments: object) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Pass it over: a client may leave amid an answer."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


Serve = Callable[[Answering], Script]


@pytest.fixture
def serve() -> Iterator[Serve]:
    scripts: list[Script] = []

    def start(answer: Answering) -> Script:
        scripts.append(Script(answer))
        return scripts[-1]

    yield start
    for script in scripts:
        script.server.shutdown()
        script.server.server_close()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def client(self, url: str, **patience: float) -> Client:
        return Client(url, Patience(**patience), self.sleep, lambda: self.now)


def anything(path: Path, framed: bool) -> None:
    """Take any answer."""


def get(client: Client, url: str, path: Path, max_bytes: int = 1000, verb: str = "GET") -> bytes:
    with requests.Session() as session:
        client.download(session, Request(url, anything, max_bytes, verb), path)
    return path.read_bytes()


def test_pauses_grow_and_are_jittered_until_the_answer_is_right(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (503, {}, b"") if number <= 5 else (200, {}, b"fine"))
    clock = Clock()
    assert get(clock.client(server.url), server.url + "/x?a=1&b=2", tmp_path / "file", verb="POST") == b"fine"
    assert len(clock.pauses) == 5
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(clock.pauses))
    assert server.asked[0][:3] == ("POST", "/x", "a=1&b=2")
    assert server.asked[0][3].startswith("chandra-spectra/")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_in_both_forms(form: str, serve: Serve, tmp_path: Path) -> None:
    value = "30" if form == "seconds" else email.utils.formatdate(time.time() + 30, usegmt=True)
    server = serve(lambda path, f, number: (429, {"Retry-After": value}, b"") if number == 1 else (200, {}, b"fine"))
    clock = Clock()
    get(clock.client(server.url), server.url, tmp_path / "file")
    least = 30 if form == "seconds" else 1  # the date has no fractions, and the answer may take its time
    assert least <= clock.pauses[0] <= 31


class Answers(requests.Session):
    """A session without a network: gives what it is told to, and notes what it was asked."""

    def __init__(self, *answers: Answer | Exception) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[str, str, object]] = []

    def request(self, method: str, url: str, *, data: Any, **rest: Any) -> requests.Response:  # type: ignore[override]
        self.asked.append((method, url, data))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code, response.headers, response.url = answer[0], CaseInsensitiveDict(answer[1]), url
        response.raw = urllib3.HTTPResponse(io.BytesIO(answer[2]), preload_content=False)
        return response


def ask(tmp_path: Path, base: str, *answers: Answer | Exception) -> Answers:
    """What is asked when a form is sent to a base URL."""
    session = Answers(*answers)
    Clock().client(base).download(session, Request(base + "/start?q=1", anything, 1000, "POST"), tmp_path / "file")
    return session


FINE: Answer = (200, {}, b"fine")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_be_over_soon_is_asked_again(status: int, tmp_path: Path) -> None:
    assert len(ask(tmp_path, "https://host", (status, {}, b""), FINE).asked) == 2


@pytest.mark.parametrize("status", [400, 404, 410, 414, 501])
def test_what_refuses_one_request_is_not_asked_again(status: int, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=str(status)):
        ask(tmp_path, "https://host", (status, {}, b"no"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 407, 451])
def test_what_refuses_this_client_ends_the_run(status: int, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=str(status)) as caught:
        ask(tmp_path, "https://host", (status, {}, b"no"))
    assert caught.type is ArchiveError


def test_an_untrusted_certificate_ends_the_run_and_another_failure_of_tls_does_not(tmp_path: Path) -> None:
    untrusted = requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    with pytest.raises(ArchiveError, match="certificate is not trusted"):
        ask(tmp_path, "https://host", untrusted, FINE)
    assert len(ask(tmp_path, "https://host", requests.exceptions.SSLError("EOF in handshake"), FINE).asked) == 2


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"], ids=["empty", "long"])
def test_a_host_that_cannot_be_one_is_not_asked_again(host: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no request can be sent there"):
        get(Clock().client(f"http://{host}"), f"http://{host}/x", tmp_path / "file")


@pytest.mark.parametrize(
    "after",
    ["9" * 400, "Wed, 21 Oct 99999999999 07:28:00 GMT", "soon", "-1", ""],
    ids=["inf", "year", "word", "negative", "empty"],
)
def test_whatever_retry_after_says_the_answer_is_waited_for_or_given_up(after: str, tmp_path: Path) -> None:
    with contextlib.suppress(UnavailableError):
        assert len(ask(tmp_path, "https://host", (503, {"Retry-After": after}, b""), FINE).asked) == 2


def test_it_gives_up_in_the_end_with_a_line_that_says_what_to_do(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (503, {}, b""))
    clock = Clock()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1.*503.*run the same command again"):
        get(clock.client(server.url, total=100), server.url, tmp_path / "file")
    assert clock.now <= 100
    assert len(clock.pauses) > 4


def test_a_host_that_was_never_reached_is_given_up_sooner(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(UnavailableError, match="gave up"):
        get(clock.client("http://127.0.0.1:9", first=20), "http://127.0.0.1:9/", tmp_path / "file")
    assert clock.now <= 20


def test_redirects_are_followed_as_get_but_never_to_another_host(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path == "/start":
            return 303, {"Location": "/result"}, b""
        if path == "/away":
            return 302, {"Location": "http://127.0.0.2:1/evil"}, b""
        if path == "/circle":
            return 302, {"Location": "/circle"}, b""
        return 200, {}, b"fine"

    server = serve(answer)
    client = Clock().client(server.url)
    assert get(client, server.url + "/start?q=1", tmp_path / "file", verb="POST") == b"fine"
    assert [entry[:3] for entry in server.asked] == [("POST", "/start", "q=1"), ("GET", "/result", "")]
    with pytest.raises(ArchiveError, match="another host"):
        get(client, server.url + "/away", tmp_path / "other")
    with pytest.raises(ArchiveError, match="circle"):
        get(client, server.url + "/circle", tmp_path / "other")


@pytest.mark.parametrize(
    ("base", "location", "refused"),
    [
        ("http://host", "https://host/x", False),
        ("http://host:81", "/x", False),
        ("https://host", "http://host/x", False),
        ("https://host", "http://host:80/x", False),
        ("https://host:81", "http://host:81/x", False),
        ("https://host", "http://host:81/x", True),
        ("https://cda.cfa.harvard.edu", "http://cda.harvard.edu/x", False),
        ("https://cda.harvard.edu", "https://cda.cfa.harvard.edu/x", False),
        ("https://host", "https://other/x", True),
        ("https://host", "//other/x", True),
        ("http://host", "http://host:81/x", True),
        ("http://host", "ftp://host/x", True),
        ("http://host", "http://[::1", True),
    ],
)
def test_a_redirect_may_lead_to_the_same_host_and_to_its_https(
    base: str, location: str, refused: bool, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match="redirects to") if refused else contextlib.nullcontext():
        assert len(ask(tmp_path, base, (302, {"Location": location}, b""), FINE).asked) == 2


@pytest.mark.parametrize(
    ("status", "second"),
    [
        (301, ("GET", None)),
        (302, ("GET", None)),
        (303, ("GET", None)),
        (307, ("POST", [("q", "1")])),
        (308, ("POST", [("q", "1")])),
    ],
)
def test_a_form_is_sent_again_only_where_the_redirect_says_so(
    status: int, second: tuple[str, object], tmp_path: Path
) -> None:
    method, url, data = ask(tmp_path, "https://host", (status, {"Location": "/x"}, b""), FINE).asked[1]
    assert (method, data) == second
    assert url == "https://host/x"


PACKED = gzip.compress(b"fine" * 100, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "wrong"),
    [
        ("gzip", PACKED[:-20]),
        ("gzip", PACKED[:-1]),
        ("gzip", PACKED[:9]),
        ("gzip", b"fine"),
        ("br", b"fine"),
        ("x-gzip", PACKED[:-8] + bytes(8)),
    ],
    ids=["cut", "cut at the end", "cut at the start", "none", "another", "checksum"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_an_answer_sent_in_gzip_is_taken_only_if_the_gzip_is_whole(
    chunked: bool, encoding: str, wrong: bytes, serve: Serve, tmp_path: Path
) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        body = wrong if number == 1 else PACKED
        headers = {"Content-Encoding": encoding if number == 1 else "gzip"}
        if not chunked:
            return 200, headers, body
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:], b""))
        return 200, headers | {"Content-Length": "", "Transfer-Encoding": "chunked"}, body

    server = serve(answer)
    assert get(Clock().client(server.url), server.url, tmp_path / "file") == b"fine" * 100
    assert len(server.asked) == 2


def test_an_answer_that_inflates_beyond_the_limit_is_refused(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(10**6))))
    with pytest.raises(RefusedError, match="more than 1000 bytes"):
        get(Clock().client(server.url), server.url, tmp_path / "file")


@pytest.mark.parametrize("length", ["5", "9" * 5000, "3, 4"], ids=["more", "much more", "two"])
def test_an_answer_of_another_length_than_announced_is_asked_for_again(
    length: str, serve: Serve, tmp_path: Path
) -> None:
    server = serve(
        lambda path, form, number: (
            (200, {"Content-Length": length, "Connection": "close"}, b"fine") if number == 1 else FINE
        )
    )
    assert get(Clock().client(server.url), server.url, tmp_path / "file") == b"fine"
    assert len(server.asked) == 2


def test_the_connection_of_a_session_is_closed_with_it(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: FINE)
    with one_session() as session:
        session.get(server.url, timeout=60)
        adapter = session.adapters["http://"]
        assert isinstance(adapter, requests.adapters.HTTPAdapter)
        pool = adapter.poolmanager.connection_from_url(server.url)
        assert pool.pool is not None
    assert pool.pool is None


def test_an_answer_larger_than_the_limit_is_refused_and_nothing_stays(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"x" * 5000))
    with pytest.raises(RefusedError, match="more than 1000 bytes"):
        get(Clock().client(server.url), server.url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_fails_its_check_is_never_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"<html>" if number == 1 else b"fine"))

    def check(path: Path, framed: bool) -> None:
        if path.read_bytes().startswith(b"<"):
            assert not (tmp_path / "file").exists()
            raise TransientError("html")

    clock = Clock()
    with requests.Session() as session:
        clock.client(server.url).download(session, Request(server.url, check, 100), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"fine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_no_reason_to_ask_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"fine"))
    with pytest.raises(StoreError, match="cannot write"):
        get(Clock().client(server.url), server.url, tmp_path / "missing" / "file")


def test_a_slot_is_taken_over_with_what_a_killed_run_left_removed(tmp_path: Path) -> None:
    (tmp_path / "slot-0").mkdir()
    (tmp_path / "slot-0" / "0.tar.partial").write_bytes(b"x")
    with Slots(tmp_path, 1).take() as (folder, _):
        assert list(folder.iterdir()) == []
        (folder / "more").write_bytes(b"x")
    assert list((tmp_path / "slot-0").iterdir()) == []


def test_no_more_slots_are_taken_than_there_are(tmp_path: Path) -> None:
    held, most, lock = 0, 0, threading.Lock()
    deadline = time.monotonic() + 30

    def work() -> None:
        nonlocal held, most
        for _ in range(20):
            with Slots(tmp_path, 3).take():
                with lock:
                    held += 1
                    most = max(most, held)
                while most < 3 and time.monotonic() < deadline:
                    time.sleep(0.001)
                with lock:
                    held -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def test_who_waits_for_a_slot_is_not_overtaken_by_who_gives_one_back(tmp_path: Path) -> None:
    order = []

    def wait() -> None:
        with Slots(tmp_path, 1).take():
            order.append("waited")

    waiting = threading.Thread(target=wait)
    with Slots(tmp_path, 1).take():
        waiting.start()
        wait_for(lambda: stays_locked(tmp_path / "next.lock"))
    with Slots(tmp_path, 1).take():
        order.append("came back")
    waiting.join()
    assert order == ["waited", "came back"]


def test_however_many_threads_wait_only_one_looks_for_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: set[int] = set()

    class Lock(FileLock):
        def acquire(self, *arguments: Any, **more: Any) -> Any:
            if Path(self.lock_file).name.startswith("slot"):
                tried.add(threading.get_ident())
            return super().acquire(*arguments, **more)

    def work() -> None:
        with Slots(tmp_path, 1).take():
            pass

    with Slots(tmp_path, 1).take():
        monkeypatch.setattr(client_module, "FileLock", Lock)
        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_for(lambda: tried)
        time.sleep(0.1)  # in which the others might try, too
        assert len(tried) == 1
    for thread in threads:
        thread.join()


def test_a_connection_is_kept_from_package_to_package_unless_somebody_waits(tmp_path: Path) -> None:
    sessions = []

    def take() -> None:
        with Slots(tmp_path, 1).take() as (_, session):
            sessions.append(session)

    for _ in range(3):
        take()
    assert len({*sessions}) == 1
    waiting = threading.Thread(target=take)
    with Slots(tmp_path, 1).take() as (_, session):
        assert session is sessions[0]
        waiting.start()
        wait_for(lambda: stays_locked(tmp_path / "next.lock"))
    waiting.join()
    assert sessions[-1] is not sessions[0]


def test_a_folder_that_is_removed_while_a_connection_is_kept_stays_away(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", 1)
    with slots.take():
        pass
    assert slots._kept[slots.folder], "it is kept"
    shutil.rmtree(slots.folder)
    wait_for(lambda: not slots._kept[slots.folder])
    assert not slots.folder.exists()


def test_a_kept_connection_is_closed_when_it_is_idle_or_beyond_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Slots(tmp_path, 2).take() as (_, first), Slots(tmp_path, 2).take() as (folder, second):
        assert folder.name == "slot-1"
    with Slots(tmp_path, 1).take() as (folder, session):
        assert folder.name == "slot-0" and session is first is not second
        assert not stays_locked(tmp_path / "slot-1.lock")
    monkeypatch.setattr(client_module, "_IDLE", 0.01)
    with Slots(tmp_path, 1).take():
        pass
    wait_for(lambda: not stays_locked(tmp_path / "slot-0.lock"))


def tar_of(**files: bytes) -> bytes:
    return tar_bytes(*((f"package/{name}", data) for name, data in files.items()))


NAME = "acisf00001_000N001_r0001_{}3.fits.gz"
PRODUCT = gzip.compress(b"SIMPLE  =", mtime=0)
GOOD = {NAME.format(kind): PRODUCT for kind in ("pha", "arf", "rmf")}
PACKAGE = Package(0, (DetectionId(1, 0, 1),))


def open_archive(server: Script, tmp_path: Path, **patience: float) -> HttpArchive:
    return HttpArchive(server.url, "rel2.1", tmp_path, Clock().client(server.url, **patience))


def fetched(
    server: Script, tmp_path: Path, package: Package = PACKAGE, **patience: float
) -> tuple[list[str], dict[DetectionId, str]]:
    with open_archive(server, tmp_path, **patience).fetch(package) as result:
        return [part.name for part in result.parts], result.unserved


def services_asked(server: Script) -> list[str]:
    return [path.rpartition("/")[2] for _, path, _, _ in server.asked]


def listing(*names: str) -> Answer:
    return 200, {}, json.dumps([{"filename": name} for name in names]).encode()


def test_a_package_asks_for_the_three_products_of_each_detection(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, tar_of(**GOOD)))
    assert fetched(server, tmp_path) == (["0.tar"], {})
    (asked,) = server.asked
    assert asked[1] == "/csccli/retrieve"
    assert asked[0] == "GET"
    assert "1.0.1%2Fspectrum%2Fb%2C1.0.1%2Frmf%2Fb%2C1.0.1%2Farf%2Fb" in asked[2]
    assert "version=rel2.1" in asked[2]


def test_files_of_strangers_make_the_answer_a_wrong_one(serve: Serve, tmp_path: Path) -> None:
    strange = {NAME.replace("r0001", "r0002").format("pha"): b"\x1f\x8b"}
    server = serve(lambda path, form, number: (200, {}, tar_of(**strange, **GOOD) if number < 3 else tar_of(**GOOD)))
    assert fetched(server, tmp_path) == (["0.tar"], {})
    assert len(server.asked) == 3


def test_more_members_than_were_asked_for_are_refused(serve: Serve, tmp_path: Path) -> None:
    many = tar_of(**{f"note{number}.txt": b"" for number in range(50)})
    server = serve(lambda path, form, number: (200, {}, many if path.endswith("retrieve") else b"[]"))
    _, unserved = fetched(server, tmp_path)
    assert "50 files" not in unserved.get(PACKAGE.detections[0], "")
    assert len([entry for entry in server.asked if entry[1].endswith("retrieve")]) == 1


@pytest.mark.parametrize("more", [0, 1], ids=["the largest", "larger"])
def test_a_member_too_large_is_refused_before_anything_reads_it(more: int, serve: Serve, tmp_path: Path) -> None:
    """Zeros, which take no time to send where the answer is packed."""
    files = {**GOOD, NAME.format("pha"): b"SIMPLE  =".ljust(MAX_MEMBER_BYTES + more, b"\0")}
    packed = gzip.compress(tar_of(**files), 1)

    def answer(path: str, form: str, number: int) -> Answer:
        return (200, {"Content-Encoding": "gzip"}, packed) if path.endswith("/retrieve") else (404, {}, b"gone")

    server = serve(answer)
    parts, unserved = fetched(server, tmp_path)
    assert parts == ([] if more else ["0.tar"])
    assert unserved.keys() == (set(PACKAGE.detections) if more else set())
    assert services_asked(server) == (["retrieve", "browse", "browse"] if more else ["retrieve"])


def test_an_answer_larger_than_its_detections_can_be_is_refused(serve: Serve, tmp_path: Path) -> None:
    """Before it is on the disk: 50 detections could take 19 GB."""
    large = gzip.compress(bytes(MAX_DETECTION_BYTES + 1), 1)
    encoded = {"Content-Encoding": "gzip"}
    server = serve(lambda path, form, number: (200, encoded, large) if path.endswith("/retrieve") else (200, {}, b"[]"))
    assert fetched(server, tmp_path) == ([], {})
    assert services_asked(server) == ["retrieve", "browse", "browse"]


def test_names_in_a_listing_never_become_paths(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            evil = [{"filename": "../../../" + NAME.format("pha")}, {"filename": "../../evil"}, {"other": 1}]
            evil += [{"filename": r"\ud800/" + NAME.format("arf")}]
            return 200, {}, str(evil).replace("'", '"').encode()
        return (200, {}, PRODUCT) if path.endswith("retrieveFile") else (200, {}, tar_of(note=b""))

    server = serve(answer)
    parts, _ = fetched(server, tmp_path / "cache")
    assert NAME.format("pha") in parts
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_package_that_is_refused_is_fetched_file_by_file(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            return 200, {}, str([{"filename": name} for name in GOOD]).replace("'", '"').encode()
        return (200, {}, PRODUCT) if path.endswith("retrieveFile") else (414, {}, b"too long")

    parts, unserved = fetched(serve(answer), tmp_path)
    assert (sorted(parts), unserved) == (sorted(GOOD), {})


def test_one_package_that_is_never_served_is_a_rejection_and_does_not_stop_the_run(
    serve: Serve, tmp_path: Path
) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            return 200, {}, str([{"filename": name} for name in GOOD]).replace("'", '"').encode()
        return 503, {}, b""

    parts, unserved = fetched(serve(answer), tmp_path, total=30)
    assert parts == []
    assert "503" in unserved[PACKAGE.detections[0]]


def test_a_long_pause_is_told_and_a_short_one_is_not(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pauses = {1: "2", 2: "60"}
    server = serve(lambda path, form, n: (503, {"Retry-After": pauses[n]}, b"") if n in pauses else (200, {}, b"fine"))
    get(Clock().client(server.url), server.url, tmp_path / "file")
    (told,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert re.fullmatch(r"127\.0\.0\.1:\d+: .*503.*; asking again in 60 s", told)


def test_an_empty_tar_lacks_everything_and_is_no_fault_of_the_line(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        return (200, {}, bytes(10240)) if "retrieve" in path else (200, {}, b"[]")

    server = serve(answer)
    parts, unserved = fetched(server, tmp_path)
    assert len(parts) == 2  # empty, both
    assert services_asked(server) == ["retrieve", "retrieve", "browse", "browse"]  # without a band, and with one
    assert not unserved  # it lists none, so the files are missing


def test_a_service_that_answers_nothing_at_all_stops_the_run(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        fetched(serve(lambda path, form, number: (503, {}, b"")), tmp_path, total=30)
    with pytest.raises(ArchiveError, match="403"):
        fetched(serve(lambda path, form, number: (403, {}, b"")), tmp_path)


def test_an_archive_that_refuses_everything_is_out_of_order_and_no_reason_to_reject(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda path, form, number: (404, {}, b"gone"))
    with pytest.raises(UnavailableError, match=r"refuses whatever.*404.*run the same command again"):
        fetched(server, tmp_path, Package(0, tuple(DetectionId(1, 0, region) for region in range(50))))
    few = services_asked(server)[: services_asked(server).index("browse") + 10]
    assert few.count("browse") <= 2 * 3, "three detections are asked for in both ways, and then only witnesses"


@pytest.mark.parametrize("number", [1, 3])
def test_a_few_detections_may_be_all_that_is_refused(number: int, serve: Serve, tmp_path: Path) -> None:
    package = Package(0, tuple(DetectionId(1, 0, region) for region in range(number)))
    _, unserved = fetched(serve(lambda path, form, number: (404, {}, b"gone")), tmp_path, package)
    assert unserved.keys() == set(package.detections)


@pytest.mark.parametrize("served", ["retrieve", "browse"])
def test_many_may_be_refused_where_one_is_served(served: str, serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith(served) and set(re.findall(r"1\.0\.\d", form)) == {"1.0.1"}:
            return (200, {}, tar_of(**GOOD)) if served == "retrieve" else listing(*GOOD)
        return 404, {}, b"gone"

    package = Package(0, tuple(DetectionId(1, 0, region) for region in range(1, 9)))
    _, unserved = fetched(serve(answer), tmp_path, package)
    assert unserved.keys() == set(package.detections[1 if served == "retrieve" else 0 :])
    assert all("404" in words and "gone" in words for words in unserved.values())


def test_each_detection_has_an_address_of_its_own_where_its_files_can_be_asked_for(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda path, form, number: (404, {}, b"gone"))
    package = Package(0, (DetectionId(1, 0, 1), DetectionId(1, 0, 2)))
    with open_archive(server, tmp_path).fetch(package) as result:
        assert list(result.urls) == list(package.detections)
        assert "packageset=1.0.2/spectrum/b,1.0.2/rmf/b,1.0.2/arf/b" in result.urls[package.detections[1]]
        assert "1.0.1" not in result.urls[package.detections[1]]


def test_what_a_package_lacks_is_in_the_next(serve: Serve, tmp_path: Path) -> None:
    some = {name: GOOD[name] for name in list(GOOD)[:2]}
    server = serve(lambda path, form, number: (200, {}, tar_of(**some) if number == 1 else tar_of(**GOOD)))
    assert fetched(server, tmp_path) == (["0.tar", "1.tar"], {})
    assert services_asked(server) == ["retrieve", "retrieve"]


def test_of_the_files_that_are_listed_only_those_are_fetched_that_no_package_held(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("/browse"):
            return listing(*GOOD)
        return (200, {}, PRODUCT) if path.endswith("File") else (200, {}, tar_of(**some))

    some = {name: GOOD[name] for name in list(GOOD)[:2]}
    server = serve(answer)
    fetched(server, tmp_path)
    assert services_asked(server) == ["retrieve", "retrieve", "browse", "retrieveFile"]
    assert list(GOOD)[2] in server.asked[-1][2]


@pytest.mark.parametrize("lacking", ["e1", "e2"])
def test_a_cycle_that_lacks_a_file_is_asked_for_again_though_the_other_is_whole(
    lacking: str, serve: Serve, tmp_path: Path
) -> None:
    both = {name.replace("_r0", f"_{cycle}_r0"): data for cycle in ("e1", "e2") for name, data in GOOD.items()}
    some = {name: data for name, data in both.items() if lacking not in name or "pha" in name}
    server = serve(lambda path, form, number: (200, {}, tar_of(**some) if number == 1 else tar_of(**both)))
    assert fetched(server, tmp_path) == (["0.tar", "1.tar"], {})


@pytest.mark.parametrize(
    "wrong",
    [b"[" * 100_000, b"[" + b"9" * 5000 + b"]", b"\xff", b"{}", b"[1]", b""],
    ids=["deep", "large", "no text", "no list", "no entries", "empty"],
)
def test_a_listing_that_is_none_is_asked_for_again(wrong: bytes, serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("/browse"):
            return (200, {}, wrong) if number < 4 else listing()
        return 200, {}, tar_of(note=b"")

    server = serve(answer)
    fetched(server, tmp_path)
    assert services_asked(server) == ["retrieve", "retrieve", *["browse"] * 3]


# The catalog

VOTABLE = write_votable([])


def test_an_answer_without_its_end_is_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    cut = VOTABLE[: VOTABLE.index(b"</RESOURCE>")]
    server = serve(lambda path, form, number: (200, {}, cut if number == 1 else VOTABLE))
    assert (
        open_archive(server, tmp_path).service.download(Request(server.url, check_votable, 10**6)).read_bytes()
        == VOTABLE
    )
    assert len(server.asked) == 2


def test_answers_have_names_of_their_own_and_none_is_left_once_it_is_read(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, VOTABLE))
    service = open_archive(server, tmp_path).service
    request = Request(server.url, check_votable, 10**6)
    assert service.download(request) != service.download(request)
    first, second = sorted(tmp_path.glob("*.vot"))
    os.utime(first, (0, 0))  # of a run that was killed long ago; the other may be another run's
    with service._answer("SELECT", forget):
        pass
    assert list(tmp_path.glob("*.vot")) == [second]


COUNT_OF_FOUR = b"""<VOTABLE><RESOURCE type="results"><INFO name="QUERY_STATUS" value="OK"/><TABLE>
<FIELD name="n" datatype="long"/><DATA><TABLEDATA><TR><TD>4</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"""


def test_a_catalog_that_does_not_add_up_to_its_own_count_even_in_parts_builds_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    rows = [{**SimulatedArchive(1).rows[0], "obsid": obsid} for obsid in (1, 2, 3)]

    def answer(path: str, form: str, number: int) -> Answer:
        first, last = re.findall(r"BETWEEN\+(\d+)\+AND\+(\d+)", form)[0] if "BETWEEN" in form else (0, 9)
        there = [row for row in rows if int(first) <= int(str(row["obsid"])) <= int(last)]
        return 200, {}, COUNT_OF_FOUR if "COUNT" in form else write_votable(there)

    with pytest.raises(CatalogError, match="counts 4 rows but answered 3"):
        prepare(tmp_path / "out", Settings(serve(answer).url), cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


@stable(100)
@given(st.lists(st.integers(0, 20), max_size=30), st.integers(0, 20), st.integers(1, 20))
def test_a_range_is_divided_into_two_that_are_both_smaller(obsids: list[int], first: int, more: int) -> None:
    table = from_rows({"obsid": obsid} for obsid in obsids)
    assert first <= _middle(table, first, first + more) < first + more


# Tars


def tar_with(form: int, headers: dict[str, str]) -> bytes:
    """A tar of one file with a long name and extended headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        member = tarfile.TarInfo("package/" * 20 + NAME.format("pha"))
        member.pax_headers, member.size = headers, 20
        tar.addfile(member, io.BytesIO(b"1\n0\n5\n" + b"x" * 14))
    return buffer.getvalue()


SPARSE = {"GNU.sparse.map": "0,1,5,2"}


@functools.cache
def tars() -> list[bytes]:
    """A tar in each form of header: plain, with long names, with the kinds of sparse files, and with names of names."""
    sparse = [{}, SPARSE, {"GNU.sparse.map": "a,b"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}]
    found = [tar_with(form, headers) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT) for headers in sparse]
    name = tarfile.TarInfo("name")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1
    return [tar_of(**GOOD), *found, (name.tobuf(tarfile.GNU_FORMAT) + b"x".ljust(512, b"\0")) * 2000]


@pytest.mark.parametrize(("headers", "number"), [({}, 1), (SPARSE, 0)], ids=["plain", "sparse"])
def test_a_sparse_file_is_no_product(headers: dict[str, str], number: int, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_with(tarfile.PAX_FORMAT, headers))
    contents = judge_tar(tmp_path / "a.tar", True, {DetectionId(1, 0, 1)}, 6, 10**6)
    assert len(contents.good | contents.damaged) == number
    assert len(list(members(tmp_path / "a.tar"))) == number


@stable(300)
@given(
    st.sampled_from(range(len(tars()))), st.integers(0, 19), st.integers(0, 511), st.binary(max_size=12), st.booleans()
)
def test_a_damaged_tar_is_an_error_of_the_archive_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, tar: int, block: int, at: int, noise: bytes, summed: bool
) -> None:
    content = bytearray(tars()[tar])
    at += 512 * block
    content[at : at + len(noise)] = noise
    header = content[512 * block : 512 * (block + 1)]
    if summed:  # or tarfile looks no further
        content[512 * block + 148 : 512 * block + 156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * 32)
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    path.write_bytes(content)
    with contextlib.suppress(ArchiveError):
        judge_tar(path, True, {DetectionId(1, 0, 1)}, 6, 10**6)
    with contextlib.suppress(ArchiveError):
        list(members(path))


# What an answer may not take


@pytest.mark.parametrize("kind", ["drip", "drip_headers", "continue"])
def test_an_answer_that_never_ends_is_a_failure_like_others(kind: str, tmp_path: Path) -> None:
    """The socket's timeout begins again with each byte."""
    archive = SimulatedArchive(1)
    detection = DetectionId.of(archive.rows[0])
    assert detection is not None
    archive.files(detection)  # the first files take a while
    faults = Faults(1, {kind: 1.0}, stall_seconds=60)  # of three tries the third is spared
    with ArchiveServer(archive, faults=faults) as server, one_session() as session:
        client = Client(server.url, Patience(read=2, base=0.01))
        request = Request(
            f"{server.url}/csccli/browse?version=rel2.1&packageset={detection}/arf/", check_listing, 10**6
        )
        for _ in range(2):
            with pytest.raises(TransientError, match=r"no answer in time|lost"):
                client.ask(session, request, tmp_path / "file")
        client.ask(session, request, tmp_path / "file")
    assert json.loads((tmp_path / "file").read_bytes())


# Whose failure it is


def test_an_outage_in_the_middle_of_a_run_rejects_nothing_and_ends_it(serve: Serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        return (200, {}, tar_of(**GOOD)) if number == 1 else (404, {}, b"moved")

    server = serve(answer)
    archive = open_archive(server, tmp_path)
    with archive.fetch(PACKAGE):
        pass
    other = Package(0, tuple(DetectionId(2, 0, region) for region in range(20)))
    with pytest.raises(UnavailableError, match=r"refuses whatever it is asked for.*moved.*go on"), archive.fetch(other):
        pass


def test_a_run_that_waited_for_the_service_goes_on_when_it_is_back(serve: Serve, tmp_path: Path) -> None:
    names = {name.replace("f00001", "f00002"): data for name, data in GOOD.items()}

    def answer(path: str, form: str, number: int) -> Answer:
        if 1 < number < 12:
            return 404, {}, b"moved"
        return 200, {}, tar_of(**(names if "2.0.1%2F" in form else GOOD))

    archive = open_archive(serve(answer), tmp_path)
    with archive.fetch(PACKAGE):
        pass
    with archive.fetch(Package(0, (DetectionId(2, 0, 1),))) as result:
        assert result.unserved == {}
        assert {file.name for part in result.parts for file in members(part)} == names.keys()


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_detection_of_which_the_service_says_no_while_it_serves_others_is_a_rejection(
    status: int, serve: Serve, tmp_path: Path
) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        asked = re.findall(r"1\.0\.\d", form)
        return (status, {}, b"not for you") if "1.0.2" in asked else (200, {}, tar_of(**GOOD))

    package = Package(0, (DetectionId(1, 0, 1), DetectionId(1, 0, 2)))
    parts, unserved = fetched(serve(answer), tmp_path, package)
    assert parts
    assert unserved.keys() == {package.detections[1]}
    assert f"status {status}" in unserved[package.detections[1]]
    assert "not for you" in unserved[package.detections[1]]


NOISE: list[Answer] = [(503, {}, b"busy"), (200, {}, b"<html>later</html>"), (500, {}, b"oops"), (502, {}, b"")]


def test_failures_of_several_kinds_say_nothing_of_the_request(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (NOISE * 2)[number] if number < 6 else (200, {}, b"[]"))
    request = Request(f"{server.url}/a", check_listing, 1000)
    with one_session() as session:
        Client(server.url, Patience(base=0)).download(session, request, tmp_path / "file", lambda: True)
    assert len(server.asked) == 6


@pytest.mark.parametrize(("kinds", "tries"), [(1, 3), (2, 5), (4, 6)])
def test_a_request_fails_by_three_failures_in_one_way_or_six_in_all(
    kinds: int, tries: int, serve: Serve, tmp_path: Path
) -> None:
    server = serve(lambda path, form, number: NOISE[number % kinds])
    request = Request(f"{server.url}/a", check_listing, 1000)
    with one_session() as session, pytest.raises(RefusedError, match=f"in {tries} tries"):
        Client(server.url, Patience(base=0)).download(session, request, tmp_path / "file", lambda: True)
    assert len(server.asked) == tries


def test_what_is_learnt_of_the_service_reaches_the_workers(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, tar_of(**GOOD)) if "&" in form else (405, {}, b""))
    archive = open_archive(server, tmp_path)
    archive._facts.verb = "POST"
    there = pickle.loads(pickle.dumps(archive._facts))
    assert there.verb == "POST"
    assert pickle.loads(pickle.dumps(archive._facts)) is there, "one for all tasks of a run in a process"
