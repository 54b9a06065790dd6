"""What the command shows: tables on stdout, bars on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.catalog import Plan
    from builder.prepare import Progress
    from builder.verify import Report

__all__ = ["bars", "show_checks", "show_estimate", "show_row", "show_summary", "size_text", "waiting"]


def show_checks(report: Report) -> None:
    """The checks of a folder with their marks, and every failure in a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    table = Table(title=f"{report.folder}", title_justify="left", box=None, pad_edge=False, show_header=False)
    for style in ("", "bold", "dim"):
        table.add_column(style=style)
    for check in report.checks:
        mark = Text("✗", "red") if check.failed else Text("✓", "green") if check.scope else Text("–", "dim")
        table.add_row(mark, check.claim, check.scope or ("" if check.failed else "not looked at"))
    console.print(table)
    for check in report.checks:
        for line in check.failures:
            print(line)
        if check.failed > len(check.failures):
            print(f"... and {check.failed - len(check.failures):,} more: {check.claim}")


def show_summary(folder: Path, manifest: dict[str, Any], done: bool | None) -> None:
    """What a prepared folder holds, and where to go next.

    Parameters
    ----------
    folder : Path
    manifest : dict
    done : bool, optional
        Whether it was made just now, or was finished before; None where the question is not asked.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    counts = manifest["counts"]
    table = Table(title=f"{folder}", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("rows", f"{counts['rows']:,}", "spectra")
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in counts["reasons"].items())
    table.add_row("rejected", f"{counts['rejected']:,}", reasons)
    table.add_row("selected", f"{counts['selected']:,}", f"from {counts['detections']:,} detections")
    for file in manifest["files"]:
        rows = "" if file["rows"] is None else f"{file['rows']:,} row{'' if file['rows'] == 1 else 's'}"
        table.add_row(file["path"], size_text(file["bytes"]), rows)
    if done:
        table.add_row("time", f"{manifest['seconds']:.1f} s", "")
    console.print(table)
    if done is False:
        console.print("\nThe folder was finished before: nothing to do.")
    if done is not None:
        name = str(folder)
        console.print(
            f'\nNext:  python -c \'from datasets import load_dataset; print(load_dataset("{name}")["train"][0])\''
            f"\n       chandra-spectra info {name}",
            soft_wrap=True,
        )


def show_row(row: dict[str, Any]) -> None:
    """The scalars of one row of config ``spectra``, with their units."""
    from rich.console import Console
    from rich.table import Table

    from builder.columns import columns_of

    table = Table(title=f"\ndetection {row['detection_id']}", title_justify="left", box=None, pad_edge=False,
                  show_header=False)  # fmt: skip
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    for column in columns_of("spectra"):
        if column.length is None and not column.name.endswith("sha256"):
            value = row[column.name]
            text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
            table.add_row(column.name, text, column.unit)
    Console(highlight=False).print(table)


def size_text(size: float) -> str:
    """A number of bytes for people, such as 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """A progress bar on stderr for each step, silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as display:
        tasks: dict[str, Any] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = display.add_task(step, total=total)
            display.update(tasks[step], completed=done)

        yield progress


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr, silent where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


def show_estimate(planned: Plan, bandwidth: float) -> None:
    """What the download of a selection would come to, at a bandwidth in MB/s."""
    from rich.console import Console
    from rich.table import Table

    from builder.catalog import DETECTION_BYTES

    size = len(planned.catalog) * DETECTION_BYTES
    hours = size / (bandwidth * 1e6) / 3600
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("detections", f"{len(planned.catalog):,}", f"in {len(planned.packages):,} packages")
    if planned.rejections:
        table.add_row("without spectra", f"{len(planned.rejections):,}", "not ACIS")
    table.add_row("download", size_text(size), "about 1.1 MB a detection")
    table.add_row(
        "time", f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(hours * 60))} min", f"at {bandwidth:g} MB/s"
    )
    Console(highlight=False).print(table)
