"""The documentation: its Python runs, its commands and links are there, its generated pages are those of the code."""

from __future__ import annotations

import json
import math
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from builder.cli.run import app
from builder.model.columns import COLUMNS, EBOUNDS, RESPONSES, binned_columns
from builder.use.export import export
from tests.goldens import GOLDENS
from tests.runs import Run, python

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCED = re.compile(r"(?P<mark><!-- not run: [^\n]+ -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```\n", re.M | re.S)
PROSE = {page: FENCED.sub(lambda match: "\n" * match[0].count("\n"), text) for page, text in PAGES.items()}
COMMAND: Any = get_command(app)


@dataclass(frozen=True)
class Block:
    """Python of a page, and what the page says that it prints: a `text` block right after it."""

    page: str
    line: int
    code: str
    printed: str | None
    marked: bool


def blocks() -> Iterator[Block]:
    for page, text in PAGES.items():
        found = list(FENCED.finditer(text))
        for match, following in zip_longest(found, found[1:]):
            if match["kind"] == "python":
                shown = following is not None and following["kind"] == "text"
                shown = shown and not text[match.end() : following.start()].strip()
                line = text.count("\n", 0, match.start("text"))
                printed = following["text"] if shown else None
                yield Block(page, line, match["text"], printed, match["mark"] is not None)


BLOCKS = list(blocks())
RUN = [block for block in BLOCKS if not block.marked]
NEED_TORCH = {block.page for block in RUN if "torch" in block.code}


# --- the Python in the pages


@pytest.fixture(scope="module")
def desk(full_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, as the pages ask for: with what `make sample` makes and its exports."""
    desk = tmp_path_factory.mktemp("docs")
    (desk / "chandra_spectra").symlink_to(full_sample)
    for layout in ("healpix", "hats", "fits"):
        options: dict[str, Any] = {"detections": list(GOLDENS), "archive": "embedded"} if layout == "fits" else {}
        export(full_sample, desk / f"chandra_spectra_{layout}", layout=layout, **options)
    return desk


# Blocks of a page share their names, pages do not. The code is padded, so that a traceback has the page's lines.
RUNNER = """
import contextlib, io, json, sys
printed, page = [], None
for block in json.load(sys.stdin):
    if block["page"] != page:
        page, names = block["page"], {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\\n" * block["line"] + block["code"], page, "exec"), names)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


TRAINED = re.compile(r"\b(model|again)\(")
"""Calls of the tutorial's network, which other processors and versions of torch train to another end."""


def same(word: str, other: str, margin: float = 1e-9, part: float = 0.01) -> bool:
    """Equal, or numbers with a decimal point that other processors and versions may give a little differently."""
    try:
        return word == other or ("." in word and math.isclose(float(word), float(other), rel_tol=part, abs_tol=margin))
    except ValueError:
        return False


def test_small_numbers_are_compared_as_closely_as_large_ones() -> None:
    assert same("0.00662743", "0.00662744") and same("15.12", "15.13") and same("0.0", "1e-12")
    for word, other in (("0.00662743", "0.00670"), ("0.53", "0.54"), ("-0.37", "0.37"), ("41", "40"), ("1.0", "one")):
        assert not same(word, other)


@pytest.mark.parametrize("torch", [False, True], ids=["pages without torch", "pages with torch"])
def test_the_python_of_every_page_runs_and_prints_what_the_page_says(torch: bool, desk: Path, tmp_path: Path) -> None:
    chosen = [block for block in RUN if (block.page in NEED_TORCH) is torch]
    task = [{"page": block.page, "line": block.line, "code": block.code} for block in chosen]
    environment = {"HF_HOME": str(tmp_path), "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    wrong = []
    for block, printed in zip(chosen, python(RUNNER, cwd=desk, stdin=json.dumps(task), **environment), strict=True):
        said, found = (block.printed or "").split(), printed.split()
        close = partial(same, margin=0.1 if TRAINED.search(block.code) else 1e-9)
        if block.printed is not None and not (len(said) == len(found) and all(map(close, said, found))):
            wrong.append(f"{block.page}, line {block.line}, prints\n{printed}")
    assert not wrong, "\n".join(wrong)


def test_few_blocks_are_not_run() -> None:
    assert len([block for block in BLOCKS if block.marked]) <= 5
    assert len(RUN) > 30


# --- what consoles show

MAKE = {
    "make sample": "chandra-spectra prepare chandra_spectra --archive embedded --with-responses --bins 64 --sources "
    "--labels examples/sample_classes.csv"
}
OFFLINE = re.compile(r"chandra-spectra (prepare|info|plot|report|verify|export|push .* --dry-run)")


@dataclass(frozen=True)
class Typed:
    """A command after a `$`, and the lines that a page shows below it: `...` stands for any, `…` for setting up."""

    page: str
    words: list[str]
    shown: list[str]


def typed() -> Iterator[Typed]:
    for page, text in PAGES.items():
        for match in FENCED.finditer(text):
            for part in re.split(r"^\$ ", match["text"], flags=re.M)[1:]:
                line, *shown = part.splitlines()
                if OFFLINE.match(line := MAKE.get(line, line)) and shown:
                    yield Typed(page, shlex.split(line)[1:], [each for each in shown if not each.endswith("…")])


CONSOLES = list(typed())


def agree(shown: list[str], printed: list[str]) -> bool:
    """Line by line, with room for sizes by other versions of what writes the files."""
    if not shown:
        return not printed
    if shown[0] == "...":
        return any(agree(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    pairs = zip_longest(shown[0].split(), printed[0].split() if printed else (), fillvalue="")
    return all(same(*pair, margin=0.1, part=0.05) for pair in pairs) and agree(shown[1:], printed[1:])


def test_lines_of_a_console_agree_but_for_what_is_left_out() -> None:
    assert agree(["a 2.8 kB", "...", "c"], ["a 2.9 kB", "b", "b", "c"]) and agree(["...", "c"], ["c"])
    for printed in (["a"], ["a 2.8 kB"], ["a 3.0 kB", "c"], ["a 2.8 kB", "c", "d"], ["a 2.8 kB x", "c"]):
        assert not agree(["a 2.8 kB", "...", "c"], printed)


def test_the_consoles_of_the_pages_show_what_the_commands_print(full_sample: Path, tmp_path: Path) -> None:
    assert {console.words[0] for console in CONSOLES} >= {"prepare", "plot", "report", "verify", "push"}
    (tmp_path / "chandra_spectra").symlink_to(full_sample)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    runs = [Run(*console.words, cwd=tmp_path) for console in CONSOLES]  # all at once
    ended = [run.wait() for run in runs]
    for console, done in zip(CONSOLES, ended, strict=True):
        assert done.returncode == 0, done.stderr
        assert agree(console.shown, done.stdout.splitlines()), f"{console.page} shows other than\n{done.stdout}"


# --- commands

LINES = [
    (page, line)
    for page, text in PAGES.items()
    for match in FENCED.finditer(text)
    if match["kind"] != "python"
    for line in match["text"].replace("\\\n", " ").splitlines()
]
INLINE = [(page, code) for page, text in PROSE.items() for code in re.findall(r"`([^`\n]+)`", text)]
TYPED = [
    (page, found[1], line in LINES)
    for line in LINES + INLINE
    for page, text in [line]
    if (found := re.search(r"(?:^|[\s/])chandra-spectra ([^#|(]*[^#|(\s])", text))
]


def parse(words: list[str], complete: bool) -> None:
    """Parse what follows `chandra-spectra`, as the command does, without running it."""
    try:
        context = COMMAND.make_context("chandra-spectra", words)
        name, command, rest = COMMAND.resolve_command(context, [*context._protected_args, *context.args])
        command.make_context(name, rest, parent=context)
    except Exception as error:
        if type(error).__name__ == "Exit" or (type(error).__name__ == "MissingParameter" and not complete):
            return  # --help and --version end here; words within a sentence need not be a whole command
        raise AssertionError(f"{' '.join(words)}: {getattr(error, 'message', error)}") from error


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_in_the_docs_parses(page: str) -> None:
    for where, text, complete in TYPED:
        if where == page and "COMMAND" not in text and "OPTIONS" not in text:
            parse(shlex.split(text), complete)


def test_the_commands_of_the_docs_are_checked_for_real() -> None:
    assert len(TYPED) > 40
    for wrong in (["prepare", "--plots"], ["prepair"], ["prepare", "--limit", "many"], ["push", "folder"]):
        with pytest.raises(AssertionError, match=wrong[0]):
            parse(wrong, complete=True)


OTHERS = {"--no-deps"}
"""Options in the docs that are not of `chandra-spectra`."""


def test_every_option_that_the_docs_name_is_there() -> None:
    known = {
        name
        for command in COMMAND.commands.values()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "--version"}
    benchmarks = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    for page, code in INLINE:
        for option in re.findall(r"^(--[a-z-]+)", code):
            assert option in known | OTHERS or f'"{option}"' in benchmarks, f"{page}: {code}"


def test_every_target_of_make_that_the_docs_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {name for _, text in LINES + INLINE for name in re.findall(r"^make ([a-z-]+)", text)}
    assert "sample" in named
    assert named <= targets


# --- pages that are written from the code, tables, links


def test_the_generated_pages_are_those_of_the_code() -> None:
    pages = runpy.run_path(str(ROOT / "tools" / "reference.py"))["pages"]()
    assert {path.name for path in pages} == {"columns.md", "command-line.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: make docs"


def test_the_columns_of_the_readme_are_columns() -> None:
    table = PAGES["README.md"].partition("## Columns")[2].partition("\n\n`")[0]
    rows = [line.split("|")[1:5] for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    declared = {column.name: column for column in COLUMNS}
    for names, types, *_ in rows:
        first, *others = re.findall(r"`([\w.]+)`", names)
        struct = f"{first.partition('.')[0]}." if "." in first else ""
        found = [declared[first], *(declared[struct + name] for name in others)]
        assert {column.dtype for column in found} == set(re.findall(r"[a-z]\w+", types)), names


def anchors(text: str) -> set[str]:
    """The names that hubs give to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_picture_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


def test_every_page_is_in_the_index() -> None:
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"]({Path(page).name})" in PAGES["docs/README.md"], page
    assert "](docs/README.md)" in PAGES["README.md"]


def test_every_picture_of_the_docs_is_shown_and_small() -> None:
    for picture in (ROOT / "docs" / "images").iterdir():
        assert any(f"images/{picture.name})" in text for text in PAGES.values()), picture.name
        assert picture.stat().st_size < 60_000, picture.name


def test_lines_of_prose_fit_a_screen() -> None:
    for page, text in PROSE.items():
        for number, line in enumerate(text.splitlines(), 1):
            assert len(line) <= 130 or line.startswith("|"), f"{page}: {number}: {line[:40]}"


def test_every_column_is_in_the_reference() -> None:
    for column in (*COLUMNS, *binned_columns(64), *EBOUNDS, *RESPONSES):
        assert f"| `{column.name}` | {column.dtype}" in PAGES["docs/columns.md"]
