"""The command `chandra-spectra`: it parses, calls and reports.

Results go to stdout, bars and remarks to stderr. A known failure is one line on stderr and exit code 1; wrong usage is
exit code 2.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from builder import __version__
from builder.errors import ChandraSpectraError

if TYPE_CHECKING:
    from builder.prepare import Progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="chandra-spectra",
    help="X-ray spectra of the Chandra Source Catalog, as a dataset for machine learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # --min_cnts is --min-cnts: notes and scripts write it either way
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def main() -> None:
    """Run the command; exit code 0, 1 for a known failure, 2 for wrong usage, 130 when interrupted."""
    logging.basicConfig(format="chandra-spectra: %(message)s", level=logging.WARNING)
    try:
        app()
    except ChandraSpectraError as error:
        print(f"chandra-spectra: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("chandra-spectra: interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def _version(value: bool) -> None:
    if value:
        print(f"chandra-spectra {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


Output = Annotated[Path, typer.Argument(help="Folder to write.")]
Cache = Annotated[
    Path | None,
    typer.Option(help="Folder for finished packages and downloads.", show_default="$CHANDRA_SPECTRA_CACHE or ~/.cache"),
]
Archive = Annotated[str, typer.Option(help="'embedded', a mirror folder, or the services' base URL.")]
Release = Annotated[str, typer.Option(help="Release of the catalog: rel2.1, rel2.0 or cur.")]
MinCnts = Annotated[float, typer.Option(help="Take detections with more net counts than this.")]
MinSig = Annotated[float, typer.Option(help="... and a flux significance above this.")]
MaxTheta = Annotated[float, typer.Option(help="... and less than this off axis, arcmin.")]


@app.command(
    epilog="Examples:  chandra-spectra prepare --archive embedded   |   "
    "chandra-spectra prepare bright --min-cnts 4000 --min-sig 80 --max-theta 1"
)
def prepare(
    output: Output = Path("chandra_spectra"),
    archive: Archive = "https://cda.cfa.harvard.edu",
    release: Release = "rel2.1",
    min_cnts: MinCnts = 40,
    min_sig: MinSig = 4,
    max_theta: MaxTheta = 10,
    energy_min: Annotated[float, typer.Option(help="Keep energies from here, keV.")] = 0.5,
    energy_max: Annotated[float, typer.Option(help="... to here, keV.")] = 8.0,
    min_counts: Annotated[int, typer.Option(help="Group to at least this many counts a bin.")] = 5,
    subtract: Annotated[bool, typer.Option(help="Subtract the background.")] = True,
    group: Annotated[bool, typer.Option(help="Group the channels.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that reduce.")] = os.cpu_count() or 1,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that has other settings.")] = False,
) -> None:
    """Build a folder that load_dataset reads: Parquet shards, HDF5 file, card and manifest.

    The embedded sample is taken whole unless cuts are given. An interrupted run goes on where it was.
    """
    from builder.records import Recipe
    from builder.selection import Selection
    from builder.settings import Settings

    recipe = Recipe(energy_min, energy_max, min_counts, subtract, group)
    settings = Settings(archive, release, Selection(min_cnts, min_sig, max_theta), recipe)
    with _quiet_libraries(), _bars() as progress:
        from builder.prepare import prepare

        manifest, done = prepare(output, settings, cache=cache, workers=workers, force=force, progress=progress)
    _summary(output, manifest, done)


@app.command(epilog="Example:  chandra-spectra info chandra_spectra --detection 4938.0.43 --plot spectrum.png")
def info(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")] = Path("chandra_spectra"),
    detection: Annotated[str, typer.Option(help="Which row to show.", show_default="the first")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw its spectrum to this PNG instead.")] = None,
) -> None:
    """Show what a prepared folder holds: its numbers, one row and its spectrum."""
    from builder import plots
    from builder.prepare import read_manifest

    manifest = read_manifest(folder)
    row = plots.find_row(folder, detection)
    _summary(folder, manifest, None)
    _row(row)
    if plot is None:
        print(plots.terminal_plot(row))
    else:
        plots.save_plot(row, plot)
        print(f"\nspectrum drawn to {plot}")


def _summary(folder: Path, manifest: dict[str, Any], done: bool | None) -> None:
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
        rows = "" if file["rows"] is None else f"{file['rows']:,} rows"
        table.add_row(file["path"], _size(file["bytes"]), rows)
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


def _row(row: dict[str, Any]) -> None:
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


def _size(size: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} TB"


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
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
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done)

        yield progress


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' remarks on import (of plot back-ends and the like) off the screen."""
    logging.getLogger("sherpa").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.ERROR)
    yield
