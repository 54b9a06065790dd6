"""The HTTP client: when it asks again, how long it waits, and what it never accepts."""

from __future__ import annotations

import email.utils
import io
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from builder.catalog import Package
from builder.client import Client, Patience, Slots
from builder.errors import ArchiveError, RefusedError, StoreError, TransientError, UnavailableError
from builder.records import DetectionId
from builder.remote import HttpArchive

Answer = tuple[int, dict[str, str], bytes]


class Script:
    """A server that answers as a function says, and notes what it was asked."""

    def __init__(self, answer: Callable[[str, str, int], Answer]) -> None:
        script, self.asked = self, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                script.asked.append((self.command, self.path, form, self.headers["User-Agent"]))
                status, headers, body = answer(self.path, form, len(script.asked))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, str, int], Answer]], Script]]:
    scripts: list[Script] = []

    def start(answer: Callable[[str, str, int], Answer]) -> Script:
        scripts.append(Script(answer))
        return scripts[-1]

    yield start
    for script in scripts:
        script.server.shutdown()
        script.server.server_close()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def client(self, url: str, **patience: float) -> Client:
        return Client(url, Patience(**patience), self.sleep, lambda: self.now)


def get(client: Client, url: str, path: Path, max_bytes: int = 1000) -> bytes:
    with requests.Session() as session:
        client.download(session, url, path, lambda file: None, max_bytes)
    return path.read_bytes()


def test_pauses_grow_and_are_jittered_until_the_answer_is_right(serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (503, {}, b"") if number <= 5 else (200, {}, b"fine"))
    clock = Clock()
    assert get(clock.client(server.url), server.url + "/x?a=1&b=2", tmp_path / "file") == b"fine"
    assert len(clock.pauses) == 5
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(clock.pauses))
    assert server.asked[0][:3] == ("POST", "/x", "a=1&b=2")
    assert server.asked[0][3].startswith("chandra-spectra/")


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_in_both_forms(form: str, serve, tmp_path: Path) -> None:
    value = "30" if form == "seconds" else email.utils.formatdate(time.time() + 30, usegmt=True)
    server = serve(lambda path, f, number: (429, {"Retry-After": value}, b"") if number == 1 else (200, {}, b"fine"))
    clock = Clock()
    get(clock.client(server.url), server.url, tmp_path / "file")
    least = 30 if form == "seconds" else 1  # the date has no fractions, and the answer may take its time
    assert least <= clock.pauses[0] <= 31


@pytest.mark.parametrize(("status", "kind"), [(400, RefusedError), (404, RefusedError), (403, ArchiveError)])
def test_other_4xx_are_not_asked_again(status: int, kind: type, serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (status, {}, b"no"))
    with pytest.raises(kind, match=str(status)):
        get(Clock().client(server.url), server.url, tmp_path / "file")
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_it_gives_up_in_the_end_with_a_line_that_says_what_to_do(serve, tmp_path: Path) -> None:
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


def test_redirects_are_followed_as_get_but_never_to_another_host(serve, tmp_path: Path) -> None:
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
    assert get(client, server.url + "/start?q=1", tmp_path / "file") == b"fine"
    assert [entry[:3] for entry in server.asked] == [("POST", "/start", "q=1"), ("GET", "/result", "")]
    with pytest.raises(ArchiveError, match="another host"):
        get(client, server.url + "/away", tmp_path / "other")
    with pytest.raises(ArchiveError, match="circle"):
        get(client, server.url + "/circle", tmp_path / "other")


def test_an_answer_larger_than_the_limit_is_refused_and_nothing_stays(serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"x" * 5000))
    with pytest.raises(RefusedError, match="more than 1000 bytes"):
        get(Clock().client(server.url), server.url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_what_fails_its_check_is_never_kept(serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"<html>" if number == 1 else b"fine"))

    def check(path: Path) -> None:
        if path.read_bytes().startswith(b"<"):
            assert not (tmp_path / "file").exists()
            raise TransientError("html")

    clock = Clock()
    with requests.Session() as session:
        clock.client(server.url).download(session, server.url, tmp_path / "file", check, 100)
    assert (tmp_path / "file").read_bytes() == b"fine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_no_reason_to_ask_again(serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, b"fine"))
    with pytest.raises(StoreError, match="cannot write"):
        get(Clock().client(server.url), server.url, tmp_path / "missing" / "file")


def test_a_slot_is_taken_over_with_what_a_killed_run_left_removed(tmp_path: Path) -> None:
    (tmp_path / "slot-0").mkdir()
    (tmp_path / "slot-0" / "0.tar.partial").write_bytes(b"x")
    with Slots(tmp_path, 1).take() as folder:
        assert list(folder.iterdir()) == []
        (folder / "more").write_bytes(b"x")
    assert list((tmp_path / "slot-0").iterdir()) == []


def test_no_more_slots_are_taken_than_there_are(tmp_path: Path) -> None:
    held, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal held, most
        for _ in range(20):
            with Slots(tmp_path, 3).take():
                with lock:
                    held += 1
                    most = max(most, held)
                time.sleep(0.001)
                with lock:
                    held -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def tar_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo("package/" + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


NAME = "acisf00001_000N001_r0001_{}3.fits.gz"
GOOD = {NAME.format(kind): b"\x1f\x8b..." for kind in ("pha", "arf", "rmf")}
PACKAGE = Package(0, (DetectionId(1, 0, 1),))


def fetched(server: Script, tmp_path: Path, **patience: float) -> tuple[list[str], dict[DetectionId, str]]:
    archive = HttpArchive(server.url, "rel2.1", tmp_path, client=Clock().client(server.url, **patience))
    with archive.fetch(PACKAGE) as result:
        return [part.name for part in result.parts], result.unserved


def test_a_package_asks_for_the_three_products_of_each_detection(serve, tmp_path: Path) -> None:
    server = serve(lambda path, form, number: (200, {}, tar_of(**GOOD)))
    assert fetched(server, tmp_path) == (["0.tar"], {})
    (asked,) = server.asked
    assert asked[1] == "/csccli/retrieve"
    assert "1.0.1%2Fspectrum%2Fb%2C1.0.1%2Farf%2Fb%2C1.0.1%2Frmf%2Fb" in asked[2]
    assert "version=rel2.1" in asked[2]


def test_files_of_strangers_make_the_answer_a_wrong_one(serve, tmp_path: Path) -> None:
    strange = {NAME.replace("r0001", "r0002").format("pha"): b"\x1f\x8b"}
    server = serve(lambda path, form, number: (200, {}, tar_of(**strange, **GOOD) if number < 3 else tar_of(**GOOD)))
    assert fetched(server, tmp_path) == (["0.tar"], {})
    assert len(server.asked) == 3


def test_more_members_than_were_asked_for_are_refused(serve, tmp_path: Path) -> None:
    many = tar_of(**{f"note{number}.txt": b"" for number in range(50)})
    server = serve(lambda path, form, number: (200, {}, many if path.endswith("retrieve") else b"[]"))
    _, unserved = fetched(server, tmp_path)
    assert "50 files" not in unserved.get(PACKAGE.detections[0], "")
    assert len([entry for entry in server.asked if entry[1].endswith("retrieve")]) == 1


def test_names_in_a_listing_never_become_paths(serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            evil = [{"filename": "../../../" + NAME.format("pha")}, {"filename": "../../evil"}, {"other": 1}]
            return 200, {}, str(evil).replace("'", '"').encode()
        return (200, {}, b"\x1f\x8b") if path.endswith("retrieveFile") else (200, {}, tar_of())

    server = serve(answer)
    parts, _ = fetched(server, tmp_path / "cache")
    assert NAME.format("pha") in parts
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_package_that_is_refused_is_fetched_file_by_file(serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            return 200, {}, str([{"filename": name} for name in GOOD]).replace("'", '"').encode()
        return (200, {}, b"\x1f\x8b") if path.endswith("retrieveFile") else (414, {}, b"too long")

    parts, unserved = fetched(serve(answer), tmp_path)
    assert (sorted(parts), unserved) == (sorted(GOOD), {})


def test_one_package_that_is_never_served_is_a_rejection_and_does_not_stop_the_run(serve, tmp_path: Path) -> None:
    def answer(path: str, form: str, number: int) -> Answer:
        if path.endswith("browse"):
            return 200, {}, str([{"filename": name} for name in GOOD]).replace("'", '"').encode()
        return 503, {}, b""

    parts, unserved = fetched(serve(answer), tmp_path, total=30)
    assert parts == []
    assert "503" in unserved[PACKAGE.detections[0]]


def test_a_service_that_answers_nothing_at_all_stops_the_run(serve, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        fetched(serve(lambda path, form, number: (503, {}, b"")), tmp_path, total=30)
    with pytest.raises(ArchiveError, match="403"):
        fetched(serve(lambda path, form, number: (403, {}, b"")), tmp_path)
