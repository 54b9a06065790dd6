"""The command `chandra-spectra`: it parses, calls and reports.

Results go to stdout, bars and remarks to stderr. A known failure is one line on stderr and exit code 1; wrong usage is
exit code 2.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable

from builder import commands_make, commands_use  # noqa: F401  each adds its commands to the app
from builder.command import Interrupted, app, end
from builder.errors import ChandraSpectraError

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; exit code 0, 1 for a known failure, 2 for wrong usage, 130 when interrupted."""
    logging.basicConfig(format="chandra-spectra: %(message)s", level=logging.WARNING)
    _on_interrupt(_interrupt)
    try:
        app()
    except ChandraSpectraError as error:
        end(str(error), 1)
    except Interrupted:
        _on_interrupt(signal.SIG_IGN)
        end("interrupted; what was finished is kept: run the same command again to go on", 130)


def _on_interrupt(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    if not isinstance(sys.exc_info()[1], Interrupted):  # the impatient press it twice, and would cut the ending short
        raise Interrupted
