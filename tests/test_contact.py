"""First contact: what `check` finds is so, and what it saves can be served again."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from builder.model.errors import ArchiveError, SettingError
from builder.model.settings import Settings
from builder.simulator.products import SimulatedArchive
from builder.simulator.replay import Replay
from builder.simulator.server import ArchiveServer
from builder.use.contact import Finding, check_archive
from tests.runs import command


@pytest.fixture(scope="module")
def archive() -> SimulatedArchive:
    return SimulatedArchive(5)


def check(server: ArchiveServer, save: Path | None = None) -> list[Finding]:
    return list(check_archive(Settings(server.url), save))


def findings(found: list[Finding]) -> list[tuple[str, str, bool]]:
    """What does not change from time to time: no port and no speed."""
    return [
        (re.sub(r"port \d+", "port", one.asked), re.sub(r"127\.0\.0\.1:\d+|; at .*", "", one.came), one.good)
        for one in found
    ]


@pytest.mark.parametrize(
    ("habits", "asked", "came"),
    [
        (["get-only"], "by POST", "status 405"),
        (["post-only"], "by GET", "status 405"),
        (["get-page"], "by GET", "'Error Error Use the form.' instead of a tar"),
        (["files-only"], "by GET", "status 404"),
        (["browse-unbanded"], "listed with a band", "an empty list"),
        (["browse-banded"], "listed without a band", "an empty list"),
        (["no-count"], "COUNT", "Function COUNT not found"),
        (["no-tables"], "the list of columns", "lists no columns"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_habit_is_seen_and_prepare_would_work(
    habits: list[str], asked: str, came: str, archive: SimulatedArchive
) -> None:
    with ArchiveServer(archive, habits=habits) as server:
        found = check(server)
    (one,) = [finding for finding in found if asked in finding.asked]
    assert not one.good
    assert came in one.came
    assert found[-1].good


@pytest.mark.parametrize(
    ("habit", "asked", "came"),
    [
        ("tar-gzip", "by GET", "gzip"),
        ("tar-endless", "by GET", "no end"),
        ("tar-v7", "by GET", "v7 headers"),
        ("fewer-columns", "the list of columns", "not there: significance, streak_src_flag, conf_code"),
        ("browse-error", "not there", "Error executing query"),
    ],
)
def test_what_differs_but_does_no_harm_is_named(habit: str, asked: str, came: str, archive: SimulatedArchive) -> None:
    with ArchiveServer(archive, habits=[habit]) as server:
        found = check(server)
    (one,) = [finding for finding in found if asked in finding.asked]
    assert one.good
    assert came in one.came


@pytest.mark.parametrize("habits", [[], ["get-page", "tar-gzip", "browse-unbanded", "no-count", "relative"]])
def test_what_is_saved_and_served_again_gives_the_same_result(
    habits: list[str], archive: SimulatedArchive, tmp_path: Path
) -> None:
    file = tmp_path / "answers.har"
    with ArchiveServer(archive, habits=habits) as server:
        first = check(server, file)
        asked = len(server.log)
    entries = json.loads(file.read_text())["log"]["entries"]
    assert len(entries) == asked
    with ArchiveServer(Replay(file)) as server:
        again = check(server)
    assert findings(again) == findings(first)


def test_a_recording_holds_nothing_of_who_asked(archive: SimulatedArchive, tmp_path: Path) -> None:
    file = tmp_path / "answers.har"
    with ArchiveServer(archive) as server:
        check(server, file)
    kept = {
        header["name"]
        for entry in json.loads(file.read_text())["log"]["entries"]
        for header in entry["response"]["headers"]
    }
    assert kept <= {"Content-Type", "Content-Length", "Location"}
    assert "authorization" not in file.read_text().lower()


def test_without_a_network_the_command_says_so_in_a_line_and_fails(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        result = command("check", "--archive", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert result.returncode == 1
    assert result.stderr == ""
    host, verdict = result.stdout.splitlines()
    assert re.fullmatch(r"✗ host 127\.0\.0\.1, port \d+: failed: Connection refused.*", host)
    assert verdict == "✗ prepare: it would not work: check the network, and the address"


def test_the_command_prints_a_line_for_each_question_and_keeps_the_answers(
    archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive) as server:
        result = command("check", "--archive", server.url, "--save", tmp_path / "answers.har")
    assert (result.returncode, result.stderr) == (0, "")
    *lines, verdict, written = result.stdout.splitlines()
    assert all(line.startswith("✓ ") for line in lines)
    assert verdict.startswith("✓ prepare: it would work; at ")
    assert written == f"written to {tmp_path / 'answers.har'}"
    assert (tmp_path / "answers.har").is_file()


def test_an_archive_of_this_machine_is_not_asked_and_a_file_that_is_no_recording_not_served(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is on this machine"):
        list(check_archive(Settings("embedded")))
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ArchiveError, match="is no recording"):
        Replay(tmp_path / "file")
