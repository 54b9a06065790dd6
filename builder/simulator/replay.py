"""The services as a recording has them: what was asked is answered as it was, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from builder.archive.recording import Recorded, read_recording
from builder.simulator.reply import Reply


class Replay:
    """A recording of ``chandra-spectra check --save``.

    Raises
    ------
    ArchiveError
        If it is none.
    """

    def __init__(self, path: Path) -> None:
        self._answers: dict[tuple[str, str, tuple[tuple[str, str], ...]], Recorded] = {}
        for entry in read_recording(path):
            self._answers.setdefault((entry.verb, entry.path, entry.parameters), entry)

    def reply(self, path: str, parameters: Mapping[str, str], verb: str, length: int) -> Reply:
        """Answer one request."""
        service = path.rpartition("/")[2]
        entry = self._answers.get((verb, path, tuple(sorted(parameters.items()))))
        if entry is None:
            return Reply(service, b"This is not in the recording.\n", status=404)
        kind = entry.headers.get("Content-Type", "application/octet-stream")
        location = entry.headers.get("Location", "")
        return Reply(service, entry.body, kind, entry.status or 503, location, slow=entry.status == 0)
