"""Commands for a prepared folder: info, plot, report, verify, push, export."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.cli.app import Cache, app, end, local
from builder.cli.terminal import (
    bars,
    drawn_or_said,
    load_command,
    python_text,
    shell_path,
    show_check,
    show_row,
    show_summary,
)
from builder.model.text import size_text

Folder = Annotated[Path, typer.Argument(callback=local, help="Prepared folder.")]


@app.command(epilog="Example:  chandra-spectra info chandra_spectra --detection 4938.0.43")
def info(
    folder: Folder = Path("chandra_spectra"),
    detection: Annotated[
        str, typer.Option(help="Detection to show, obsid.obi.region_id.", show_default="the first")
    ] = "",
) -> None:
    """Show what a prepared folder holds: its numbers, one row and its spectrum."""
    from builder.dataset.layout import Manifest
    from builder.dataset.read import find_detections, read_rows, read_scalars
    from builder.use.plot import terminal_plot

    manifest = Manifest.read(folder)
    if detection:
        chosen = find_detections(folder, [detection])
    else:
        chosen = read_scalars(folder, ["detection_id"])["detection_id"].slice(0, 1).to_pylist()
    show_summary(folder, manifest, None)
    for row in read_rows(folder, chosen):
        show_row(row, manifest.own)
        print(drawn_or_said(terminal_plot(row)))
    print(f"\nNext:  chandra-spectra report {shell_path(folder)}")


@app.command(
    epilog="Examples:  chandra-spectra plot chandra_spectra --detection 4938.0.43   |   "
    "chandra-spectra plot chandra_spectra --name '2CXO J231929.3+003557' -o source.pdf"
)
def plot(
    folder: Folder,
    detections: Annotated[
        list[str] | None, typer.Option("--detection", help="Detection, obsid.obi.region_id; may be repeated.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Name of a source, for all of its detections; may be repeated.")
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output-file",
            "-o",
            callback=local,
            help="Picture to write: .png, .pdf or .svg.",
            show_default="the terminal",
        ),
    ] = None,
) -> None:
    """Draw spectra: to a file one with its errors, counts and background, or up to 12 over each other.

    In the terminal it is the count rate alone, one spectrum below the other.
    """
    from builder.dataset.read import find_detections, read_rows
    from builder.model.errors import SettingError
    from builder.use.plot import check_number, save_plot, terminal_plot

    if not (detections or names):
        raise SettingError("say which spectra: --detection 4938.0.43 or --name NAME, and again for more")
    rows = read_rows(folder, check_number(find_detections(folder, detections or (), names or ())))
    if output_file is None:
        print("\n\n".join(map(drawn_or_said, map(terminal_plot, rows))))
    else:
        save_plot(folder, rows, output_file)
        print(f"{len(rows)} spectr{'um' if len(rows) == 1 else 'a'} drawn to {output_file}")


@app.command(epilog="Example:  chandra-spectra report chandra_spectra -o chandra_spectra.html")
def report(
    folder: Folder,
    output_file: Annotated[
        Path, typer.Option("--output-file", "-o", callback=local, help="File to write, outside of the folder.")
    ] = Path("report.html"),
) -> None:
    """Write one HTML page to look at a prepared folder in a browser, without a network."""
    from builder.use.report import write_report

    page = write_report(folder, output_file)
    print(f"{page.path}: {size_text(page.size)}, with {page.shown:,} of {page.rows:,} spectra one by one")


@app.command(epilog="Example:  chandra-spectra verify chandra_spectra --recheck 20")
def verify(
    folder: Folder = Path("chandra_spectra"),
    recheck: Annotated[int, typer.Option(min=0, help="Number of rows to reduce again and compare.")] = 0,
    archive: Annotated[str, typer.Option(help="Archive for --recheck.", show_default="that of the manifest")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the choice of these rows.")] = 0,
    load: Annotated[bool, typer.Option(help="Loading of each config with load_dataset.")] = True,
    cache: Cache = None,
) -> None:
    """Check a prepared folder: every file, every row, and that load_dataset reads it.

    Each failure is a line that names file, row and value; the exit code is then 1. It is 4 where nothing failed, but
    something could not be looked at, as a disk was full or the archive did not answer.
    """
    from datasets import disable_progress_bars

    from builder.model.errors import OutputError

    disable_progress_bars()
    with bars() as progress:
        from builder.use.verify import verify

        report = verify(
            folder,
            load=load,
            recheck=recheck,
            archive=archive,
            seed=seed,
            cache=cache,
            progress=progress,
            done=show_check,
        )
    if report.failed:
        raise OutputError(f"{folder} is not what it should be (failures: {report.failed:,})")
    if report.unseen:
        end(f"{folder} could not be verified to the end: {report.unseen[0]}", 4)


@app.command(epilog="Example:  chandra-spectra push chandra_spectra my-org/chandra_spectra --tag v1")
def push(
    folder: Folder,
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Dataset repository; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Privacy of the repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch of the repository; made if it does not exist.", show_default="main")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Verification and a list of files and sizes, without a push.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Verification of sizes and checksums only.")] = False,
    keep_card: Annotated[
        bool, typer.Option("--keep-card", help="Acceptance of a card that was edited since; the manifest follows it.")
    ] = False,
) -> None:
    """Verify a prepared folder and upload it to a Hugging Face hub.

    The token is that of `hf auth login`, or HF_TOKEN. A push that was cut off goes on when the same command is given
    again.
    """
    import datasets
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("huggingface_hub.hf_api").setLevel(logging.ERROR)  # that nothing changed is said below
    if not sys.stderr.isatty():
        disable_progress_bars()
    with bars() as progress:
        from builder.use.push import push

        pushed = push(
            folder,
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            dry_run=dry_run,
            quick=quick,
            keep_card=keep_card,
            progress=progress,
        )
    for path, size in pushed.files:
        print(f"{size_text(size):>9}  {path}")
    print(f"{size_text(sum(size for _, size in pushed.files)):>9}  in {len(pushed.files)} files")
    if dry_run:
        print(f"nothing was uploaded to {repo_id}")
        return
    print(f"{'pushed to' if pushed.changed else 'all of it was there before:'} {pushed.url} ({pushed.commit[:10]})")
    at = f", revision={python_text(tag or revision or '')}" if tag or revision else ""
    print(f"Next:  {load_command(repo_id, at)}")


@app.command(
    epilog="Examples:  chandra-spectra export chandra_spectra --layout hats   |   "
    "chandra-spectra export chandra_spectra --layout fits --detection 4938.0.43"
)
def export(
    folder: Folder,
    output: Annotated[
        Path | None,
        typer.Argument(callback=local, help="Folder to write.", show_default="the folder's name and the layout"),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Layout: healpix (HDF5 by sky pixel), hats (for LSDB) or fits (PHA files).")
    ] = "",
    detections: Annotated[
        list[str] | None, typer.Option("--detection", help="Detection for --layout fits; may be repeated.")
    ] = None,
    archive: Annotated[
        str,
        typer.Option(help="Archive with the response files for --layout fits.", show_default="that of the manifest"),
    ] = "",
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replacement of an earlier export.")] = False,
) -> None:
    """Write a prepared folder in another layout, for readers of HDF5, HATS or FITS files."""
    with bars() as progress:
        from builder.use.export import export

        done = export(
            folder,
            output,
            layout=layout,
            detections=detections or (),
            archive=archive,
            cache=cache,
            force=force,
            progress=progress,
        )
    print(f"{done.files:,} files, {size_text(done.size)}, in {done.folder}")
