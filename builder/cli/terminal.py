"""Output of the command: tables on stdout, bars on stderr."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.model.text import exposure_text, one_line, several, size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from builder.archive.matching import Match
    from builder.archive.packages import Plan
    from builder.dataset.layout import Entry, Manifest
    from builder.model.column import Column
    from builder.model.text import Progress
    from builder.use.checks import Check
    from builder.use.contact import Finding
    from builder.use.index import Indexed

_CLAIM = 39
"""Letters of the longest claim of a check."""

_LINES = 50
"""Positions or damaged files that are shown one by one."""

_PAUSE = 60.0
"""Seconds between two lines of progress."""


def _show(table: Table, console: Console) -> None:
    """Print a table; into a pipe or a file without the blanks that its lines are filled up with."""
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    print("\n".join(lines if console.is_terminal else map(str.rstrip, lines)))


def shell_path(path: Path) -> str:
    """Write a path for a shell; a bare name with ``./``, as a command may take it for an option or another word."""
    return shlex.quote(_not_bare(path))


def _not_bare(path: Path) -> str:
    return str(path) if len(path.parts) != 1 or path.is_absolute() or path.name == ".." else f"./{path.name}"


def load_command(source: str, options: str = "", then: str = "") -> str:
    """Write the shell command that loads a dataset and prints it.

    Parameters
    ----------
    source : str
        First argument of `load_dataset`.
    options : str
        Python code of the further ones.
    then : str
        Python code after the call.
    """
    load = f"load_dataset({python_text(source)}{options}){then}"
    return shlex.join(("python", "-c", f"from datasets import load_dataset; print({load})"))


def python_text(text: str) -> str:
    """Write a text as Python and as JSON have it, in double quotes, so that a shell takes it in single ones."""
    return json.dumps(text, ensure_ascii=False)


def _printable(text: str) -> bool:
    """Tell whether the encoding of stdout has all of a text."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def drawn_or_said(plot: str) -> str:
    """Give a plot, or say why not where the encoding of stdout has not its letters."""
    if _printable(plot):
        return plot
    return f"{plot.partition(chr(10))[0]}\nnot drawn: it takes a terminal of UTF-8, not {sys.stdout.encoding}"


def show_check(check: Check) -> None:
    """Show a check with its mark, and every failure in a line."""
    from rich.console import Console
    from rich.text import Text

    bad, good, unseen = ("✗", "✓", "–") if _printable("✗✓–") else ("bad", "ok ", "-  ")
    mark = Text(bad, "red") if check.failed else Text(good, "green") if check.scope else Text(unseen, "dim")
    if check.unseen and not check.failed:
        mark = Text("?".ljust(len(bad)), "yellow")
    scope = check.unseen or check.scope or ("" if check.failed else "not looked at")
    line = Text.assemble(mark, "  ", (check.claim.ljust(_CLAIM), "bold"), "  ", (scope, "dim"))
    line.rstrip()
    Console(highlight=False, markup=False).print(line, soft_wrap=True)
    for failure in check.failures:
        print(failure)
    if check.failed > len(check.failures):
        print(f"... and {check.failed - len(check.failures):,} more: {check.claim}")


def show_finding(finding: Finding) -> None:
    """Print one line of a first contact."""
    from rich.console import Console
    from rich.text import Text

    mark = Text("✓ ", "green") if finding.good else Text("✗ ", "red")
    words = f"{finding.asked}: {one_line(finding.came)}" + (f"  ({finding.seconds:.1f} s)" if finding.seconds else "")
    Console(highlight=False, markup=False, soft_wrap=True).print(mark + Text(words))


def show_summary(folder: Path, manifest: Manifest, fresh: bool | None) -> None:
    """Show the content of a prepared folder, and the next command.

    Parameters
    ----------
    fresh : bool, optional
        Whether it was made just now, or was finished before; None where the question is not asked.
    """
    from rich.console import Console

    from builder.dataset.layout import POSITIONS_FILE
    from builder.dataset.read import overview, read_scalars
    from builder.model.records import REASONS

    console = Console(highlight=False, markup=False)
    counts = manifest.counts
    seen = overview(folder)
    table = _table()
    table.add_row("rows", f"{counts.rows:,}", "", f"spectra of {several(seen.sources, 'source')}")
    files: dict[str, list[Entry]] = {}
    for file in manifest.files:
        part, _, name = file.path.rpartition("/")
        files.setdefault(f"{part}/" if part else name, []).append(file)
    splits = _splits(manifest)
    for split in manifest.splits.names if manifest.splits.divided else ():
        rows = splits.get(split, 0)
        table.add_row(f"  {split}", f"{rows:,}", "", f"{100 * rows / counts.rows:.1f} %" if rows else "no file")
    table.add_row("observations", f"{seen.observations:,}", "", seen.dates)
    table.add_row("exposure", *exposure_text(seen.exposure).split(), "all rows together")
    table.add_row("counts", f"{seen.counts:,}", "", "all rows together, kept energies")
    table.add_row("rejected", f"{counts.rejected:,}", "", f"of {counts.selected:,} selected")
    if places := manifest.catalog.get("positions"):
        remark = f"of {places['number']:,} with detections; {places['matched']:,} with a source: {POSITIONS_FILE}"
        table.add_row("positions", f"{places['selected']:,}", "", remark)
    for reason, rejected in sorted(counts.reasons.items(), key=lambda item: -item[1]):
        table.add_row(f"  {reason}", f"{rejected:,}", "", REASONS.get(reason, ""))
    for name, parts in files.items():
        size, unit = size_text(sum(file.bytes for file in parts)).split()
        remarks = [] if parts[0].rows is None else [several(sum(file.rows or 0 for file in parts), "row")]
        remarks += [several(len(parts), "file")] if name.endswith("/") else []
        table.add_row(name, size, unit, ", ".join(remarks))
    size, unit = size_text(manifest.size).split()
    table.add_row("together", size, unit, several(len(manifest.files), "file"))
    if fresh:
        table.add_row("time", f"{manifest.seconds:,.1f}", "s", "")
    console.print(str(folder), style="bold")
    _show(table, console)
    if fresh is False:
        console.print("\nThe folder was finished before: nothing to do.")
    if fresh is not None and counts.rows:  # datasets loads no folder without rows
        split = next(split for split, rows in splits.items() if rows)
        # A bare name such as csv would be that of a module of datasets.
        load = load_command(_not_bare(folder), then=f'["{split}"][0]')
        first = read_scalars(folder, ["object_id", "detection_id"]).sort_by("object_id")["detection_id"][0].as_py()
        place = shell_path(folder)
        steps = [*_activation(), f"chandra-spectra info {place}"]
        steps += [f"chandra-spectra plot {place} --detection {first}", load]
        console.print(f"\nNext:  {steps[0]}", soft_wrap=True)
        for step in steps[1:]:
            console.print(f"       {step}", soft_wrap=True)


def _activation() -> list[str]:
    """Say how the environment of this program is activated, where the shell would not find its commands."""
    scripts = Path(sys.prefix) / "bin"
    found = shutil.which("chandra-spectra")
    if not (scripts / "activate").is_file() or (found and Path(found).parent == scripts):
        return []
    path = scripts / "activate"
    return [f". {shell_path(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)}"]


def show_indexed(done: Indexed) -> None:
    """Show what became of the files of a folder, the damaged ones by name."""
    from rich.console import Console

    table = _table()
    table.add_row("detections", f"{done.detections:,}", "", f"{done.held:,} of them were there" if done.held else "")
    if done.listed:
        table.add_row("  listed", f"{done.listed:,}", "", "with a row of the catalog file")
    table.add_row("product files", f"{done.files:,}", "", "")
    for kind, number in done.lacking.items():
        if number:
            table.add_row(f"  no {kind.upper()}", f"{number:,}", "", "detections that prepare will reject")
    for name, number, remark in (
        ("  damaged", len(done.damaged), "kept where a part of them is there"),
        ("  passed over", done.copies, "there is a later version or another copy"),
        ("  HRC", done.hrc, "left out: HRC hardly resolves energy"),
        ("no products", done.others, "files of another name, left out"),
    ):
        if number:
            table.add_row(name, f"{number:,}", "", remark)
    _show(table, Console(highlight=False, markup=False))
    for words in done.damaged[:_LINES]:
        print(f"damaged: {one_line(words)}")
    if len(done.damaged) > _LINES:
        print(f"... and {len(done.damaged) - _LINES:,} more")


def show_uploaded(url: str, manifest: Manifest, fresh: bool) -> None:
    """Show the content of a prepared folder on another file system, and how to load it: there is no card there."""
    counts, files, size = manifest.counts, len(manifest.files), size_text(manifest.size)
    print(f"{counts.rows:,} spectra, {counts.rejected:,} rejected, {files} files, {size}, in {url}")
    if not fresh:
        print("The folder was finished before: nothing to do.")
    shards = {split: f"{url}/data/{split}-*.parquet" for split in _splits(manifest)}
    print(f"\nNext:  {load_command('parquet', f', data_files={json.dumps(shards, ensure_ascii=False)}')}")


def _table() -> Table:
    """Make a table without lines: name, number, unit, remark."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    return table


def _splits(manifest: Manifest) -> dict[str, int]:
    """Return rows of each split that has files."""
    shards = {split: manifest.shards("spectra", split) for split in manifest.splits.names}
    return {split: sum(rows.values()) for split, rows in shards.items() if rows}


def show_row(row: dict[str, Any], own: tuple[Column, ...] = ()) -> None:
    """Show the scalars of one row of config ``spectra``, with their units; nulls are only named."""
    from rich.console import Console

    from builder.dataset.read import date_text
    from builder.model.columns import columns_of

    texts = (
        "name",
        "detection_id",
        "obsid",
        "obi",
        "region_id",
        "cycle",
        "instrument",
        "ebounds_from",
    )  # said elsewhere
    table = _table()
    missing = []
    for column in columns_of("spectra", own=own):
        if column.length is not None or column.name in texts or column.name.endswith(("_file", "_sha256")):
            continue
        value = row.get(column.name)  # a folder of another version may lack one
        if value is None:
            missing.append(column.name)
        elif isinstance(value, bool):
            table.add_row(column.name, "yes" if value else "no", "")
        else:
            digits = 6 if column.dtype == "float32" else 9
            number = f"{value:.{digits}g}" if isinstance(value, float) else str(value)
            is_date = column.name == "gti_mjd_obs"
            table.add_row(column.name, number, *(("MJD", date_text(value)) if is_date else (column.unit,)))
    console = Console(highlight=False, markup=False)
    of = f" of {one_line(row['name'])}" if row["name"] else ""
    instrument = f", {row['instrument']}" if row["instrument"] else ""
    console.print(f"\ndetection {row['detection_id']}{of}{instrument}", style="bold")
    _show(table, console)
    files = [row[f"{kind}_file"] for kind in ("pha", "arf", "rmf")]
    files[2] = files[2] or f"channel energies from the RMF of {row['ebounds_from']}"
    console.print("files  " + "\n       ".join(files))
    if missing:
        print(textwrap.fill(", ".join(missing), console.width, initial_indent="null   ", subsequent_indent=" " * 7))
    print()


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Show a progress bar on stderr for each step; where stderr is no terminal, a line now and then."""
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
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # What is printed meanwhile goes above the bars; but not if stdout is a file, which rich would take it away from.
    with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as display:
        tasks: dict[str, Any] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = display.add_task(step, total=total)
            display.update(tasks[step], completed=done)

        yield progress


def _lines() -> Progress:
    said = time.monotonic()

    def progress(step: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _PAUSE:
            said = time.monotonic()
            print(f"{time.strftime('%Y-%m-%d %H:%M')}  {step} {done:,} of {total:,}", file=sys.stderr, flush=True)

    return progress


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show a spinner on stderr, nothing where stderr is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


def show_estimate(planned: Plan, bandwidth: float) -> None:
    """Show the size and the time of the download of a selection, with either choice of RMFs, at a bandwidth in MB/s."""
    from rich.console import Console
    from rich.table import Table

    from builder.archive.packages import DETECTION_BYTES, RMF_BYTES, divide
    from builder.model.settings import RMFS

    detections = [detection for package in planned.packages for detection in package.detections]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("detections", f"{len(planned.catalog):,}", f"in {several(len(planned.packages), 'package')}")
    if planned.rejections:
        table.add_row("without spectra", f"{len(planned.rejections):,}", "not ACIS")
    for rmf in RMFS:
        rmfs = sum(len(package.first_rmfs) for package in divide(detections, rmf=rmf))
        size = len(detections) * (DETECTION_BYTES - RMF_BYTES) + rmfs * RMF_BYTES
        hours = size / (bandwidth * 1e6) / 3600
        time_text = f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(hours * 60))} min"
        table.add_row(f"--rmf {rmf}", size_text(size), f"{several(rmfs, 'RMF')}, {time_text} at {bandwidth:g} MB/s")
    _show(table, Console(highlight=False))
    _show_matches(planned.matches)


def _show_matches(matches: Sequence[Match]) -> None:
    """Show positions with the source of each."""
    from rich.console import Console
    from rich.table import Table

    if not matches:
        return
    table = Table("position", "nearest source", "arcsec", "detections", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for match in matches[:_LINES]:
        name = one_line((match.source and match.source[0]) or "") or "without a name"
        distance = "" if match.separation is None else f"{3600 * match.separation:.2f}"
        cells = (name, distance, f"{match.detections:,}") if match.source else ("none", "", "")
        table.add_row(one_line(match.label), *cells)
    print()
    _show(table, Console(highlight=False, markup=False))
    if len(matches) > _LINES:
        print(f"... and {len(matches) - _LINES:,} more: a prepared folder lists all in positions.csv")
