"""Commands that make something of an archive: prepare, catalog, download, serve-archive."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from builder.command import (
    ARCHIVE,
    RECIPE,
    Archive,
    Cache,
    ConeText,
    Connections,
    Detections,
    Interrupted,
    Limit,
    MaxTheta,
    MinCnts,
    MinSig,
    Names,
    Obsids,
    Patience,
    Release,
    app,
    end,
    local,
    selection_of,
)
from builder.terminal import bars, show_estimate, show_summary, show_uploaded, waiting

if TYPE_CHECKING:
    from builder import client
    from builder.settings import Settings

# Those of a batch job or a container may be fewer than the machine has. macOS does not say.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    min_cnts: MinCnts = None,
    min_sig: MinSig = None,
    max_theta: MaxTheta = None,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    energy_min: Annotated[float, typer.Option(rich_help_panel=RECIPE, help="Keep energies from here, keV.")] = 0.5,
    energy_max: Annotated[float, typer.Option(rich_help_panel=RECIPE, help="... to here, keV.")] = 8.0,
    min_counts: Annotated[int, typer.Option(rich_help_panel=RECIPE, help="Least counts in a bin.")] = 5,
    subtract: Annotated[bool, typer.Option(rich_help_panel=RECIPE, help="Subtract the background.")] = True,
    group: Annotated[bool, typer.Option(rich_help_panel=RECIPE, help="Group the channels.")] = True,
    splits: Annotated[
        str, typer.Option(help="'none', or 'source' for train, validation and test by sky cell ('source:70/20/10').")
    ] = "none",
    with_responses: Annotated[
        bool, typer.Option("--with-responses", help="Keep the response matrices, as config responses (1 MB a row).")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that reduce.", show_default="the cores that this process may use")
    ] = _CORES,
    connections: Connections = 4,
    patience: Patience = None,
    cache: Cache = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that has other settings.")] = False,
    retry_rejected: Annotated[
        bool,
        typer.Option(
            "--retry-rejected", help="Try again what was rejected, other than for no_background and no_counts."
        ),
    ] = False,
    max_rejected: Annotated[
        float, typer.Option(min=0, max=100, help="Exit with 3 where more than this part is rejected, per cent.")
    ] = 5,
    keep_downloads: Annotated[
        Path | None, typer.Option(callback=local, help="Mirror folder in which to keep the files that are downloaded.")
    ] = None,
    cat_file: Annotated[
        Path | None,
        typer.Option(callback=local, help="Catalog file (.vot, .parquet, .hdf5) in place of the archive's catalog."),
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
    file_path: Annotated[
        Path | None, typer.Option(callback=local, help="The same as --archive, for a mirror folder.")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option(callback=local, help="Give the HDF5 file under this name as well.")
    ] = None,
) -> None:
    """Build a folder that load_dataset reads: Parquet shards, HDF5 file, card and manifest.

    An interrupted run goes on when it is given again. The embedded sample and a catalog file have no default cuts.
    """
    from builder.errors import SettingError
    from builder.filesystems import check_place
    from builder.records import Recipe
    from builder.settings import Settings
    from builder.splits import Splits

    selection = selection_of(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    recipe = Recipe(energy_min, energy_max, min_counts, subtract, group)
    settings = Settings(
        str(file_path or archive), release, str(cat_file or ""), selection, recipe, Splits.parse(splits), with_responses
    )
    if shard:
        if dask or keep_downloads or retry_rejected or output_file or force:
            raise SettingError(
                "--shard only fills the store: not with --dask, --keep-downloads, --retry-rejected, --output-file or "
                "--force"
            )
        _fill_share(
            settings,
            shard,
            cache=cache,
            workers=workers,
            connections=connections,
            store=store,
            patience=_patience(patience),
        )
        return
    where = output or str(output_file.with_suffix("") if output_file else "chandra_spectra")
    check_place(where)
    folder = where if "://" in where else Path(where)
    if output_file and isinstance(folder, str):
        raise SettingError("--output-file copies from a folder of this machine: not with an OUTPUT that is a URL")
    if dask:  # what goes wrong there ends the run with one line, and needs no tracebacks before it
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.name.startswith("distributed"))
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
            patience=_patience(patience),
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
        end(
            f"{share:.1f} % of the selected spectra are rejected, more than {max_rejected:g} %: see "
            f"{str(folder).rstrip('/')}/rejections.parquet; --retry-rejected asks again for missing or damaged files",
            3,
        )


def _patience(seconds: float | None) -> client.Patience | None:
    from builder.client import Patience

    return None if seconds is None else Patience.within(seconds)


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
    output: Annotated[Path, typer.Argument(callback=local, help="File to write: .vot, .parquet or .hdf5.")],
    archive: Archive = ARCHIVE,
    release: Release = "rel2.1",
    min_cnts: MinCnts = None,
    min_sig: MinSig = None,
    max_theta: MaxTheta = None,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="For the estimate of time, MB/s.")] = 5.0,
    connections: Connections = 4,
    patience: Patience = None,
    cache: Cache = None,
) -> None:
    """Write the selection to a file, and say what its download would come to."""
    from builder.catalog_files import check_ending, write_catalog
    from builder.settings import Settings

    check_ending(output)
    selection = selection_of(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    settings = Settings(archive, release, selection=selection)
    with waiting("asking the catalog"):
        from builder.sources import open_source, plan_for

        planned = plan_for(open_source(settings, cache, connections, patience=_patience(patience)), settings)
        write_catalog(output, planned.catalog)
    show_estimate(planned, bandwidth)
    print(f"written to {output}")


@app.command(epilog="Example:  chandra-spectra download mirror --min-cnts 4000 --min-sig 80 --max-theta 1")
def download(
    mirror: Annotated[
        Path | None, typer.Argument(callback=local, help="Mirror folder to write or to complete.")
    ] = None,
    archive: Archive = ARCHIVE,
    release: Release = "rel2.1",
    min_cnts: MinCnts = None,
    min_sig: MinSig = None,
    max_theta: MaxTheta = None,
    cone: ConeText = None,
    names: Names = None,
    obsids: Obsids = None,
    detections: Detections = None,
    limit: Limit = None,
    connections: Connections = 4,
    patience: Patience = None,
    cache: Cache = None,
    output_file: Annotated[
        Path | None,
        typer.Option(callback=local, help="Write the catalog to this file (.vot, .parquet, .hdf5) as well."),
    ] = None,
    file_path: Annotated[Path | None, typer.Option(callback=local, help="The same as the argument MIRROR.")] = None,
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
    selection = selection_of(min_cnts, min_sig, max_theta, cone, names, obsids, detections, limit)
    settings = Settings(archive, release, selection=selection)
    with bars() as progress:
        from builder.engine import download
        from builder.mirror import open_mirror
        from builder.prepare import counter
        from builder.sources import open_source, plan_for

        source = open_source(settings, cache, connections, patience=_patience(patience))
        planned = plan_for(source, settings)
        if output_file:
            write_catalog(output_file, planned.catalog)
        done = counter(progress, "download", len(planned.catalog))
        with open_mirror(folder) as target:
            target.write_catalog(planned)
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
