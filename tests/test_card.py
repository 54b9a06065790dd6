"""The card: what the hub reads of it, what it says, and what it shows."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_dataset_builder
from datasets.exceptions import NonMatchingSplitsSizesError
from huggingface_hub import DatasetCard, DatasetCardData, metadata_load
from matplotlib.figure import Figure
from PIL import Image

from builder.cli.run import app
from builder.dataset import card as card_module
from builder.dataset.card import write_card
from builder.dataset.layout import DATA_FILES, Counts, Entry, Manifest
from builder.dataset.pictures import _hardness, draw_pictures, energy_axis
from builder.dataset.shards import ShardWriter
from builder.dataset.summary import SCALARS, Summary
from builder.dataset.words import selection_words
from builder.model.columns import COLUMNS, EBOUNDS, RESPONSES, binned_columns, configs_with
from builder.model.ids import DetectionId
from builder.model.records import REASONS
from builder.model.schema import features, markdown
from builder.model.selection import Selection
from builder.model.settings import Recipe, Settings
from builder.model.sky import Cone
from builder.model.splits import Splits
from builder.model.text import size_text
from builder.prepare import prepare
from tests.runs import python

ACKNOWLEDGEMENT = (
    "This research has made use of data obtained from the Chandra Source Catalog, provided by the Chandra X-ray Center "
    "(CXC) as part of the Chandra Data Archive."
)
PICTURES = ["spectra", "sky", "distributions", "hardness"]


@pytest.fixture(scope="module")
def text(sample: Path) -> str:
    return (sample / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def prose(text: str) -> str:
    return " ".join(text.partition("\n---\n")[2].split())


def assert_links(folder: Path) -> None:
    """Whatever the card points to in its folder is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (folder / "README.md").read_text()):
        assert "://" in target or (folder / target).is_file(), target


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").iterdir())


# what the hub reads


def test_the_metadata_are_what_the_hub_knows(sample: Path) -> None:
    data = metadata_load(sample / "README.md")
    assert data is not None
    assert DatasetCardData(**data).to_dict() == DatasetCard.load(sample / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "chandra-source-catalog")
    assert data["license_link"].startswith("https://cxc.cfa.harvard.edu/csc/")
    assert re.fullmatch(r"[a-z0-9.-]+", data["license_name"])
    assert data["pretty_name"]
    assert {"astronomy", "x-ray"} <= set(data["tags"])
    assert data["source_datasets"] == ["original"]
    from datasets.utils.metadata import known_task_ids

    assert set(data["task_categories"]) <= set(known_task_ids)
    words = Path(datasets.__file__).parent / "utils" / "resources"
    assert set(data["size_categories"]) <= set(json.loads((words / "size_categories.json").read_text()))
    assert set(data["annotations_creators"]) <= set(json.loads((words / "creators.json").read_text())["annotations"])


@pytest.mark.parametrize(
    ("rows", "word"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (130_000, "100K<n<1M")]
)
def test_the_size_category_is_the_hubs(rows: int, word: str) -> None:
    assert card_module._size_category(rows) == word


@pytest.mark.parametrize("config", configs_with(False))
def test_datasets_reads_features_files_and_sizes_from_the_card(sample: Path, tmp_path: Path, config: str) -> None:
    files = [file for file in Manifest.read(sample).files if file.path.startswith(f"{DATA_FILES[config]}/")]
    builder = load_dataset_builder(str(sample), config, cache_dir=str(tmp_path))
    info = builder.info
    assert info.features == features(config)
    assert list(info.splits) == ["train"]
    assert info.splits["train"].num_examples == sum(file.rows or 0 for file in files)
    assert info.download_size == sum(file.bytes for file in files)
    recorded = info.splits["train"].num_bytes
    assert info.dataset_size == recorded
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_bytes == recorded  # what datasets itself counts


def test_the_default_config_is_spectra(sample: Path, tmp_path: Path) -> None:
    assert load_dataset_builder(str(sample), cache_dir=str(tmp_path)).config.name == "spectra"


# what it says


def test_the_numbers_are_those_of_the_manifest_and_add_up(sample: Path, text: str) -> None:
    counts = Manifest.read(sample).counts
    table = dict(re.findall(r"^\| (\w[\w ]*) \| ([\d,]+) \|$", text, re.MULTILINE))
    splits = re.findall(r"^\| `(\w+)` \| (\d+) % \| ([\d,]+) \|$", text, re.MULTILINE)
    assert [(split, int(share)) for split, share, _ in splits] == [("train", 80), ("validation", 10), ("test", 10)]
    assert sum(int(number) for _, _, number in splits) == counts.rows
    numbers = {name: int(number.replace(",", "")) for name, number in table.items()}
    assert numbers == {
        "detections": counts.detections,
        "their spectra": counts.selected,
        "rows": counts.rows,
        "rejected": counts.rejected,
    }
    assert numbers["their spectra"] == numbers["rows"] + numbers["rejected"]
    reasons = re.findall(r"^\| `(\w+)` \| (\D.*) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert {reason: int(number) for reason, _, number in reasons} == counts.reasons
    assert all(REASONS[reason] == meaning for reason, meaning, _ in reasons)
    assert sum(counts.reasons.values()) == counts.rejected


def test_sources_repetitions_and_flags_are_counted(sample: Path, text: str) -> None:
    rows = pq.read_table(sample / "data").to_pylist()
    names = Counter(row["name"] for row in rows)
    several = [number for number in names.values() if number > 1]
    words = prose(text)
    assert f"{len(rows)} X-ray spectra of {len(names)} sources" in words
    assert f"{len(several)} of the {len(names)} sources have more than one row, {sum(several)} rows together" in words
    saturated, streaked = (sum(bool(row[flag]) for row in rows) for flag in ("sat_src_flag", "streak_src_flag"))
    said = re.search(r"`sat_src_flag` is set in (\d+) rows? and `streak_src_flag` in (\d+) rows?:", words)
    assert said is not None
    assert [int(number) for number in said.groups()] == [saturated, streaked]


def test_the_sizes_of_the_configs_are_those_of_the_files(sample: Path, text: str) -> None:
    for config in configs_with(False):
        folder = DATA_FILES[config]
        files = [file for file in Manifest.read(sample).files if file.path.startswith(f"{folder}/")]
        rows, size = (sum(getattr(file, key) for file in files) for key in ("rows", "bytes"))
        assert re.search(rf"^\| `{config}` \| .* \| {rows} \| {size_text(size)} \|$", text, re.MULTILINE)


def test_the_tables_of_columns_are_the_declarations(text: str) -> None:
    assert markdown(COLUMNS) in text
    assert markdown(EBOUNDS) in text
    assert markdown(RESPONSES) not in text


def test_the_card_of_a_folder_with_splits_and_responses_says_so(full_sample: Path) -> None:
    text = (full_sample / "README.md").read_text()
    assert markdown(RESPONSES) in text and markdown(binned_columns(64)) in text
    assert "summed to 64 logarithmic bins of 0.5-8 keV" in text and "128 logarithmic bins of 0.3-9.3 keV" in text
    assert "The redistribution matrix is in config `responses`" in prose(text)
    assert "There is one split" not in text
    data = metadata_load(full_sample / "README.md")
    assert data is not None
    files = {config["config_name"]: [part["split"] for part in config["data_files"]] for config in data["configs"]}
    assert files == {
        "spectra": ["train", "validation", "test"],
        "counts": ["train", "validation", "test"],
        "binned": ["train", "validation", "test"],
        "sources": ["train", "validation", "test"],
        "ebounds": ["train"],
        "responses": ["train"],
    }


@pytest.mark.parametrize(("number", "kind"), [(50, "PathCollection"), (3000, "PolyCollection")])
def test_the_plane_of_hardness_has_points_where_they_are_few_and_cells_where_they_are_many(
    number: int, kind: str
) -> None:
    figure, angles, none = Figure(), np.linspace(-1, 1, number), np.empty(0)
    summary = Summary(none.astype(int), none.astype(int), none, none, (), angles, angles**3, 0)
    assert f"of the {number:,} spectra" in _hardness(figure, summary)
    (drawn,) = figure.axes[0].collections
    assert type(drawn).__name__ == kind
    assert np.asarray(drawn.get_offsets()).shape == (number, 2) if kind == "PathCollection" else len(figure.axes) == 2


def test_it_says_what_it_must(text: str) -> None:
    words = prose(text)
    assert "@" not in text.replace("@article{", "")
    for said in (
        "Two of its rows are real: 4938.0.43",
        "not an energy flux",
        "`arf` is not corrected for the aperture",
        "`arf.psf_frac`",
        "`conf_code > 0 and conf_code & 8`",
        "do not divide by row",
        "0.5-8 keV kept",
        "background subtracted",
        "at least 5 counts a bin",
        "NonMatchingSplitsSizesError",
        ACKNOWLEDGEMENT,
        "10.3847/1538-4365/ad6319",
        "10.1088/0067-0049/189/1/37",
    ):
        assert said in words, said
    assert len(re.findall(r"^@article\{.*?^\}$", blocks(text, "bibtex")[0], re.MULTILINE | re.DOTALL)) == 2


def test_it_names_no_time_and_no_folder_of_the_machine(sample: Path, text: str) -> None:
    homes = [f"{Path.home()}/"] if Path.home().name else []  # some have / for their home
    for private in (str(sample.parent), *homes, os.environ["CHANDRA_SPECTRA_CACHE"], "incomplete"):
        assert private not in text
    assert Manifest.read(sample).created[:10] not in text


def test_the_snippets_run_beside_the_folder(sample: Path, text: str, tmp_path: Path) -> None:
    code = "import json, sys\nfor block in json.loads(sys.argv[1]):\n    exec(block, names := {})\n"
    code += "    if 'test' in names: print(json.dumps([len(names['test']), len(names['train'])]))\n"
    snippets = blocks(text, "python")
    assert len(snippets) == 4
    test, train = python(code, json.dumps(snippets), cwd=sample.parent, HF_HOME=str(tmp_path))
    rows = Counter(pq.read_table(sample / "data")["split"].to_pylist())
    assert (test, train) == (rows["test"], rows["train"])
    assert 0 < test < train


def test_filters_want_streaming_as_it_says(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(NonMatchingSplitsSizesError):
        load_dataset(str(sample), split="train", filters=[("theta", "<", 2)], cache_dir=str(tmp_path))


# how to make it again


class Asked(Exception):  # noqa: N818  no error
    pass


def settings_of(line: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that a command line comes to."""

    def ask(folder: Path, settings: Settings, **options: object) -> None:
        raise Asked(settings)

    # Not as `builder.prepare`, which is the function.
    monkeypatch.setattr(sys.modules["builder.prepare"], "prepare", ask)
    program, *words = shlex.split(line.replace("\\\n", ""))
    assert program == "chandra-spectra"
    with pytest.raises(Asked) as asked:
        app(words, standalone_mode=False)
    return asked.value.args[0]  # type: ignore[no-any-return]


@pytest.fixture
def written(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sample's shards to write cards for, without pictures."""
    monkeypatch.setattr(card_module, "draw_pictures", lambda *arguments: [])
    for config in configs_with(False):
        shutil.copytree(sample / DATA_FILES[config], tmp_path / DATA_FILES[config])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def card_of(folder: Path, sample: Path, settings: Settings, **counts: Any) -> str:
    manifest = Manifest.read(sample)
    write_card(folder, settings, replace(manifest, counts=replace(manifest.counts, **counts)))
    assert_links(folder)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings("embedded"),
        Settings("http://127.0.0.1:8000", "rel2.0", selection=Selection(4000, 80, 1)),
        Settings(selection=Selection(1234567.8, 4.123456789, 9, Cone(10.123456789, -5.0, 1e-3))),
        Settings(selection=Selection(names=("2CXO J004248.5+411521", "2CXO J000000.0-000000"), obsids=(7, 8), limit=3)),
        Settings(selection=Selection(detections=frozenset({DetectionId(4938, 0, 43), DetectionId(7867, 0, 2)}))),
        Settings("embedded", recipe=Recipe(0.3, 7.25, 20, subtract=False, group=False)),
        Settings("a mirror", catalog="cat.parquet", selection=Selection(limit=5)),
        Settings("embedded", splits=Splits.parse("source:70/20/10"), responses=True, bins=32),
        Settings("embedded", splits=Splits(divided=False)),
    ],
)
def test_the_command_comes_to_the_same_settings(
    sample: Path, written: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    (line,) = blocks(card_of(written, sample, settings), "sh")
    assert settings_of(line, monkeypatch) == settings


def test_the_command_makes_the_same_folder(sample: Path, text: str, tmp_path: Path) -> None:
    (line,) = blocks(text, "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    for file in Manifest.read(sample).files:
        again, before = (folder / file.path for folder in (tmp_path / "chandra_spectra", sample))
        assert again.read_bytes() == before.read_bytes(), file.path


def test_local_paths_are_given_by_their_last_part(sample: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("/home/someone/mirror", catalog="/home/someone/cat.vot")
    card = card_of(written, sample, settings)
    assert "/home" not in card
    assert "`mirror` is the mirror folder" in card
    assert "`cat.vot` is the catalog file" in card
    (line,) = blocks(card, "sh")
    assert settings_of(line, monkeypatch) == replace(settings, archive="mirror", catalog="cat.vot")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings("embedded"), "the whole embedded sample."),
        (
            Settings("embedded", selection=Selection(limit=3)),
            "the whole embedded sample, of these the first 3 by obsid, obi and region_id.",
        ),
        (
            Settings("embedded", selection=Selection(limit=1)),
            "the whole embedded sample, of these the first by obsid, obi and region_id.",
        ),
        (
            Settings("embedded", selection=Selection(max_theta=3)),
            "detections less than 3 arcmin from the optical axis. A detection without a value passes the cut on it.",
        ),
        (Settings(catalog="a/b.vot"), "all detections, listed in the catalog file `b.vot`."),
    ],
)
def test_only_the_cuts_that_are_made_are_told(settings: Settings, said: str) -> None:
    assert selection_words(settings) == said


def test_the_selection_is_told(sample: Path, written: Path) -> None:
    detections = frozenset({DetectionId(4938, 0, 43), DetectionId(7867, 0, 2)})
    selection = Selection(100, 5, 3, Cone(10, 41, 0.5), ("2CXO J004248.5+411521",), tuple(range(9)), detections, 7)
    words = prose(card_of(written, sample, Settings(selection=selection), duplicates=3))
    for said in (
        "more than 100 net counts",
        "significance above 5",
        "less than 3 arcmin",
        "matched uniquely",
        "within 0.5 deg of right ascension 10 and declination 41",
        "of 1 source (2CXO J004248.5+411521)",
        "of 9 observations (named below)",
        "among the 2 in [detections.txt]",
        "the first 7 by obsid",
        "and passed over | 3 |",
    ):
        assert said in words, said
    assert "embedded sample" not in words
    assert (written / "detections.txt").read_text() == "4938.0.43\n7867.0.2\n"


def test_the_recipe_is_told(sample: Path, written: Path) -> None:
    recipe = Recipe(0.3, 7, subtract=False, group=False)
    words = prose(card_of(written, sample, Settings(recipe=recipe)))
    assert "0.3-7 keV kept; background not subtracted; not grouped" in words
    assert "ackground-subtracted" not in words
    assert "a **count rate density**" in words


# what it shows


def test_the_pictures_are_small_png_files_that_the_card_and_the_manifest_name(sample: Path, text: str) -> None:
    paths = [f"images/{name}.png" for name in PICTURES]
    assert re.findall(r"!\[[\w ]+\]\((.*?)\)", text) == paths
    assert {file.path for file in Manifest.read(sample).files} >= set(paths)
    for path in paths:
        with Image.open(sample / path) as image:
            image.load()
            assert image.format == "PNG"
            assert image.info.keys() <= {"dpi"}
            assert 400 <= image.width <= 1000
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
    assert sum((sample / path).stat().st_size for path in paths) < 300_000


def test_what_the_card_points_to_is_there(sample: Path, full_sample: Path) -> None:
    assert_links(sample)
    assert_links(full_sample)


def test_the_users_own_style_does_not_enter(sample: Path, tmp_path: Path) -> None:
    scalars = pq.read_table(shards(sample)[0]).select(SCALARS)
    shutil.copytree(sample / "data", tmp_path / "data")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "figure.dpi": 30, "lines.linewidth": 9}):
        pictures = draw_pictures(tmp_path, scalars)
        assert matplotlib.rcParams["font.size"] == 30
    assert [Path(picture.path).stem for picture in pictures] == PICTURES
    for picture in pictures:
        assert (tmp_path / picture.path).read_bytes() == (sample / picture.path).read_bytes()


@pytest.mark.parametrize(
    ("missing", "drawn"),
    [
        (["hard_hm"], ["spectra", "sky", "distributions"]),
        (["healpix"], ["spectra", "distributions", "hardness"]),
        (["theta", "src_cnts_aper_b", "hard_ms"], ["spectra", "sky", "distributions"]),
    ],
)
def test_what_there_is_nothing_to_show_of_is_left_out(
    sample: Path, tmp_path: Path, missing: list[str], drawn: list[str]
) -> None:
    scalars = pq.read_table(shards(sample)[0]).select(SCALARS)
    shutil.copytree(sample / "data", tmp_path / "data")
    for name in missing:
        column = scalars.schema.get_field_index(name)
        scalars = scalars.set_column(column, name, pa.nulls(len(scalars), scalars[name].type))
    pictures = draw_pictures(tmp_path, scalars)
    assert [Path(picture.path).stem for picture in pictures] == drawn


def test_rows_of_the_gallery_are_found_in_any_shard_and_row_group(sample: Path, tmp_path: Path) -> None:
    table = pq.read_table(shards(sample)[0])
    (tmp_path / "data").mkdir()
    for name, part in (("0.parquet", table.slice(0, 40)), ("1.parquet", table.slice(40))):
        pq.write_table(part, tmp_path / "data" / name, row_group_size=7)
    draw_pictures(tmp_path, table.select(SCALARS))
    assert (tmp_path / "images/spectra.png").read_bytes() == (sample / "images/spectra.png").read_bytes()


def test_names_in_the_gallery_are_written_as_they_are_whatever_they_hold(sample: Path, tmp_path: Path) -> None:
    table = pq.read_table(shards(sample)[0]).slice(0, 3)
    place = table.schema.get_field_index("name")
    drawn = []
    (tmp_path / "data").mkdir()
    for names in ([r"a$b_{c}^\frac$ x", "of\ntwo lines", None], [r"a$b_{c}^\frac$ x", "of two lines", ""]):
        pq.write_table(table.set_column(place, "name", pa.array(names)), tmp_path / "data" / "0.parquet")
        draw_pictures(tmp_path, table.select(SCALARS))
        drawn.append((tmp_path / "images/spectra.png").read_bytes())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("low", "high"), [(5.5, 8), (2.2, 4.5), (0.5, 8)])
def test_an_energy_axis_has_numbers_whatever_its_range(low: float, high: float) -> None:
    axes = Figure(figsize=(2, 2)).subplots()
    energy_axis(axes, low, high, (0.5, 1, 2, 4, 8))
    labels = dict(zip(axes.get_xticks(), (text.get_text() for text in axes.get_xticklabels()), strict=True))
    seen = {tick: label for tick, label in labels.items() if low <= tick <= high}
    assert len(seen) > 1
    assert all(float(label) == pytest.approx(tick) for tick, label in seen.items())


def test_values_that_are_no_numbers_or_out_of_range_do_no_harm(sample: Path, tmp_path: Path) -> None:
    scalars = pq.read_table(shards(sample)[0]).select(SCALARS).slice(0, 4)
    shutil.copytree(sample / "data", tmp_path / "data")
    for name, values in {
        "theta": [float("nan"), 0.0, float("inf"), None],
        "src_cnts_aper_b": [-3.0, 0.0, 1e9, None],
        "hard_ms": [float("nan"), -1.0, 1.0, 0.0],
    }.items():
        column = scalars.schema.get_field_index(name)
        scalars = scalars.set_column(column, name, pa.array(values, scalars[name].type))
    assert len(draw_pictures(tmp_path, scalars)) >= 3


def test_without_matplotlib_there_are_no_pictures_and_one_line_says_so(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        manifest = prepare(tmp_path / "out", Settings("embedded", splits=Splits(divided=False))).manifest
    assert [record.getMessage() for record in caplog.records] == [
        "the card has no pictures: a picture needs matplotlib: pip install 'chandra-spectra[plots]'"
    ]
    assert not (tmp_path / "out" / "images").exists()
    assert "![" not in (tmp_path / "out" / "README.md").read_text()
    names = [file for file in manifest.files if not file.path.startswith(("README", "images"))]
    assert names == [file for file in Manifest.read(sample).files if file in names]


# few rows


def assert_reads(folder: Path, rows: int) -> None:
    data = metadata_load(folder / "README.md")
    assert data is not None
    assert data["size_categories"] == ["n<1K"]
    assert f"| rows | {rows} |" in (folder / "README.md").read_text()
    assert_links(folder)
    for config in ("spectra", "counts"):
        # streaming, for otherwise `datasets` raises where a split has no rows at all
        dataset = load_dataset(str(folder), config, split="train", streaming=True)
        assert len(list(dataset)) == rows
        assert dataset.features == features(config)


def test_a_folder_with_one_row(tmp_path: Path) -> None:
    chosen = DetectionId(4938, 0, 43)
    folder = tmp_path / "chandra_spectra"
    manifest = prepare(folder, Settings("embedded", selection=Selection(detections=frozenset({chosen})))).manifest
    paths = [file.path for file in manifest.files]
    images = [f"images/{name}.png" for name in PICTURES[:3]]  # a real detection of the sample has no hardness ratios
    assert paths[-5:] == ["README.md", *images, "detections.txt"]
    assert (folder / "detections.txt").read_text() == f"{chosen}\n"
    assert "1 X-ray spectrum of 1 source," in prose((folder / "README.md").read_text())
    assert_reads(folder, 1)


def test_a_folder_without_rows(tmp_path: Path) -> None:
    files: list[Entry] = []
    for config, name in DATA_FILES.items():
        with ShardWriter(tmp_path / name, features(config).arrow_schema) as writer:
            pass
        files += [Entry.of(path, tmp_path, 0) for path in writer.paths]
    counts = Counts(detections=1, duplicates=0, selected=1, rows=0, rejected=1, reasons={"not_acis": 1})
    settings = Settings(responses=True)
    manifest = Manifest("", settings.as_dict(), {}, {}, counts, tuple(files))
    assert write_card(tmp_path, settings, manifest) == [tmp_path / "README.md"]
    assert not (tmp_path / "images").exists()
    text = (tmp_path / "README.md").read_text()
    assert "0 X-ray spectra of 0 sources" in prose(text)
    assert f"| `not_acis` | {REASONS['not_acis']} | 1 |" in text
    assert_reads(tmp_path, 0)
