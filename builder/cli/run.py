"""The command `chandra-spectra`: it parses, calls and reports.

Results go to stdout, bars and remarks to stderr. A known failure is one line on stderr and exit code 1; wrong usage is
exit code 2. Commands have further ones: 3 for too many rejections, 4 for a folder that could not be looked at.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from builder.cli import look, make, use  # noqa: F401  each adds its commands to the app
from builder.cli.app import Interrupted, end
from builder.cli.app import app as app
from builder.model.errors import ChandraSpectraError

_INTERRUPTED = "interrupted; what was finished is kept: run the same command again to go on"
_PATIENCE = 10
"""Seconds in which a run ends by itself after Ctrl-C."""


def main() -> None:
    """Run the command; exit code 0, 1 for a known failure, 2 for wrong usage, 130 when interrupted."""
    logging.basicConfig(format="chandra-spectra: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack a letter, which is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except OSError as error:
        end(f"cannot work in the current folder: {error.strerror}; go to another", 1)
    _on_interrupt(_interrupt)
    try:
        app()
    except ChandraSpectraError as error:
        end(str(error), 1)
    except Interrupted:
        _on_interrupt(signal.SIG_IGN)
        end(_INTERRUPTED, 130)


def _on_interrupt(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    begun = sys.exc_info()[1]
    if not isinstance(begun, Interrupted):
        raise Interrupted(time.monotonic())
    # The impatient press it twice, and would cut the ending short; but a worker may hang, with its disk.
    if time.monotonic() - begun.args[0] > _PATIENCE:
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # the bars hide it
        sys.stderr.write(f"{cursor}chandra-spectra: {_INTERRUPTED}\n")
        sys.stderr.flush()
        os._exit(130)
