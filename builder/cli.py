"""The command `chandra-spectra`: it parses, calls and reports.

Results go to stdout, bars and remarks to stderr. A known failure is one line on stderr and exit code 1; wrong usage is
exit code 2.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from builder import __version__
from builder.errors import ChandraSpectraError
from builder.terminal import (
    bars,
    show_checks,
    show_estimate,
    show_row,
    show_summary,
    show_uploaded,
    size_text,
    waiting,
)

if TYPE_CHECKING:
    from builder.selection import Selection
    from builder.settings import Settings

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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except ChandraSpectraError as error:
        _end(str(error), 1)
    except Interrupted:
        _end("interrupted; what was finished is kept: run the same command again to go on", 130)


class Interrupted(BaseException):
    """Ctrl-C or a request to end. No KeyboardInterrupt: typer would end the command in its own words."""


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Interrupted


def _end(message: str, code: int) -> NoReturn:
    print(f"chandra-spectra: {message}", file=sys.stderr)
    raise SystemExit(code) from None


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


Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for finished packages and downloads.",
        show_default="$CHANDRA_SPECTRA_CACHE or ~/.cache/chandra_spectra",
    ),
]
Archive = Annotated[str, typer.Option(help="'embedded', a mirror folder, or the services' base URL.")]
Release = Annotated[str, typer.Option(help="Release of the catalog: rel2.1, rel2.0 or cur.")]
Connections = Annotated[int, typer.Option(min=1, help="Connections to the archive, of all runs with this cache.")]
_CUTS = "Selection"
_RECIPE = "Reduction"
MinCnts = Annotated[float, typer.Option(rich_help_panel=_CUTS, help="More net counts than this.")]
MinSig = Annotated[float, typer.Option(rich_help_panel=_CUTS, help="A flux significance above this.")]
MaxTheta = Annotated[float, typer.Option(rich_help_panel=_CUTS, help="Less than this off axis, arcmin.")]
ConeText = Annotated[
    str | None, typer.Option("--cone", rich_help_panel=_CUTS, metavar="RA,DEC,RADIUS", help="In this circle, degrees.")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", rich_help_panel=_CUTS, help="Of this source; may be repeated.")
]
Obsids = Annotated[
    list[int] | None, typer.Option("--obsid", rich_help_panel=_CUTS, help="In this observation; may be repeated.")
]
Detections = Annotated[
    Path | None,
    typer.Option(rich_help_panel=_CUTS, help="Only those in this file, one obsid.obi.region_id a line."),
]
Limit = Annotated[
    int | None, typer.Option(rich_help_panel=_CUTS, help="The first so many, by obsid, obi and region_id.")
]
# That of `builder.settings`, spelt out: importing it would load pyarrow for --help. A test holds the two together.
ARCHIVE = "https://cda.cfa.harvard.edu"


def _selection(
    min_cnts: float,
    min_sig: float,
    max_theta: float,
    cone: str | None,
    names: list[str] | None,
    obsids: list[int] | None,
    detections: Path | None,
    limit: int | None,
) -> Selection:
    from builder.selection import Cone, Selection, read_detections

    return Selection(
        min_cnts,
        min_sig,
        max_theta,
        Cone.parse(cone) if cone else None,
        tuple(names or ()),
        tuple(obsids or ()),
        read_detections(detections) if detections else frozenset(),
        limit,
    )


@app.command(
    epilog="Examples:  chandra-spectra prepare --archive embedded   |   "
    "chandra-spectra prepare bright --min-cnts 4000 --min-sig 80 --max-theta 1"
)
def prepare(
    output: Annotated[
        str | None,
        typer.Argument(help="Folder to write, or a URL such as s3://bucket/folder.", show_default="chandra_spectra"),
    ] = None,
    archive: Archive = ARCHIVE,
    release: Release = "rel2.1",
    min_cnts: MinCnts = 40,
    min_sig: MinSig = 4,
    max_theta: MaxTheta = 10,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    energy_min: Annotated[float, typer.Option(rich_help_panel=_RECIPE, help="Keep energies from here, keV.")] = 0.5,
    energy_max: Annotated[float, typer.Option(rich_help_panel=_RECIPE, help="... to here, keV.")] = 8.0,
    min_counts: Annotated[int, typer.Option(rich_help_panel=_RECIPE, help="Least counts in a bin.")] = 5,
    subtract: Annotated[bool, typer.Option(rich_help_panel=_RECIPE, help="Subtract the background.")] = True,
    group: Annotated[bool, typer.Option(rich_help_panel=_RECIPE, help="Group the channels.")] = True,
    splits: Annotated[
        str, typer.Option(help="'none', or 'source' for train, validation and test by sky cell ('source:70/20/10').")
    ] = "none",
    with_responses: Annotated[
        bool, typer.Option("--with-responses", help="Keep the response matrices, as config responses (1 MB a row).")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that reduce.", show_default="number of cores")
    ] = os.cpu_count() or 1,
    connections: Connections = 4,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that has other settings.")] = False,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Try again what was rejected before.")
    ] = False,
    max_rejected: Annotated[
        float, typer.Option(min=0, max=100, help="Exit with 3 where more than this part is rejected, per cent.")
    ] = 5,
    keep_downloads: Annotated[
        Path | None, typer.Option(help="Mirror folder in which to keep the files that are downloaded.")
    ] = None,
    cat_file: Annotated[
        Path | None, typer.Option(help="Catalog file (.vot, .parquet, .hdf5) in place of the archive's catalog.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL for finished packages, in place of one in the cache.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only fill the store, with share I (from 0) of N; then prepare without it."),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Let the workers of this Dask scheduler make the packages.")
    ] = None,
    file_path: Annotated[Path | None, typer.Option(help="The same as --archive, for a mirror folder.")] = None,
    output_file: Annotated[Path | None, typer.Option(help="Give the HDF5 file under this name as well.")] = None,
) -> None:
    """Build a folder that load_dataset reads: Parquet shards, HDF5 file, card and manifest.

    The embedded sample and a catalog file are taken whole unless cuts are given. An interrupted run goes on where it
    was when the same command is given again.
    """
    from builder.errors import SettingError
    from builder.records import Recipe
    from builder.settings import Settings
    from builder.splits import Splits

    selection = _selection(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    recipe = Recipe(energy_min, energy_max, min_counts, subtract, group)
    settings = Settings(str(file_path or archive), release, str(cat_file or ""), selection, recipe,
                        Splits.parse(splits), with_responses)  # fmt: skip
    if keep_downloads and (dask or shard):
        raise SettingError("--keep-downloads goes with one machine: not with --dask or --shard")
    if shard:
        if dask or retry_rejected or output_file or force:
            raise SettingError(
                "--shard only fills the store: not with --dask, --retry-rejected, --output-file or --force"
            )
        _fill_share(settings, shard, cache=cache, workers=workers, connections=connections, store=store)
        return
    where = output or str(output_file.with_suffix("") if output_file else "chandra_spectra")
    folder = where if "://" in where else Path(where)
    if output_file and isinstance(folder, str):
        raise SettingError("--output-file copies from a folder of this machine: not with an OUTPUT that is a URL")
    with bars() as progress:
        from builder.prepare import copy_hdf5, prepare
        from builder.remote_output import prepare_remote

        make: Callable[..., tuple[dict[str, Any], bool]] = prepare_remote if isinstance(folder, str) else prepare
        manifest, done = make(
            folder,
            settings,
            cache=cache,
            workers=workers,
            connections=connections,
            force=force,
            retry_rejected=retry_rejected,
            keep_downloads=keep_downloads,
            store=store,
            dask=dask,
            progress=progress,
        )
        if output_file:
            copy_hdf5(Path(folder), output_file)
    if isinstance(folder, str):
        show_uploaded(folder.rstrip("/"), manifest, done)
    else:
        show_summary(folder, manifest, done)
    counts = manifest["counts"]
    share = 100 * counts["rejected"] / counts["selected"]
    if share > max_rejected:
        _end(
            f"{share:.1f} % of the selected spectra are rejected, more than {max_rejected:g} %: see "
            f"{folder}/rejections.parquet; --retry-rejected tries them again",
            3,
        )


def _fill_share(settings: Settings, shard: str, **options: Any) -> None:
    from builder.errors import SettingError

    index, _, number = shard.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise SettingError(f"shard {shard!r} is not I/N with I from 0 to N - 1, such as 0/4")
    with bars() as progress:
        from builder.prepare import prepare_share

        packages = prepare_share(settings, (int(index), int(number)), progress=progress, **options)
    print(f"share {shard}: {packages:,} packages are in the store; prepare without --shard assembles them")


@app.command(epilog="Example:  chandra-spectra catalog bright.parquet --min-cnts 4000 --min-sig 80 --max-theta 1")
def catalog(
    output: Annotated[Path, typer.Argument(help="File to write: .vot, .parquet or .hdf5.")],
    archive: Archive = ARCHIVE,
    release: Release = "rel2.1",
    min_cnts: MinCnts = 40,
    min_sig: MinSig = 4,
    max_theta: MaxTheta = 10,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="For the estimate of time, MB/s.")] = 5.0,
    connections: Connections = 4,
    cache: Cache = None,
) -> None:
    """Write the selection to a file, and say what its download would come to."""
    from builder.catalog_files import check_ending, write_catalog
    from builder.settings import Settings

    check_ending(output)
    selection = _selection(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    settings = Settings(archive, release, selection=selection)
    with waiting("asking the catalog"):
        from builder.sources import open_source, plan_for

        planned = plan_for(open_source(settings, cache, connections), settings)
        write_catalog(output, planned.catalog)
    show_estimate(planned, bandwidth)
    print(f"written to {output}")


@app.command(epilog="Example:  chandra-spectra download mirror --min-cnts 4000 --min-sig 80 --max-theta 1")
def download(
    mirror: Annotated[Path | None, typer.Argument(help="Mirror folder to write or to complete.")] = None,
    archive: Archive = ARCHIVE,
    release: Release = "rel2.1",
    min_cnts: MinCnts = 40,
    min_sig: MinSig = 4,
    max_theta: MaxTheta = 10,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    connections: Connections = 4,
    cache: Cache = None,
    output_file: Annotated[
        Path | None, typer.Option(help="Write the catalog to this file (.vot, .parquet, .hdf5) as well.")
    ] = None,
    file_path: Annotated[Path | None, typer.Option(help="The same as the argument MIRROR.")] = None,
) -> None:
    """Download the selection into a mirror folder, from which `prepare --archive MIRROR` builds without a network.

    A download that is interrupted goes on where it was when the same command is given again.
    """
    from builder.catalog_files import check_ending, write_catalog
    from builder.errors import SettingError
    from builder.settings import Settings

    folder = mirror or file_path
    if folder is None:
        raise SettingError("give the mirror folder to write: chandra-spectra download MIRROR")
    if output_file:
        check_ending(output_file)
    selection = _selection(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    settings = Settings(archive, release, selection=selection)
    with bars() as progress:
        from builder.engine import download
        from builder.mirror import Mirror
        from builder.prepare import counter
        from builder.sources import open_source, plan_for

        source = open_source(settings, cache, connections)
        planned = plan_for(source, settings)
        if output_file:
            write_catalog(output_file, planned.catalog)
        target = Mirror(folder)
        target.write_catalog(planned)
        done = counter(progress, "download", len(planned.catalog))
        download(planned.packages, source.archive, target, connections=connections, done=done)
    print(f"{len(planned.catalog):,} detections in {folder}")
    print(f"Next:  chandra-spectra prepare --archive {folder}   (with the same cuts)")


@app.command("serve-archive", epilog="Example:  chandra-spectra serve-archive --simulated 1000 --port 8000")
def serve_archive(
    mirror: Annotated[str, typer.Argument(help="'embedded' or a mirror folder.")] = "embedded",
    simulated: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="So many simulated detections instead.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on the loopback interface; 0 for any.")] = 8000,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=RATE", help="Answer wrongly at this rate, such as 503=0.1; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulation and the faults.")] = 0,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Row limit of the catalog.")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="Of all answers together, MB/s.")] = None,
    cache: Cache = None,
) -> None:
    """Serve an archive on this machine, with the addresses and the habits of the real services, to try things on."""
    from builder.faults import parse_faults
    from builder.server import ArchiveServer
    from builder.sources import holdings

    server = ArchiveServer(
        holdings(mirror, simulated, seed, cache),
        port=port,
        faults=parse_faults(fault or [], seed),
        max_rows=max_rows,
        bytes_per_second=bandwidth and bandwidth * 1e6,
    )
    print(f"serving on {server.url}   (Ctrl-C ends it)")
    print(f"try:  chandra-spectra prepare --archive {server.url}", flush=True)
    with contextlib.suppress(Interrupted):
        server.serve_forever()


@app.command(epilog="Example:  chandra-spectra info chandra_spectra --detection 4938.0.43")
def info(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")] = Path("chandra_spectra"),
    detection: Annotated[str, typer.Option(help="Which row to show.", show_default="the first")] = "",
) -> None:
    """Show what a prepared folder holds: its numbers, one row and its spectrum."""
    from builder.folder import find_detections, read_rows, read_scalars
    from builder.plots import terminal_plot
    from builder.prepare import read_manifest

    manifest = read_manifest(folder)
    if detection:
        chosen = find_detections(folder, [detection])
    else:
        chosen = read_scalars(folder, ["detection_id"])["detection_id"].slice(0, 1).to_pylist()
    show_summary(folder, manifest, None)
    for row in read_rows(folder, chosen):
        show_row(row)
        print(terminal_plot(row))
    print(f"\nNext:  chandra-spectra report {folder}")


@app.command(
    epilog="Examples:  chandra-spectra plot chandra_spectra --detection 4938.0.43   |   "
    "chandra-spectra plot chandra_spectra --name '2CXO J231929.3+003557' -o source.pdf"
)
def plot(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    detections: Annotated[
        list[str] | None, typer.Option("--detection", help="This detection, obsid.obi.region_id; may be repeated.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="All detections of this source; may be repeated.")
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output-file", "-o", help="Draw to this .png, .pdf or .svg.", show_default="the terminal"),
    ] = None,
) -> None:
    """Draw spectra: one with its errors, counts and background, or up to 12 over each other."""
    from builder.errors import SettingError
    from builder.folder import find_detections, read_rows
    from builder.plots import check_number, save_plot, terminal_plot

    if not (detections or names):
        raise SettingError("say which spectra: --detection 4938.0.43 or --name NAME, and again for more")
    rows = read_rows(folder, check_number(find_detections(folder, detections or (), names or ())))
    if output_file is None:
        print("\n\n".join(map(terminal_plot, rows)))
    else:
        save_plot(folder, rows, output_file)
        print(f"{len(rows)} spectr{'um' if len(rows) == 1 else 'a'} drawn to {output_file}")


@app.command(epilog="Example:  chandra-spectra report chandra_spectra -o chandra_spectra.html")
def report(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    output_file: Annotated[
        Path, typer.Option("--output-file", "-o", help="File to write, outside of the folder.")
    ] = Path("report.html"),
) -> None:
    """Write one HTML page to look at a prepared folder in a browser, without a network."""
    from builder.report import write_report

    page = write_report(folder, output_file)
    print(f"{page.path}: {size_text(page.size)}, with {page.shown:,} of {page.rows:,} spectra one by one")


@app.command(epilog="Example:  chandra-spectra verify chandra_spectra --recheck 20")
def verify(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")] = Path("chandra_spectra"),
    recheck: Annotated[int, typer.Option(min=0, help="Reduce so many rows again and compare.")] = 0,
    archive: Annotated[
        str, typer.Option(help="Archive to reduce them from.", show_default="that of the manifest")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of the choice of those rows.")] = 0,
    load: Annotated[bool, typer.Option(help="Load each config with load_dataset, too.")] = True,
    cache: Cache = None,
) -> None:
    """Check a prepared folder: every file, every row, and that load_dataset reads it.

    Each failure is a line that names file, row and value; the exit code is then 1.
    """
    from datasets import disable_progress_bars

    from builder.errors import OutputError

    disable_progress_bars()
    with bars() as progress:
        from builder.verify import verify

        report = verify(folder, load=load, recheck=recheck, archive=archive, seed=seed, cache=cache, progress=progress)
    show_checks(report)
    if report.failed:
        raise OutputError(f"{folder} is not what it should be (failures: {report.failed:,})")


@app.command(epilog="Example:  chandra-spectra push chandra_spectra my-org/chandra_spectra --tag v1")
def push(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Dataset repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to; made if it is not there.", show_default="main")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Name to give to the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Verify and list files and sizes only.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Verify sizes and checksums only.")] = False,
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
        from builder.hub import push

        pushed = push(folder, repo_id, private=private, revision=revision, tag=tag, dry_run=dry_run, quick=quick,
                      progress=progress)  # fmt: skip
    for path, size in pushed.files:
        print(f"{size_text(size):>9}  {path}")
    print(f"{size_text(sum(size for _, size in pushed.files)):>9}  in {len(pushed.files)} files")
    if dry_run:
        print(f"nothing was uploaded to {repo_id}")
        return
    print(f"{'pushed to' if pushed.changed else 'all of it was there before:'} {pushed.url} ({pushed.commit[:10]})")
    at = f', revision="{tag or revision}"' if tag or revision else ""
    print(f"Next:  python -c 'from datasets import load_dataset; print(load_dataset(\"{repo_id}\"{at}))'")


@app.command(
    epilog="Examples:  chandra-spectra export chandra_spectra --layout hats   |   "
    "chandra-spectra export chandra_spectra --layout fits --detection 4938.0.43"
)
def export(
    folder: Annotated[Path, typer.Argument(help="A prepared folder.")],
    output: Annotated[
        Path | None, typer.Argument(help="Folder to write.", show_default="the folder's name and the layout")
    ] = None,
    layout: Annotated[str, typer.Option(help="healpix (HDF5 by sky pixel), hats (for LSDB) or fits (PHA files).")] = "",
    detections: Annotated[
        list[str] | None, typer.Option("--detection", help="For fits: of this detection; may be repeated.")
    ] = None,
    archive: Annotated[
        str, typer.Option(help="For fits: archive with the response files.", show_default="that of the manifest")
    ] = "",
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that is there.")] = False,
) -> None:
    """Write a prepared folder in another layout, for readers of HDF5, HATS or FITS files."""
    with bars() as progress:
        from builder.export import export

        done = export(folder, output, layout=layout, detections=detections or (), archive=archive, cache=cache,
                      force=force, progress=progress)  # fmt: skip
    print(f"{done.files:,} files, {size_text(done.size)}, in {done.folder}")
