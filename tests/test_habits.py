"""The service may answer in other ways than the plain one: every good detection is a row, at hardly more requests."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from builder import workspace
from builder.archive.http import Patience
from builder.archive.packages import Origin, plan
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.settings import Settings
from builder.simulator.faults import Faults
from builder.simulator.habits import HABITS, MISSING_COLUMNS
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer, Request
from builder.store.fill import fill, results
from tests.impatient import RememberedArchive

pytestmark = pytest.mark.usefixtures("without_pictures")

NUMBER, SIZE = 40, 5
FAULTS = Faults(4, {}, {"gone": 0.05})
QUICK = Patience(connect=2, total=20, base=0.01, longest=0.05)
SLOW = ("slow-count", "slow-join", "slow-ranges")


@pytest.fixture(scope="module")
def archive() -> SimulatedArchive:
    archive = RememberedArchive(NUMBER)
    for one in ids(archive):
        archive.files(one)  # which takes longer than some of the tests wait
    return archive


def ids(archive: SimulatedArchive) -> set[DetectionId]:
    return {one for row in archive.rows if (one := DetectionId.of(row))}


@dataclass
class Outcome:
    """What came of a run: rows, rejections with reason and words, the catalog's origin, and the server's log."""

    rows: set[DetectionId]
    rejected: dict[DetectionId | str, tuple[str, str]]
    origin: Origin
    log: list[Request]


def run(
    archive: SimulatedArchive,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    habits: Iterable[str] = (),
    faults: Faults = FAULTS,
    patience: Patience = QUICK,
) -> Outcome:
    """Plan and make all packages, as `prepare` does before it writes a folder."""
    monkeypatch.setattr(workspace, "plan", functools.partial(plan, size=SIZE))
    with ArchiveServer(archive, faults=faults, habits=habits) as server:
        settings = Settings(server.url)
        opened = workspace.open_workspace(settings, folder, patience=patience)
        planned = workspace.make_plan(opened, settings)
        fill(planned.packages, opened.archive, opened.store)
        assert server.max_connections <= 4
        log = list(server.log)
    found = [result for _, result in results(planned.packages, opened.archive, opened.store)]
    lines = [line for result in found for line in result.rejections.to_pylist()]
    rejected: dict[DetectionId | str, tuple[str, str]] = {
        DetectionId.parse(line["detection_id"]).catalog: (line["reason"], line["message"]) for line in lines
    }
    rows = {
        package.detections[row]
        for package, result in zip(planned.packages, found, strict=True)
        for row in result.spectra["row"].to_pylist()
    }
    refused = {one.detection: (one.reason, one.message) for one in planned.rejections}
    assert planned.origin is not None
    return Outcome(rows, rejected | refused, planned.origin, log)


@pytest.mark.parametrize("habit", HABITS)
def test_each_habit_gives_every_good_detection_a_row_at_few_requests(
    habit: str, archive: SimulatedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = {habit, "fewer-columns"} if habit == "status-400" else {habit}
    patience = replace(QUICK, read=1, query=1.5) if habit in SLOW else QUICK
    outcome = run(archive, tmp_path, monkeypatch, habits, patience=patience)
    bad = {one for one in ids(archive) if FAULTS.permanent_of(one)}
    assert len(bad) == 2
    assert outcome.rows == ids(archive) - bad
    strange = f"1000000.0.{archive.rows[0]['region_id']}"
    assert outcome.rejected.keys() == bad | ({strange} if habit == "bad-row" else set())
    lacking = {column for column in MISSING_COLUMNS if {"fewer-columns", "no-tables"} & habits}
    assert lacking <= {*outcome.origin.missing}

    plain = 4 + NUMBER // SIZE  # a query and a count, each with a redirect, and the packages
    single = 6 * NUMBER if habit == "files-only" else 0  # where there are no packages, each file is found and fetched
    own = [request for request in outcome.log if bad & {*map(DetectionId.parse, request.detections)}]
    assert len(outcome.log) - len(own) <= 1.3 * plain + single + 6 * len(bad), Counter(r.service for r in outcome.log)
    assert len(own) <= 20 * len(bad)


def test_the_plain_service_takes_no_more_requests_than_there_are_packages(
    archive: SimulatedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(archive, tmp_path, monkeypatch, faults=Faults())
    assert len(outcome.log) == 4 + NUMBER // SIZE
    assert outcome.origin.missing == ()


@pytest.mark.parametrize("habit", ["browse-error", "browse-blank", "browse-500"])
def test_what_the_service_says_of_a_detection_that_it_does_not_have_is_in_its_rejection(
    habit: str, archive: SimulatedArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"browse-error": "Error executing query: no product", "browse-blank": "nothing", "browse-500": "500"}
    outcome = run(archive, tmp_path, monkeypatch, {habit})
    assert all(reason == "not_served" and words[habit] in said for reason, said in outcome.rejected.values())


def test_a_redirect_to_another_name_of_the_host_opens_no_connection_beside_the_first(
    archive: SimulatedArchive, tmp_path: Path
) -> None:
    with ArchiveServer(archive, habits=["alias"]) as server:
        settings = Settings(server.url)
        workspace.make_plan(workspace.open_workspace(settings, tmp_path, connections=1), settings)
        assert server.max_connections == 1


def test_an_unknown_habit_is_refused(archive: SimulatedArchive) -> None:
    with pytest.raises(SettingError, match="unknown habit 'gzip': choose from"):
        ArchiveServer(archive, habits=["gzip"])
