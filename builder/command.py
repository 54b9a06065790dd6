"""The frame of the command `chandra-spectra`: the app, the options that several commands share, and how a run ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from builder import __version__
from builder.errors import SettingError
from builder.words import is_url

if TYPE_CHECKING:
    from builder.selection import Selection

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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def local(path: Path | None) -> Path | None:
    """A path as it is given; SettingError for a URL, which would be taken for a folder of that name."""
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
Archive = Annotated[
    str,
    typer.Option(help="'embedded', a mirror folder, or the services' base URL.", show_default="cda.cfa.harvard.edu"),
]
Release = Annotated[str, typer.Option(help="Release of the catalog: rel2.1, rel2.0 or cur.")]
Connections = Annotated[int, typer.Option(min=1, help="Connections to the archive, of all runs with this cache.")]
Patience = Annotated[
    float | None,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="Time after which one request to the archive is given up, s.",
        show_default="900, and 40 for a host that was never reached",
    ),
]
CUTS, RECIPE = "Selection", "Reduction"  # panels of --help
# Defaults: those of `builder.settings.DEFAULT_CUTS`, which only an archive's own catalog has.
MinCnts = Annotated[
    float | None, typer.Option(rich_help_panel=CUTS, help="More net counts than this.", show_default="40")
]
MinSig = Annotated[
    float | None, typer.Option(rich_help_panel=CUTS, help="A flux significance above this.", show_default="4")
]
MaxTheta = Annotated[
    float | None, typer.Option(rich_help_panel=CUTS, help="Less than this off axis, arcmin.", show_default="10")
]
ConeText = Annotated[
    str | None, typer.Option("--cone", rich_help_panel=CUTS, metavar="RA,DEC,RADIUS", help="In this circle, degrees.")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", rich_help_panel=CUTS, help="Of this source; may be repeated.")
]
Obsids = Annotated[
    list[int] | None, typer.Option("--obsid", rich_help_panel=CUTS, help="In this observation; may be repeated.")
]
Detections = Annotated[
    Path | None,
    typer.Option(callback=local, rich_help_panel=CUTS, help="Only those in this file, one obsid.obi.region_id a line."),
]
Limit = Annotated[
    int | None, typer.Option(rich_help_panel=CUTS, help="The first so many, by obsid, obi and region_id.")
]
# That of `builder.settings`, spelt out: importing it would load pyarrow for --help. A test holds the two together.
ARCHIVE = "https://cda.cfa.harvard.edu"


def selection_of(
    min_cnts: float | None,
    min_sig: float | None,
    max_theta: float | None,
    cone: str | None,
    names: list[str] | None,
    obsids: list[int] | None,
    detections: Path | None,
    limit: int | None,
) -> Selection:
    """What the options of a selection come to; SettingError for a wrong one."""
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
