"""Count the requests that a selection takes of a service of each habit, and write the table of docs/faults.md.

Run from a checkout: ``python benchmarks/habits.py --detections 150``. Of every detection but two there are files. Where
a service is slow, it is waited for for 2 seconds in place of half an hour.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def measure(archive: object, habits: set[str], bad: int) -> tuple[int, float, int]:
    """Plan and make all packages; requests, seconds and rows."""
    from builder.archive.http import Patience
    from builder.model.ids import DetectionId
    from builder.model.settings import Settings
    from builder.simulator.faults import Faults
    from builder.simulator.server import ArchiveServer
    from builder.store.fill import fill, results
    from builder.workspace import make_plan, open_workspace

    class Some(Faults):
        """Nothing is there of the detections in the middle."""

        def permanent_of(self, detection: DetectionId) -> str | None:
            return "gone" if detection.catalog in gone else None

    rows = archive.rows  # type: ignore[attr-defined]
    gone = {DetectionId.of(row) for row in rows[len(rows) // 2 :][:bad]}
    patience = Patience(read=1, query=2) if habits & {"slow-count", "slow-join", "slow-ranges"} else Patience()
    with ArchiveServer(archive, faults=Some(), habits=habits) as server, tempfile.TemporaryDirectory() as folder:  # type: ignore[arg-type]
        settings, begun = Settings(server.url), time.monotonic()
        workspace = open_workspace(settings, Path(folder), patience=patience)
        planned = make_plan(workspace, settings)
        fill(planned.packages, workspace.archive, workspace.store)
        seconds = time.monotonic() - begun
        made = results(planned.packages, workspace.archive, workspace.store)
        number = sum(len(set(result.spectra["row"].to_pylist())) for _, result in made)
        return len(server.log), seconds, number


def main() -> None:
    """Print a line of the table for the plain service and for each habit."""
    from builder.model.ids import DetectionId
    from builder.simulator.habits import HABITS
    from builder.simulator.products import SimulatedArchive

    class Remembered(SimulatedArchive):
        """Makes the files of a detection once."""

        files = functools.cache(SimulatedArchive.files)  # type: ignore[assignment]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, default=150)
    parser.add_argument("--habit", action="append", choices=HABITS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    archive = Remembered(options.detections)
    for row in archive.rows:
        archive.files(DetectionId.of(row))  # type: ignore[arg-type]
    print("| variant | the service | requests | with two bad detections | seconds | rows |")
    print("| --- | --- | --- | --- | --- | --- |")
    for habit in [None, *(options.habit or HABITS)]:
        habits = {habit} if habit else set[str]()
        whole = measure(archive, habits | ({"fewer-columns"} if habit == "status-400" else set()), 0)
        bad = measure(archive, habits | ({"fewer-columns"} if habit == "status-400" else set()), 2)
        name, words = (f"`{habit}`", HABITS[habit]) if habit else ("plain", "answers as the documentation has it")
        print(f"| {name} | {words} | {whole[0]} | {bad[0]} | {bad[1]:.0f} | {bad[2]} |", flush=True)


if __name__ == "__main__":
    main()
