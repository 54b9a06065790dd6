"""`chandra-spectra` with short pauses, small packages and no pictures, so that tests of faults are quick."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType

from builder.records import DetectionId, File
from builder.simulation import SimulatedArchive

ROOT = Path(__file__).parents[1]


class RememberedArchive(SimulatedArchive):
    """Makes the files of a detection once for all who ask for it before 250 others: 90 MB."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._remembered = functools.lru_cache(250)(super().files)

    def files(self, detection: DetectionId) -> list[File]:
        return self._remembered(detection)


def changes(read: float = 1) -> list[tuple[ModuleType, str, object]]:
    """Short pauses, small packages, and no pictures, which take longer than all the rest: module, name and value."""
    import builder.card
    import builder.cli
    import builder.client
    import builder.sources
    from builder.catalog import plan
    from builder.client import Patience

    return [
        (builder.client, "Patience", functools.partial(Patience, connect=2, read=read, base=0.01, longest=0.05)),
        (builder.sources, "plan", functools.partial(plan, size=10)),
        (builder.cli, "_PATIENCE", 1),
        (builder.card, "draw_pictures", lambda folder, shards, scalars: []),
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
        "from builder.cli import main; main()"
    )
    return [sys.executable, "-c", code, *map(str, words)]
