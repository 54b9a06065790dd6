"""The frame of the command `chandra-spectra`: the app, the options that several commands share, and how a run ends."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from builder import __version__
from builder.model.errors import SettingError
from builder.model.releases import RELEASES
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_CUTS, RMFS
from builder.model.sky import Cone, radius_of
from builder.model.text import is_url

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


class Interrupted(BaseException):
    """Ctrl-C or a request to end. No KeyboardInterrupt: typer would end the command in its own words."""


def end(message: str, code: int) -> NoReturn:
    """End the run with one line on stderr."""
    print(f"chandra-spectra: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def _version(value: bool) -> None:
    if value:
        print(f"chandra-spectra {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version of the program.")
    ] = False,
) -> None:
    pass


def local(path: Path | None) -> Path | None:
    """Return a path as it is given; SettingError for a URL, which would be taken for a folder of that name."""
    if path is not None and is_url(str(path)):
        raise SettingError(f"{str(path).replace(':/', '://', 1)} is a URL: give a path on this machine")
    return path


Cache = Annotated[
    Path | None,
    typer.Option(
        callback=local,
        help="Folder for finished packages and downloads.",
        show_default="$CHANDRA_SPECTRA_CACHE or ~/.cache/chandra_spectra",
    ),
]
Archive = Annotated[str, typer.Option(help="'embedded', a mirror folder, or the base URL of the services.")]
Release = Annotated[str, typer.Option(help=f"Release of the catalog: {', '.join(RELEASES)}, or a later one.")]
Connections = Annotated[
    int, typer.Option(min=1, help="Maximum number of open connections, of all runs that share the cache.")
]
Patience = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="Time after which one request to the archive is given up, s.",
        show_default="900, and 40 for a host that was never reached",
    ),
]
Rmf = Annotated[
    str,
    typer.Option(
        metavar="|".join(RMFS),
        help="Detections whose RMF is downloaded: each, or one an observation, whose channel energies serve the others "
        "(about a tenth of the bytes).",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN,...",
        help="Further columns of the catalog, of its sources (m.gal_l) and of its detections (o.apec_z).",
    ),
]
CUTS, RECIPE = "Selection", "Reduction"  # panels of --help


def _cut(setting: str, text: str) -> Any:
    """Make the option of a cut; only the catalog of an archive has a default."""
    return typer.Option(rich_help_panel=CUTS, help=text, show_default=f"{DEFAULT_CUTS[setting]:g}")


def selection_of(
    min_cnts: Annotated[float | None, _cut("min_cnts", "Lower limit of the net counts, 0.5-7 keV.")] = None,
    min_sig: Annotated[float | None, _cut("min_sig", "Lower limit of the flux significance (S/N), 0.5-7 keV.")] = None,
    max_theta: Annotated[float | None, _cut("max_theta", "Upper limit of the off-axis angle, arcmin.")] = None,
    cone: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CUTS,
            metavar="RA,DEC,RADIUS",
            help="Circle on the sky: degrees, or as 23:19:29.3,+00:35:57,1arcmin.",
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(rich_help_panel=CUTS, help="Name of a source; may be repeated.")
    ] = None,
    obsid: Annotated[
        list[int] | None, typer.Option(rich_help_panel=CUTS, help="Number of an observation; may be repeated.")
    ] = None,
    detections: Annotated[
        Path | None,
        typer.Option(
            callback=local, rich_help_panel=CUTS, help="File with a list of detections, one obsid.obi.region_id a line."
        ),
    ] = None,
    positions: Annotated[
        Path | None,
        typer.Option(
            callback=local,
            rich_help_panel=CUTS,
            help="File with positions, whose nearest sources are taken: a table with ra and dec, or RA DEC a line.",
        ),
    ] = None,
    radius: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CUTS,
            metavar="ANGLE",
            help="Greatest separation of a source from its position, with a unit.",
            show_default="2arcsec",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(rich_help_panel=CUTS, help="Maximum number of detections, the first by obsid, obi and region_id."),
    ] = None,
) -> Selection:
    """Make a selection of its options; SettingError for a wrong one."""
    from builder.dataset.catalog_file import read_detections
    from builder.dataset.positions import read_positions

    circle = Cone.parse(cone) if cone else None
    listed = read_detections(detections) if detections else frozenset()
    places = read_positions(positions) if positions else ()
    within = radius_of(radius) if radius else None
    names, obsids = tuple(name or ()), tuple(obsid or ())
    return Selection(min_cnts, min_sig, max_theta, circle, names, obsids, listed, limit, places, within)


def asked(columns: str | None) -> tuple[str, ...]:
    """Divide the words of `--columns`."""
    return tuple(filter(None, (word.strip() for word in (columns or "").split(","))))


def selects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `selection_of` in the place of its parameter `selection`."""
    signature, group = (inspect.signature(each, eval_str=True) for each in (command, selection_of))
    parameters = [
        own
        for parameter in signature.parameters.values()
        for own in (group.parameters.values() if parameter.name == "selection" else [parameter])
    ]

    @functools.wraps(command)
    def run(**options: Any) -> None:
        chosen = {name: options.pop(name) for name in group.parameters}
        command(selection=selection_of(**chosen), **options)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
