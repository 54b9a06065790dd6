"""`chandra-spectra` with short pauses, small packages and no pictures, so that tests of faults are quick."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType

from builder.model.ids import DetectionId
from builder.model.records import File
from builder.simulator.products import SimulatedArchive

ROOT = Path(__file__).parents[1]


class RememberedArchive(SimulatedArchive):
    """Makes the files of a detection once for all who ask for it: 0.4 MB each."""

    def __init__(self, n: int, seed: int = 0) -> None:
        super().__init__(n, seed)
        self._remembered = functools.cache(super().files)

    def files(self, detection: DetectionId) -> list[File]:
        return self._remembered(detection)


def changes(read: float = 1) -> list[tuple[ModuleType, str, object]]:
    """Short pauses, small packages, and no pictures, which take longer than all the rest: module, name and value."""
    import builder.archive.http
    import builder.cli.run
    import builder.dataset.card
    import builder.workspace
    from builder.archive.http import Patience
    from builder.archive.packages import plan

    return [
        (builder.archive.http, "Patience", functools.partial(Patience, connect=2, read=read, base=0.01, longest=0.05)),
        (builder.workspace, "plan", functools.partial(plan, size=5)),
        (builder.cli.run, "_PATIENCE", 1),
        (builder.dataset.card, "draw_pictures", lambda folder, scalars: []),
    ]


def impatient(read: float = 1) -> None:
    """Make these changes in this process."""
    for change in changes(read):
        setattr(*change)


def impatient_command(*words: object) -> list[str]:
    """The words of a bare process that is changed so and does what the command does."""
    # Not a module run by -m: the workers of a run would import that again, with all that it imports.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.impatient import impatient; impatient(); "
        "from builder.cli.run import main; main()"
    )
    return [sys.executable, "-c", code, *map(str, words)]
