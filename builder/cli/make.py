"""Commands that make something of an archive: prepare, catalog, download, index, serve-archive."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from builder.cli.app import (
    RECIPE,
    Archive,
    Cache,
    Columns,
    Connections,
    Interrupted,
    Patience,
    Release,
    Rmf,
    app,
    asked,
    end,
    local,
    selects,
)
from builder.cli.terminal import bars, shell_path, show_estimate, show_indexed, show_summary, show_uploaded, waiting
from builder.model.settings import (
    DEFAULT_ARCHIVE,
    DEFAULT_CONNECTIONS,
    DEFAULT_LABEL_RADIUS,
    DEFAULT_RELEASE,
    RMFS,
    Recipe,
)
from builder.simulator.habits import HABITS

if TYPE_CHECKING:
    from builder.archive import http
    from builder.model.settings import Settings

_RECIPE = Recipe()

# Those of a batch job or a container may be fewer than the machine has. macOS does not say.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command(
    epilog="Examples:  chandra-spectra prepare --archive embedded   |   "
    "chandra-spectra prepare bright --min-cnts 4000 --min-sig 80 --max-theta 1"
)
@selects
def prepare(
    output: Annotated[
        str | None,
        typer.Argument(help="Folder to write, or a URL such as s3://bucket/folder.", show_default="chandra_spectra"),
    ] = None,
    archive: Archive = DEFAULT_ARCHIVE,
    release: Release = DEFAULT_RELEASE,
    selection: Any = None,
    energy_min: Annotated[
        float, typer.Option(rich_help_panel=RECIPE, help="Lower end of the kept energies, keV.")
    ] = _RECIPE.energy_min,
    energy_max: Annotated[
        float, typer.Option(rich_help_panel=RECIPE, help="Upper end of the kept energies, keV.")
    ] = _RECIPE.energy_max,
    group_counts: Annotated[
        int, typer.Option(rich_help_panel=RECIPE, help="Minimum number of source counts in a bin.")
    ] = _RECIPE.min_counts,
    subtract: Annotated[
        bool, typer.Option(rich_help_panel=RECIPE, help="Subtraction of the background.")
    ] = _RECIPE.subtract,
    group: Annotated[bool, typer.Option(rich_help_panel=RECIPE, help="Grouping of the channels.")] = _RECIPE.group,
    splits: Annotated[
        str,
        typer.Option(help="'source' (by sky cell; other shares as 'source:70/20/10') or 'none' (all rows are train)."),
    ] = "source",
    with_responses: Annotated[
        bool, typer.Option("--with-responses", help="Response matrices as config responses, 1 MB a row.")
    ] = False,
    bins: Annotated[
        int, typer.Option(min=0, help="Number of bins of config binned, such as 64; 0 for no such config.")
    ] = 0,
    rmf: Rmf = RMFS[0],
    sources: Annotated[
        bool, typer.Option("--sources", help="Sums of the detections of each source as config sources.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            callback=local, help="File with labels of sources: a table with detection_id, name, or ra and dec."
        ),
    ] = None,
    label_radius: Annotated[
        str | None,
        typer.Option(
            metavar="ANGLE",
            help="Greatest distance of a label's position from its source, with a unit.",
            show_default="1arcsec",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Number of processes that reduce.", show_default="the cores that this process may use"
        ),
    ] = _CORES,
    connections: Connections = DEFAULT_CONNECTIONS,
    patience: Patience = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replacement of a folder that has other settings.")] = False,
    retry_rejected: Annotated[
        bool,
        typer.Option(
            "--retry-rejected", help="New try of rejected detections, but for no_background, no_counts and not_acis."
        ),
    ] = False,
    max_rejected: Annotated[
        float,
        typer.Option(min=0, max=100, help="Upper limit of the rejected part, per cent; beyond it the exit code is 3."),
    ] = 5,
    keep_downloads: Annotated[
        Path | None, typer.Option(callback=local, help="Mirror folder that keeps the downloaded files.")
    ] = None,
    cat_file: Annotated[
        Path | None,
        typer.Option(
            callback=local,
            help="Catalog file (.fits, .ecsv, .csv, .vot, .parquet, .hdf5) in place of the archive's catalog.",
        ),
    ] = None,
    columns: Columns = None,
    store: Annotated[
        str | None, typer.Option(help="Folder or fsspec URL for finished packages, in place of one in the cache.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Share I (from 0) of N that is put into the store; no folder is written."),
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers make the packages.")
    ] = None,
    file_path: Annotated[
        Path | None, typer.Option(callback=local, help="Mirror folder, the same as --archive.")
    ] = None,
    output_file: Annotated[Path | None, typer.Option(callback=local, help="Second place for the HDF5 file.")] = None,
) -> None:
    """Build a folder that load_dataset reads: Parquet shards, HDF5 file, card and manifest.

    An interrupted run goes on when it is given again. The embedded sample and a catalog file have no default cuts.
    """
    from builder.files import check_place, write_whole
    from builder.model.errors import SettingError
    from builder.model.settings import Settings
    from builder.model.sky import radius_of
    from builder.model.splits import Splits

    recipe = Recipe(energy_min, energy_max, group_counts, subtract, group)
    settings = Settings(
        str(file_path or archive),
        release,
        catalog=str(cat_file or ""),
        selection=selection,
        recipe=recipe,
        splits=Splits.parse(splits),
        responses=with_responses,
        bins=bins,
        rmf=rmf,
        columns=asked(columns),
        sources=sources,
        labels=str(labels or ""),
        label_radius=radius_of(label_radius) if label_radius else DEFAULT_LABEL_RADIUS,
    )
    means: dict[str, Any] = {"cache": cache, "workers": workers, "connections": connections, "store": store}
    means["patience"] = _patience(patience)
    if shard:
        if dask or keep_downloads or retry_rejected or output_file or force:
            raise SettingError(
                "--shard only fills the store: not with --dask, --keep-downloads, --retry-rejected, --output-file or "
                "--force"
            )
        _fill_share(settings, shard, means)
        return
    where = output or str(output_file.with_suffix("") if output_file else "chandra_spectra")
    check_place(where)
    at_url = "://" in where
    if output_file and at_url:
        raise SettingError("--output-file copies from a folder of this machine: not with an OUTPUT that is a URL")
    if dask:  # what goes wrong there ends the run with one line, and needs no tracebacks before it
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.name.startswith("distributed"))
    if output_file:
        output_file = output_file.absolute()
        if output_file.is_dir() or output_file.resolve().is_relative_to(Path(where).resolve()):
            raise SettingError(f"--output-file {output_file}: give a file, and outside of {where}")
    # Whether the second place can be written is tried at once, and not when all is done.
    with bars() as progress, write_whole(output_file) if output_file else contextlib.nullcontext() as copy:
        from builder.dataset.layout import HDF5_FILE
        from builder.prepare import prepare

        manifest, fresh = prepare(
            where,
            settings,
            force=force,
            retry_rejected=retry_rejected,
            keep_downloads=keep_downloads,
            dask=dask,
            progress=progress,
            **means,
        )
        if copy:
            shutil.copyfile(Path(where) / HDF5_FILE, copy)
    if at_url:
        show_uploaded(where.rstrip("/"), manifest, fresh)
    else:
        show_summary(Path(where), manifest, fresh)
    share = 100 * manifest.counts.rejected / manifest.counts.selected
    if share > max_rejected:
        end(
            f"{share:.1f} % of the selected spectra are rejected, more than {max_rejected:g} %: see "
            f"{where.rstrip('/')}/rejections.parquet; --retry-rejected asks again for missing or damaged files",
            3,
        )


def _patience(seconds: float | None) -> http.Patience | None:
    from builder.archive.http import Patience

    return None if seconds is None else Patience.within(seconds)


def _fill_share(settings: Settings, shard: str, means: dict[str, Any]) -> None:
    from builder.model.errors import SettingError

    index, _, number = shard.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise SettingError(f"shard {shard!r} is not I/N with I from 0 to N - 1, such as 0/4")
    with bars() as progress:
        from builder.prepare import prepare_share

        packages = prepare_share(settings, (int(index), int(number)), progress=progress, **means)
    print(f"share {shard}: {packages:,} packages are in the store; prepare without --shard assembles them")


@app.command(epilog="Example:  chandra-spectra catalog bright.parquet --min-cnts 4000 --min-sig 80 --max-theta 1")
@selects
def catalog(
    output: Annotated[Path, typer.Argument(callback=local, help="File to write: .vot, .parquet or .hdf5.")],
    archive: Archive = DEFAULT_ARCHIVE,
    release: Release = DEFAULT_RELEASE,
    selection: Any = None,
    columns: Columns = None,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Bandwidth for the estimate of time, MB/s.")] = 5.0,
    connections: Connections = DEFAULT_CONNECTIONS,
    patience: Patience = None,
    cache: Cache = None,
) -> None:
    """Write the selection to a file, and say what its download would come to."""
    from builder.dataset.catalog_file import check_ending, write_catalog
    from builder.model.settings import Settings

    check_ending(output)
    settings = Settings(archive, release, selection=selection, columns=asked(columns))
    with waiting("asking the catalog"):
        from builder.workspace import make_plan, open_workspace

        planned = make_plan(open_workspace(settings, cache, connections, patience=_patience(patience)), settings)
        write_catalog(output, planned.catalog)
    show_estimate(planned, bandwidth)
    print(f"written to {output}")


@app.command(epilog="Example:  chandra-spectra download mirror --min-cnts 4000 --min-sig 80 --max-theta 1")
@selects
def download(
    mirror: Annotated[
        Path | None, typer.Argument(callback=local, help="Mirror folder to write or to complete.")
    ] = None,
    archive: Archive = DEFAULT_ARCHIVE,
    release: Release = DEFAULT_RELEASE,
    selection: Any = None,
    rmf: Rmf = RMFS[0],
    columns: Columns = None,
    connections: Connections = DEFAULT_CONNECTIONS,
    patience: Patience = None,
    cache: Cache = None,
    output_file: Annotated[
        Path | None, typer.Option(callback=local, help="Second place for the catalog: .vot, .parquet or .hdf5.")
    ] = None,
    file_path: Annotated[Path | None, typer.Option(callback=local, help="Mirror folder, the same as MIRROR.")] = None,
) -> None:
    """Download the selection into a mirror folder, from which `prepare --archive MIRROR` builds without a network.

    A download that is interrupted goes on where it was when the same command is given again.
    """
    from builder.dataset.catalog_file import check_ending, write_catalog
    from builder.model.errors import SettingError
    from builder.model.settings import Settings

    folder = mirror or file_path
    if folder is None:
        raise SettingError("give the mirror folder to write: chandra-spectra download MIRROR")
    if output_file:
        check_ending(output_file)
    settings = Settings(archive, release, selection=selection, rmf=rmf, columns=asked(columns))
    with bars() as progress:
        from builder.archive.mirror import open_mirror
        from builder.store.fill import counter, download
        from builder.workspace import make_plan, open_workspace

        source = open_workspace(settings, cache, connections, patience=_patience(patience))
        planned = make_plan(source, settings)
        if output_file:
            write_catalog(output_file, planned.catalog)
        done = counter(progress, "download", len(planned.catalog))
        with open_mirror(folder) as target:
            target.write_catalog(planned)
            download(planned.packages, source.archive, target, connections=connections, done=done)
    print(f"{len(planned.catalog):,} detections in {folder}")
    print(f"Next:  chandra-spectra prepare --archive {shell_path(folder)}   (with the same cuts)")


@app.command(epilog="Example:  chandra-spectra index downloads mirror")
def index(
    folder: Annotated[Path, typer.Argument(callback=local, help="Folder with PHA, ARF and RMF files or tars of them.")],
    mirror: Annotated[Path, typer.Argument(callback=local, help="Mirror folder to write or to complete.")],
    cat_file: Annotated[
        Path | None, typer.Option(callback=local, help="Catalog file with rows of the detections, as for prepare.")
    ] = None,
) -> None:
    """Make a mirror of product files that are here already; its catalog comes from their headers, or from a file.

    Folders in FOLDER are looked through as well. Files are known by the archive's names for them, gzipped or not.
    """
    with bars() as progress:
        from builder.archive.mirror import CATALOG_FILE
        from builder.use.index import index

        done = index(folder, mirror, cat_file, progress)
    show_indexed(done)
    words = f"--archive {shell_path(mirror)} --cat-file {shell_path(mirror / CATALOG_FILE)}"
    print(f"\nNext:  chandra-spectra prepare {words}")


@app.command("serve-archive", epilog="Example:  chandra-spectra serve-archive --simulated 1000 --port 8000")
def serve_archive(
    mirror: Annotated[
        str, typer.Argument(help="'embedded', a mirror folder, or a file that `check --save` wrote.")
    ] = "embedded",
    simulated: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Number of simulated detections to serve in place of MIRROR.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on the loopback interface; 0 for a free one.")
    ] = 8000,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=RATE", help="Kind of a fault and its rate, such as 503=0.1; may be repeated."),
    ] = None,
    habit: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Way of answering; may be repeated: {', '.join(HABITS)}.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of the faults.")] = 0,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Row limit of the catalog.")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="Bandwidth of all answers together, MB/s.")] = None,
    latency: Annotated[
        float, typer.Option(min=0, help="Round-trip time of each connection and each request, s.")
    ] = 0.0,
    cache: Cache = None,
) -> None:
    """Serve an archive on this machine, with the addresses and the habits of the real services, to try things on."""
    from builder.simulator.faults import parse_faults
    from builder.simulator.server import ArchiveServer
    from builder.workspace import holdings

    server = ArchiveServer(
        holdings(mirror, simulated, seed, cache),
        port=port,
        faults=parse_faults(fault or [], seed),
        habits=habit or [],
        max_rows=max_rows,
        bytes_per_second=bandwidth and bandwidth * 1e6,
        latency=latency,
    )
    print(f"serving on {server.url}   (Ctrl-C ends it)")
    print(f"try:  chandra-spectra prepare --archive {server.url}", flush=True)
    with contextlib.suppress(Interrupted):
        server.serve_forever()
