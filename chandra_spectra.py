"""X-ray spectra of the Chandra Source Catalog as a Hugging Face dataset builder.

>>> from chandra_spectra import ChandraSpectra
>>> builder = ChandraSpectra(config_name="counts", archive="embedded")  # doctest: +SKIP
>>> builder.download_and_prepare(); builder.as_dataset("train")         # doctest: +SKIP

A folder for `load_dataset`, with the canonical HDF5 file, card and manifest, is made by ``chandra-spectra prepare``.
To train on it, `collate` makes batches for torch, with `Buckets` of rows of about the same length, `Stream` reads them
as they come, and `Calibration` sums channels into bins and folds models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa

from builder import __version__
from builder.batches import Buckets, collate
from builder.calibration import Calibration
from builder.catalog import Package
from builder.columns import CONFIGS, features
from builder.errors import SettingError
from builder.records import Recipe
from builder.selection import Selection
from builder.settings import DEFAULT_ARCHIVE, Settings
from builder.shards import parts
from builder.splits import Splits

if TYPE_CHECKING:
    from builder.streams import Stream

__all__ = ["Buckets", "Calibration", "ChandraSpectra", "ChandraSpectraConfig", "Stream", "collate"]

logger = logging.getLogger(__name__)

_DISTINCT = {"ebounds": "ebounds_id", "responses": "rmf_sha256"}
"""Configs whose rows many spectra share, and their keys."""

_VERSION = datasets.Version(__version__)

CITATION = """\
@article{2024ApJS..274...22E, author = {Evans, I. N. and others}, title = {The Chandra Source Catalog Release 2 Series},
  journal = {ApJS}, volume = {274}, pages = {22}, year = {2024}, doi = {10.3847/1538-4365/ad6319}}
@article{2010ApJS..189...37E, author = {Evans, I. N. and others}, title = {The Chandra Source Catalog},
  journal = {ApJS}, volume = {189}, pages = {37}, year = {2010}, doi = {10.1088/0067-0049/189/1/37}}
"""


def __getattr__(name: str) -> Any:
    """Import what needs torch where it is used: that takes seconds."""
    if name == "Stream":
        from builder.streams import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(eq=False)
class ChandraSpectraConfig(datasets.BuilderConfig):
    """What to build.

    Attributes
    ----------
    table : {'spectra', 'counts', 'ebounds', 'responses'}
        Which columns; by default the first word of the config's name.
    min_cnts, min_sig, max_theta : float, optional
        Cuts, see `builder.selection.Selection`; by default 40, 4 and 10, and none for the embedded sample.
    archive : str
        ``embedded``, a mirror folder, or the base URL of the services.
    release : str
        Version word of the catalog.
    recipe : Recipe
        The reduction's settings.
    splits : str
        ``none``: all rows are `train`; ``source``, or with other shares ``source:70/20/10``: train, validation and
        test, see `builder.splits`.

    Raises
    ------
    SettingError
        If a value is refused.
    """

    name: str = "spectra"
    table: str = ""
    min_cnts: float | None = None
    min_sig: float | None = None
    max_theta: float | None = None
    archive: str = DEFAULT_ARCHIVE
    release: str = "rel2.1"
    recipe: Recipe = field(default_factory=Recipe)
    splits: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.table = self.table or self.name.partition("_")[0]
        if self.table not in CONFIGS:
            raise SettingError(f"unknown config {self.name!r}: choose one of {', '.join(CONFIGS)}")
        _ = self.settings  # refuses wrong values now rather than when they are used

    @property
    def settings(self) -> Settings:
        """The settings as the stages take them."""
        selection = Selection(self.min_cnts, self.min_sig, self.max_theta)
        return Settings(self.archive, self.release, selection=selection, recipe=self.recipe,
                        splits=Splits.parse(self.splits), responses=self.table == "responses")  # fmt: skip


class ChandraSpectra(datasets.GeneratorBasedBuilder):
    """The builder: asks the catalog, fetches, reduces and yields one row a spectrum.

    Configs ``spectra`` (default), ``counts``, ``ebounds`` and ``responses`` hold the columns of `builder.columns`;
    ``spectra_short`` and so on take only the brightest detections (more than 4000 counts, significance above 80, within
    1 arcmin), for a quick try.
    """

    VERSION = _VERSION
    BUILDER_CONFIG_CLASS = ChandraSpectraConfig
    BUILDER_CONFIGS = [  # noqa: RUF012  the base class declares it so
        *(ChandraSpectraConfig(name, version=_VERSION, description=text) for name, text in CONFIGS.items()),
        *(
            ChandraSpectraConfig(f"{name}_short", version=_VERSION, description=f"{text}; short test: brightest only",
                                 min_cnts=4000, min_sig=80, max_theta=1)
            for name, text in CONFIGS.items()
        ),
    ]  # fmt: skip
    DEFAULT_CONFIG_NAME = "spectra"
    DEFAULT_WRITER_BATCH_SIZE = 100  # rows in memory: one of `responses` takes 1 to 2 MB

    def _info(self) -> datasets.DatasetInfo:
        _ = self.config.settings  # keyword arguments reach a named config past its own checks
        return datasets.DatasetInfo(
            description="X-ray spectra of detections in the Chandra Source Catalog.",
            features=features(self.config.table),
            citation=CITATION,
            homepage="https://cxc.cfa.harvard.edu/csc/",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        from builder.engine import results
        from builder.rows import join
        from builder.sources import open_source, query

        source = open_source(self.config.settings)
        plan = query(source, self.config.settings, dl_manager)
        # datasets shares lists out among its processes, but what is distinct must be met by one process
        packages = tuple(plan.packages) if self.config.table in _DISTINCT else list(plan.packages)
        found = {"packages": packages, "catalog": plan.catalog, "source": source}
        splits = self.config.settings.splits
        names = [split for config, split in parts(splits, True) if config == self.config.table]
        if len(names) > 1:  # datasets refuses a split without rows
            there: set[str] = set()
            for package, result in results(packages, source.archive, source.store):
                there.update(join(plan.catalog, package, result, splits)["split"].to_pylist())
                if len(there) == len(names):
                    break
            names = [split for split in names if split in there] or names[:1]
        own = [{"split": split, "warn": split == names[0]} for split in names]
        return [datasets.SplitGenerator(options["split"], found | options) for options in own]

    def _generate_examples(
        self, packages: list[Package], catalog: pa.Table, source: Any, split: str, warn: bool
    ) -> Iterator[tuple[int | str, dict[str, Any]]]:
        from builder.engine import results
        from builder.rows import examples, join, public

        table, splits = self.config.table, self.config.settings.splits
        rejected, known = 0, set()
        for package, result in results(packages, source.archive, source.store):
            rejected += len(result.rejections)
            if key := _DISTINCT.get(table):
                for row in examples(public(getattr(result, table), table)):
                    if row[key] not in known:
                        known.add(row[key])
                        yield row[key], row
            else:
                for row in examples(public(join(catalog, package, result, splits), table)):
                    if row["split"] == split or not splits.divided:
                        yield row["object_id"], row
        if rejected and warn:  # each split goes through all packages
            logger.warning("%d detections have no usable spectrum and are left out", rejected)
