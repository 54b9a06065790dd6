"""The command that looks at an archive before anything is asked of it: check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from builder.cli.app import Archive, Release, app, local
from builder.cli.terminal import show_finding
from builder.model.settings import DEFAULT_ARCHIVE, DEFAULT_RELEASE


@app.command(epilog="Example:  chandra-spectra check --save answers.har")
def check(
    archive: Archive = DEFAULT_ARCHIVE,
    release: Release = DEFAULT_RELEASE,
    save: Annotated[
        Path | None,
        typer.Option(callback=local, help="File for all requests and answers, which serve-archive serves again."),
    ] = None,
) -> None:
    """Ask an archive a few small things, and say whether `prepare` would work.

    What to run first, and what to send with a report of a fault. The exit code is 0 where `prepare` would work.
    """
    from builder.model.settings import Settings
    from builder.use.contact import check_archive

    good = False
    for finding in check_archive(Settings(archive, release), save):
        show_finding(finding)
        good = finding.good
    if save:
        print(f"written to {save}")
    if not good:
        raise SystemExit(1)
