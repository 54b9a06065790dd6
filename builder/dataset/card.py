"""The prepared folder's README.md, from the template `dataset_card.md`."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from builder import __version__
from builder.dataset.layout import CARD_FILE, DATA_FILES, DETECTIONS_FILE, POSITIONS_FILE, Counts, Manifest
from builder.dataset.pictures import Picture, draw_pictures
from builder.dataset.read import read_scalars
from builder.dataset.summary import SCALARS
from builder.dataset.words import LONG, command_line, reduction_words, release_words, selection_words
from builder.model.column import CONFIGS, Column
from builder.model.columns import EBOUNDS, RESPONSES, SOURCES, binned_columns, columns_when
from builder.model.errors import MissingExtraError
from builder.model.folding import PHOTON_ENERGIES
from builder.model.records import REASONS
from builder.model.schema import card_features, markdown
from builder.model.settings import EMBEDDED, EMBEDDED_REMARK, RMFS, Settings, last_part
from builder.model.splits import SPLITS
from builder.model.text import several, size_text

TEMPLATE = Path(__file__).parent / "dataset_card.md"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Size:
    """Rows of a split, bytes of its Parquet files, and bytes in memory: what `datasets` calls num_bytes."""

    rows: int
    parquet: int
    memory: int


def _sum(splits: dict[str, _Size]) -> _Size:
    return _Size(*(sum(getattr(size, name) for size in splits.values()) for name in _Size.__slots__))


def _responses(settings: Settings) -> str:
    return f"\nConfig `responses`, one row an RMF file:\n\n{markdown(RESPONSES)}\n" if settings.responses else ""


def _binned(settings: Settings) -> str:
    """Describe config ``binned``, where there is one."""
    if not (bins := settings.bins):
        return ""
    photons = f"{PHOTON_ENERGIES[0]:g}-{PHOTON_ENERGIES[1]:g} keV"
    recipe = settings.recipe
    return (
        f"\nConfig `binned` has the scalars, the channels summed to {bins} logarithmic bins of "
        f"{recipe.energy_min:g}-{recipe.energy_max:g} keV, and the\ncompact response: the counts in each bin that a "
        f"model predicts are `exposure * photons @ response`, with its photons cm-2 s-1 in\neach of {2 * bins} "
        f"logarithmic bins of {photons}.\n\n{markdown(binned_columns(bins))}\n"
    )


def _sources(settings: Settings) -> str:
    """Describe config ``sources``, where there is one."""
    if not settings.sources:
        return ""
    return (
        "\nConfig `sources`, one row a master source, its detections without a grating and with the same energies "
        f"summed:\n\n{markdown(SOURCES)}\n"
    )


def write_card(folder: Path, settings: Settings, manifest: Manifest) -> list[Path]:
    """Write the card, its pictures and, for a selection by list, the list.

    Without matplotlib the card has no pictures, and a warning is logged.

    Parameters
    ----------
    folder : Path
        Holds the shards.
    manifest : Manifest
        With the shards among its files.

    Returns
    -------
    list of Path
        What was written. The same data give the same bytes.
    """
    sizes: dict[str, dict[str, _Size]] = {}
    for config, split in manifest.parts:
        if rows := manifest.shards(config, split):
            paths = [folder / path for path in rows]
            parquet = sum(path.stat().st_size for path in paths)
            sizes.setdefault(config, {})[split] = _Size(sum(rows.values()), parquet, sum(map(_memory, paths)))
    scalars = read_scalars(folder, ("name", "split", "sat_src_flag", "streak_src_flag", *SCALARS))
    pictures: list[Picture] = []
    try:
        pictures = draw_pictures(folder, scalars)
    except MissingExtraError as error:
        logger.warning("the card has no pictures: %s", error)
    written = [folder / CARD_FILE, *(folder / picture.path for picture in pictures)]
    written[0].write_text(_render(settings, manifest, sizes, scalars, pictures), encoding="utf-8")
    if settings.selection.detections:
        written.append(folder / DETECTIONS_FILE)
        lines = [f"{detection}\n" for detection in sorted(settings.selection.detections)]
        written[-1].write_text("".join(lines), encoding="utf-8")
    return written


def _memory(path: Path) -> int:
    """Return the bytes of the rows of a Parquet file in Arrow's memory, one row group at a time."""
    with pq.ParquetFile(path) as file:
        return sum(file.read_row_group(group).nbytes for group in range(file.num_row_groups))


def _render(
    settings: Settings,
    manifest: Manifest,
    sizes: dict[str, dict[str, _Size]],
    scalars: pa.Table,
    pictures: list[Picture],
) -> str:
    recipe, counts = settings.recipe, manifest.counts
    names = Counter(scalars["name"].drop_null().to_pylist())
    repeated = [number for number in names.values() if number > 1]
    columns, (subtracted, grouped) = (*columns_when(recipe.subtract), *manifest.own), reduction_words(recipe)
    words = {
        "front_matter": _front_matter(sizes, settings.bins, manifest.own),
        "spectra": "1 X-ray spectrum" if counts.rows == 1 else f"{counts.rows:,} X-ray spectra",
        "sources": several(len(names), "source"),
        "release": release_words(settings),
        "version": __version__,
        "origin": _origin(settings, manifest.catalog),
        "pictures": "".join(f"\n![{picture.title}]({picture.path})\n\n{picture.caption}\n" for picture in pictures),
        "configs": "\n".join(
            f"| `{config}` | {CONFIGS[config].removeprefix('one row ')} | {_sum(splits).rows:,} | "
            f"{size_text(_sum(splits).parquet)} |"
            for config, splits in sizes.items()
        ),
        "splits": _splits(settings, scalars),
        "first": next(iter(sizes["spectra"])),
        "how_to_split": _DIVIDED.format("+".join(sizes["spectra"])) if settings.splits.divided else _UNDIVIDED,
        "several": f"{len(repeated):,} of the {len(names):,} sources",
        "repeated": f"{sum(repeated):,}",
        "selected": selection_words(settings),
        "energy_min": f"{recipe.energy_min:g}",
        "energy_max": f"{recipe.energy_max:g}",
        "subtracted": subtracted,
        "grouped": grouped,
        "counts": _counts(counts),
        "reasons": _reasons(counts.reasons),
        "rate": f"{'background-subtracted ' if recipe.subtract else ''}count rate density",
        "columns": markdown(columns),
        "ebounds": markdown(EBOUNDS),
        "binned": _binned(settings) + _sources(settings),
        "responses": _responses(settings),
        "matrix": (
            "The redistribution matrix is in config `responses`, under `rmf_sha256`."
            if settings.responses
            else "The redistribution matrix (RMF) is not in the dataset; `rmf_file` and `rmf_sha256` name it"
            + (" where it was read." if settings.rmf != RMFS[0] else ".")
        ),
        "rmf": "" if settings.rmf == RMFS[0] else _rmf(manifest.own_rmfs),
        "negative": " Background-subtracted rates can be negative." if recipe.subtract else "",
        "saturated": several(pc.sum(scalars["sat_src_flag"]).as_py() or 0, "row"),
        "streaked": several(pc.sum(scalars["streak_src_flag"]).as_py() or 0, "row"),
        "inputs": _inputs(settings),
        "command": command_line(settings),
    }
    return re.sub(r"@(\w+)@", lambda match: words[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def _origin(settings: Settings, catalog: dict[str, Any]) -> str:
    """Say where the rows are from: where and when the catalog was asked for, and what it does not give."""
    if settings.archive == EMBEDDED:
        return f"\n**This is the embedded sample, for trying the code.** {EMBEDDED_REMARK}\n"
    if "service" not in catalog:
        return ""
    asked = (
        f"\nThe catalog was asked on {catalog['retrieved']} at <{catalog['service']}>, schema `{catalog['schema']}`; "
        f"the files are of version `{catalog['version']}`.\n"
    )
    if not catalog["missing"]:
        return asked
    names = ", ".join(f"`{name}`" for name in catalog["missing"])
    return f"{asked}It does not give {names}, null in every row.\n"


_UNDIVIDED = """\
There is one split, `train`: how to divide it depends on the question. Column `split` holds a proposal, by which a
source is on one side only:

```python
from datasets import load_dataset

spectra = load_dataset("chandra_spectra", split="train")
test = spectra.filter(lambda split: split == "test", input_columns="split")
train = spectra.filter(lambda split: split == "train", input_columns="split")
```
"""

_DIVIDED = """\
The splits are by place on the sky, so that a source is on one side only, as column `split` says:

```python
from datasets import load_dataset

parts = load_dataset("chandra_spectra")                                          # by name
everything = load_dataset("chandra_spectra", split="{}")
```
"""


_SHARED = """
**One RMF an observation** was downloaded (`--rmf observation`). The reduction takes nothing of an RMF but the energies
of the channels, and they are the same, bit for bit, in all ACIS products that are known: the catalog's pipeline makes
each RMF for channels 1 to 1024 of 14.6 eV. `ebounds_from` names the detection whose RMF they were read in; where it is
another, `rmf_file` and `rmf_sha256` are null. No RMF of such a row was looked at: `chandra-spectra verify
chandra_spectra --recheck 100` fetches those of 100 rows and compares. {}
"""


def _rmf(own: tuple[str, ...]) -> str:
    """Explain one RMF an observation, and name the observations in which it did not do."""
    if not own:
        return _SHARED.format("All RMFs that were read have these energies.")
    named = ", ".join(own[:LONG]) + (f" and {len(own) - LONG:,} more" if len(own) > LONG else "")
    return _SHARED.format(
        f"In {several(len(own), 'observation')} ({named}) an RMF has other energies: there each row has those of its "
        "own RMF, see `own_rmfs` in `manifest.json`."
    )


def _splits(settings: Settings, scalars: pa.Table) -> str:
    rows = Counter(scalars["split"].to_pylist())
    shares = zip(SPLITS, settings.splits.shares, strict=True)
    return "\n".join(f"| `{split}` | {share} % | {rows[split]:,} |" for split, share in shares)


def _counts(counts: Counts) -> str:
    table = [
        ("detections", counts.detections),
        ("their spectra", counts.selected),
        ("rows", counts.rows),
        ("rejected", counts.rejected),
    ]
    if counts.duplicates:
        table.append(("listed a second time by the catalog, under another source, and passed over", counts.duplicates))
    return "\n".join(f"| {name} | {number:,} |" for name, number in table)


def _reasons(reasons: dict[str, int]) -> str:
    if not reasons:
        return ""
    lines = [f"| `{reason}` | {REASONS[reason]} | {number:,} |" for reason, number in reasons.items()]
    return "\n".join(["", "| rejected for | meaning | |", "| --- | --- | ---: |", *lines, ""])


def _inputs(settings: Settings) -> str:
    """Describe the files that the command needs beside the archive."""
    made = "that it was made from, as `chandra-spectra"
    lines = []
    if settings.from_mirror:
        lines.append(f"`{last_part(settings.archive)}` is the mirror folder {made} download` writes it.\n")
    if settings.catalog:
        lines.append(f"`{last_part(settings.catalog)}` is the catalog file {made} catalog` writes it.\n")
    if settings.labels:
        lines.append(f"`{last_part(settings.labels)}` is the file with the labels.\n")
    if settings.selection.detections:
        lines.append(f"`{DETECTIONS_FILE}` is the file beside this card.\n")
    if settings.selection.positions:
        lines.append(f"`{POSITIONS_FILE}` is the file beside this card.\n")
    return "".join(lines)


def _front_matter(sizes: dict[str, dict[str, _Size]], bins: int, own: tuple[Column, ...]) -> str:
    """Write what the hub and `datasets` read of a card: https://huggingface.co/docs/hub/datasets-cards."""
    default = next(iter(CONFIGS))
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": f"{DATA_FILES[config]}/{split}-*.parquet"} for split in splits],
            **({"default": True} if config == default else {}),
        }
        for config, splits in sizes.items()
    ]
    infos = [
        {
            "config_name": config,
            "features": card_features(config, bins, own),
            "splits": [
                {"name": split, "num_bytes": size.memory, "num_examples": size.rows} for split, size in splits.items()
            ],
            "download_size": _sum(splits).parquet,
            "dataset_size": _sum(splits).memory,
        }
        for config, splits in sizes.items()
    ]
    metadata = {
        "pretty_name": "Chandra X-ray spectra",
        "license": "other",
        "license_name": "chandra-source-catalog",
        "license_link": "https://cxc.cfa.harvard.edu/csc/cite.html",
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "size_categories": [_size_category(_sum(sizes[default]).rows)],
        "task_categories": ["tabular-regression", "tabular-classification"],
        "tags": ["astronomy", "astrophysics", "x-ray", "spectra", "spectroscopy", "chandra", "csc"],
        "configs": configs,
        "dataset_info": infos,
    }
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=math.inf).strip()


def _size_category(rows: int) -> str:
    """Return the hub's word for a number of rows."""
    bounds = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    return next((word for bound, word in bounds if rows < bound), "1M<n<10M")
