"""The prepared folder's README.md, from the template `dataset_card.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from builder.columns import COLUMNS, CONFIGS, EBOUNDS, features, markdown
from builder.records import REASONS
from builder.settings import EMBEDDED, Settings

__all__ = ["DATA_FILES", "render_card"]

TEMPLATE = Path(__file__).parent / "dataset_card.md"

DATA_FILES = {config: ("data" if config == "spectra" else config) for config in CONFIGS}
"""Folder of each config's shards."""


def render_card(settings: Settings, counts: dict[str, Any], files: list[dict[str, Any]], sources: int) -> str:
    """Fill the template.

    Parameters
    ----------
    settings : Settings
    counts : dict
        The manifest's ``counts``.
    files : list of dict
        The manifest's ``files``: path, rows, bytes.
    sources : int
        Number of distinct names.

    Returns
    -------
    str
        The card. The same data give the same text.
    """
    recipe, selection = settings.recipe, settings.selection
    embedded = settings.archive == EMBEDDED
    table = [("selected", counts["selected"]), ("rows", counts["rows"]), ("rejected", counts["rejected"])]
    table += [(f"rejected: {REASONS[reason]}", number) for reason, number in counts["reasons"].items()]
    words = {
        "front_matter": _front_matter(settings, files),
        "rows": f"{counts['rows']:,}",
        "sources": f"{sources:,}",
        "release": settings.release.removeprefix("rel"),
        "min_cnts": f"{selection.min_cnts:g}",
        "min_sig": f"{selection.min_sig:g}",
        "max_theta": f"{selection.max_theta:g}",
        "nulls": " (a value that is not known passes a cut in this sample)" if embedded else "",
        "energy_min": f"{recipe.energy_min:g}",
        "energy_max": f"{recipe.energy_max:g}",
        "subtracted": "background subtracted" if recipe.subtract else "background not subtracted",
        "grouped": f"grouped to at least {recipe.min_counts} counts a bin" if recipe.group else "not grouped",
        "counts": "\n".join(f"| {name} | {number:,} |" for name, number in table),
        "columns": markdown(COLUMNS),
        "ebounds": markdown(EBOUNDS),
        "embedded": "- **Only two rows are real** (4938.0.43 and 7867.0.2, which come with Sherpa): the rest, named"
        " `SIM J…`, are simulated, for trying the code.\n" if embedded else "",
        "command": _command(settings),
    }  # fmt: skip
    return re.sub(r"@(\w+)@", lambda match: words[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _command(settings: Settings) -> str:
    selection, recipe = settings.selection, settings.recipe
    words = ["chandra-spectra prepare", f"--archive {settings.archive}", f"--release {settings.release}",
             f"--min-cnts {selection.min_cnts:g}", f"--min-sig {selection.min_sig:g}",
             f"--max-theta {selection.max_theta:g}", f"--energy-min {recipe.energy_min:g}",
             f"--energy-max {recipe.energy_max:g}", f"--min-counts {recipe.min_counts}"]  # fmt: skip
    words += [] if recipe.subtract else ["--no-subtract"]
    words += [] if recipe.group else ["--no-group"]
    return " \\\n  ".join(words)


def _front_matter(settings: Settings, files: list[dict[str, Any]]) -> str:
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    rows: dict[str, int] = {}
    size: dict[str, int] = {}
    for file in files:
        folder = file["path"].partition("/")[0]
        rows[folder] = rows.get(folder, 0) + file["rows"]
        size[folder] = size.get(folder, 0) + file["bytes"]
    infos, configs = {}, {}
    for config, folder in DATA_FILES.items():
        split = SplitInfo("train", num_bytes=size[folder], num_examples=rows[folder], dataset_name="chandra_spectra")
        infos[config] = DatasetInfo(
            features=features(config), splits=SplitDict({"train": split}), config_name=config,
            download_size=size[folder], dataset_size=size[folder],
        )  # fmt: skip
        configs[config] = {"data_files": [{"split": "train", "path": f"{folder}/train-*.parquet"}]}
        if config == next(iter(CONFIGS)):
            configs[config]["default"] = True  # type: ignore[assignment]
    card = DatasetCardData(
        pretty_name="Chandra X-ray spectra",
        license="other",
        license_name="chandra-source-catalog",
        license_link="https://cxc.cfa.harvard.edu/csc/cite.html",
        annotations_creators=["machine-generated"],
        source_datasets=["original"],
        size_categories=[_size_category(rows[DATA_FILES["spectra"]])],
        task_categories=["tabular-regression", "tabular-classification"],
        tags=["astronomy", "x-ray", "spectra", "chandra"],
    )
    MetadataConfigs(configs).to_dataset_card_data(card)
    DatasetInfosDict(infos).to_dataset_card_data(card)
    return card.to_yaml().strip()


def _size_category(rows: int) -> str:
    """The hub's word for a number of rows."""
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    return next((word for bound, word in bounds if rows < bound), "1M<n<10M")
