"""Write the pages of docs/ that follow from the code: columns.md and command-line.md (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.main import get_command

from builder.cli.run import app
from builder.model.column import CONFIGS
from builder.model.columns import COLUMNS, DEFAULT_BINS, EBOUNDS, RESPONSES, SOURCES, binned_columns
from builder.model.schema import markdown

DOCS = Path(__file__).parents[1] / "docs"

MARK = "<!-- written by `make docs`: change builder/{source}, not this page -->\n"

COLUMNS_PAGE = """\
# Columns

What each config of a prepared folder holds. [README](../README.md#columns) has the columns that matter first, and
[recipe](recipe.md) says how the numbers are made.

| config | a row is |
| --- | --- |
{configs}

- `[n]` is a list whose length differs from row to row, `[1024]` one with a value for each PI channel,
  `[128, 64]` one of 128 lists of 64.
- Units are those of the FITS standard. Energies are in keV, `count` is a number of events.
- A null means that the catalog, or for what is read of files, such as `detnam`, the file, gives no value. HDF5 has
  NaN there, -1 in integer and boolean columns, and an empty text or list. -1 is true, and has every bit set: ask for
  `flag == 1`, `extent_code > 0`, and both of `conf_code > 0` and `conf_code & 8`.
- The fits (`powlaw_…`, `bb_…`, `brems_…`, `apec_…`) are those of the catalog's pipeline, with 68 per cent limits:
  labels to learn from, not truth. Each model is fitted to every spectrum of enough counts. Of a simulated row they are
  what it was simulated with.
- Columns of a `--cat-file` of one's own, and those of `--columns`, come last: see [regenerate](regenerate.md).
- `spectrum` and `arf` are structs of lists: `row["spectrum"]["flux"]`.

## Scalars, in `spectra`, `counts` and `binned`

{scalars}

## `spectra`: the reduced spectrum

{spectrum}

## `counts`: the channels

{channels}

## `binned`: fixed bins

Only in a folder that was prepared with `--bins N`; the lengths are those of 64 bins.
[The recipe](recipe.md#fixed-bins) has the formulas, [training](training.md#fold-a-batch-and-learn-through-it) the use.

{binned}

## `sources`

Only in a folder that was prepared with `--sources`. Its lists have the names and shapes of those of `counts`, so that
`Calibration.rebin` takes them; [the recipe](recipe.md#sources) says which detections are summed, and how.

{sources}

## `ebounds`

One row for each grid of channel energies that the rows of `counts` name; nearly all share one.

{ebounds}

## `responses`

Only in a folder that was prepared with `--with-responses`. The matrix is as sparse as in its file (OGIP
CAL/GEN/92-002): photon energy i has `n_grp[i]` groups of channels, a group has `n_chan` channels from `f_chan` on, and
`matrix` holds their probabilities, one group after the other. `Calibration.fold` in [training](training.md) unpacks it.

{responses}

## In the HDF5 file

`chandra_spectra.hdf5` has a dataset for each column of `spectra` and `counts`, under the same name but for these:

{hdf5}

Nothing is rounded there: what the catalog gives and the reduced spectrum are float64, also where Parquet has float32.
Booleans are int8; an integer column of one's own has the attribute `null` with what stands for one. Lists of length n
are variable-length datasets. Each dataset has its `description`, `source` and `unit` as attributes. The columns of
`ebounds` are in the group `ebounds`; neither the responses nor the fixed bins are in the file.
"""

COMMANDS_PAGE = """\
# Command line

`chandra-spectra --help`, and `chandra-spectra COMMAND --help`, show the same in a terminal. The words of an option may
be joined by `-` or `_`. Results go to stdout, bars and remarks to stderr.

| exit code | |
| ---: | --- |
| 0 | done |
| 1 | a known failure: one line on stderr says what, where, and what to do |
| 2 | wrong usage: no such command or option |
| 3 | `prepare` wrote the folder, but rejected more than `--max-rejected` |
| 4 | `verify` found nothing wrong, but could not look at everything |
| 130 | interrupted: the same command goes on |

| command | |
| --- | --- |
{commands}
"""


def columns_page() -> str:
    """docs/columns.md."""
    lists = [column for column in COLUMNS if column.length is not None or column.name == "ebounds_id"]
    renamed = [column for column in COLUMNS if column.hdf5_name != column.name]
    hdf5 = ["| column | dataset |", "| --- | --- |"]
    return MARK.format(source="model/columns.py") + COLUMNS_PAGE.format(
        configs="\n".join(f"| `{name}` | {text.removeprefix('one row ')} |" for name, text in CONFIGS.items()),
        scalars=markdown(tuple(column for column in COLUMNS if column not in lists)),
        spectrum=markdown(tuple(column for column in lists if column.configs == ("spectra",))),
        channels=markdown(tuple(column for column in lists if column.configs == ("counts",))),
        binned=markdown(binned_columns(DEFAULT_BINS)),
        sources=markdown(SOURCES),
        ebounds=markdown(EBOUNDS),
        responses=markdown(RESPONSES),
        hdf5="\n".join(hdf5 + [f"| `{column.name}` | `{column.hdf5_name}` |" for column in renamed]),
    )


def words(parameter: Any) -> str:
    """Write an option or argument as on the command line."""
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name).upper()
        return f"`{name}`" if parameter.required else f"`[{name}]`"
    names = ", ".join((*sorted(parameter.opts, key=len), *parameter.secondary_opts))
    return f"`{names} {parameter.metavar}`" if parameter.metavar else f"`{names}`"


def default(parameter: Any) -> str:
    """Write the default of an option; text of `show_default` stands for what depends on the machine."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.secondary_opts:
        return f"`{(parameter.opts if parameter.default else parameter.secondary_opts)[0]}`"
    return "" if parameter.default in (None, False, "") else f"`{parameter.default}`"


def section(name: str, command: Any) -> str:
    """All about one command: the options in the panels that its help has, in their order."""
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [words(parameter).strip("`") for parameter in parameters if parameter.param_type_name == "argument"]
    lines = [f"## {name}", "", command.help, "", "```", " ".join(["chandra-spectra", name, *arguments, "[OPTIONS]"])]
    lines += [text.strip() for text in command.epilog.partition(":")[2].split("  |  ")]
    lines += ["```"]
    panels: dict[str, list[Any]] = {}
    for parameter in parameters:
        panels.setdefault(parameter.rich_help_panel or "Arguments and options", []).append(parameter)
    for panel, group in panels.items():
        lines += ["", f"| {panel} | default | |", "| --- | --- | --- |"]
        lines += [f"| {words(each)} | {default(each)} | {each.help} |" for each in group]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """docs/command-line.md."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    listed = [f"| [`{name}`](#{name}) | {command.help.partition(chr(10))[0]} |" for name, command in commands.items()]
    sections = [section(name, command) for name, command in commands.items()]
    page = COMMANDS_PAGE.format(commands="\n".join(listed))
    return "\n".join([MARK.format(source="cli/") + page, *sections])


def pages() -> dict[Path, str]:
    """Write the content of each page."""
    return {DOCS / "columns.md": columns_page(), DOCS / "command-line.md": commands_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
