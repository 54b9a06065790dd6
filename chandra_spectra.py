"""X-ray spectra of the Chandra Source Catalog as a Hugging Face dataset builder.

>>> from chandra_spectra import ChandraSpectra
>>> builder = ChandraSpectra(config_name="counts", archive="embedded")  # doctest: +SKIP
>>> builder.download_and_prepare(); builder.as_dataset("train")         # doctest: +SKIP

A folder for `load_dataset`, with the canonical HDF5 file, card and manifest, is made by ``chandra-spectra prepare``.
To train on it, `collate` makes batches for torch, with `Buckets` of rows of about the same length, `Stream` reads them
as they come, and `Calibration` sums channels into bins and folds models. `thin` makes rows of a shorter exposure, and
`regroup` a spectrum by another recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils.info_utils import get_size_checksum_dict

import builder

if "ChandraSpectraError" not in getattr(builder, "__all__", ()):
    raise ImportError(f"{builder.__file__} hides chandra-spectra's package of that name: rename it or leave its folder")

from builder import __version__
from builder.archive.interface import Answer, Archive, Choose, Fetched, Record, forget
from builder.archive.packages import Package
from builder.dataset.layout import parts
from builder.model.column import CONFIGS
from builder.model.columns import DEFAULT_BINS
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.own import own_columns
from builder.model.schema import features
from builder.model.selection import Selection
from builder.model.settings import DEFAULT_ARCHIVE, RMFS, Recipe, Settings
from builder.model.splits import Splits
from builder.use.batches import Buckets, collate
from builder.use.calibration import Calibration
from builder.use.statistics import Statistics
from builder.use.views import regroup, thin

if TYPE_CHECKING:
    from builder.store.packages import PackageResult
    from builder.use.stream import Stream
    from builder.workspace import Workspace

__all__ = [
    "ArchiveDownloadManager",
    "Buckets",
    "Calibration",
    "ChandraSpectra",
    "ChandraSpectraConfig",
    "Statistics",
    "Stream",
    "collate",
    "regroup",
    "thin",
]

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
        from builder.use.stream import Stream

        return Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(eq=False)
class ChandraSpectraConfig(datasets.BuilderConfig):
    """Configuration of the builder.

    Attributes
    ----------
    table : {'spectra', 'counts', 'binned', 'sources', 'ebounds', 'responses'}
        Which columns; by default the first word of the config's name.
    min_cnts, min_sig, max_theta : float, optional
        Cuts, see `builder.model.selection.Selection`; by default 40, 4 and 10, and none for the embedded sample.
    archive : str
        ``embedded``, a mirror folder, or the base URL of the services.
    release : str
        Version word of the catalog.
    recipe : Recipe or dict
        The reduction's settings, see `builder.model.settings.Recipe`.
    rmf : {'each', 'observation'}
        Whose RMF is asked for: that of each detection, or of one of each observation, whose channel energies then serve
        the others.
    splits : str
        ``source``, or with other shares ``source:70/20/10``: train, validation and test, see `builder.model.splits`;
        ``none``: all rows are `train`.
    bins : int
        Number of bins, of config ``binned`` only.

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
    recipe: Recipe | dict[str, Any] = field(default_factory=Recipe)
    splits: str = "source"
    bins: int = DEFAULT_BINS
    rmf: str = RMFS[0]

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
        recipe = Recipe.from_dict(self.recipe) if isinstance(self.recipe, dict) else self.recipe
        return Settings(
            self.archive,
            self.release,
            selection=selection,
            recipe=recipe,
            splits=Splits.parse(self.splits),
            responses=self.table == "responses",
            bins=self.bins if self.table == "binned" else 0,
            rmf=self.rmf,
            sources=self.table == "sources",
        )

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """Name what is cached by the settings and by the content of the archive and the catalog, not by their names."""
        from builder.workspace import fingerprint

        known = {"table": self.table, "content": fingerprint(self.settings)}
        name: str = super().create_config_id(known, custom_features)
        return name


class ArchiveDownloadManager(datasets.DownloadManager, Archive):
    """A download manager that pulls the catalog's answers and, package by package, the spectral files.

    It asks as all of this project does: patient, checked, and within the budget of connections. Sizes and, where they
    are asked for, checksums of all answers are recorded as those of other downloads of `datasets` are.

    Parameters
    ----------
    **options
        Further arguments of `datasets.DownloadManager`.

    Attributes
    ----------
    workspace : Workspace
        The store of the settings, and this download manager as the archive.
    """

    def __init__(self, settings: Settings, dataset_name: str | None = None, **options: Any) -> None:
        super().__init__(dataset_name, **options)
        self._settings = settings

    @cached_property
    def _opened(self) -> Workspace:
        from builder.workspace import open_workspace

        return open_workspace(self._settings)

    @property
    def workspace(self) -> Workspace:
        """The store, and this download manager as the archive."""
        return replace(self._opened, archive=self)

    @property
    def identity(self) -> str:
        """See `Archive.identity`."""
        return self._opened.archive.identity

    @property
    def nulls(self) -> bool:  # type: ignore[override]
        """See `Archive.nulls`."""
        return self._opened.archive.nulls

    def catalog(self, selection: Selection, columns: Sequence[str] = (), record: Record = forget) -> Answer:
        """See `Archive.catalog`."""
        return self._opened.archive.catalog(selection, columns, self._record)

    def expect(self, detections: Sequence[DetectionId]) -> None:
        """See `Archive.expect`."""
        self._opened.archive.expect(detections)

    def fetch(
        self, package: Package, record: Record = forget, choose: Choose | None = None
    ) -> AbstractContextManager[Fetched]:
        """See `Archive.fetch`."""
        return self._opened.archive.fetch(package, self._record, choose)

    def _record(self, address: str, path: Path) -> None:
        self._recorded_sizes_checksums[address] = get_size_checksum_dict(str(path), self.record_checksums)


class ChandraSpectra(datasets.GeneratorBasedBuilder):
    """The builder: asks the catalog, fetches, reduces and yields one row a spectrum.

    Configs ``spectra`` (default), ``counts``, ``binned``, ``sources``, ``ebounds`` and ``responses`` hold the columns
    of `builder.model.columns`; ``spectra_short`` and so on take only the brightest detections (more than 4000 counts,
    significance above 80, within 1 arcmin), for a quick try.
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
            features=features(self.config.table, self.config.bins),
            citation=CITATION,
            homepage="https://cxc.cfa.harvard.edu/csc/",
        )

    def download_and_prepare(self, *args: Any, dl_manager: Any = None, **options: Any) -> None:
        """Prepare the data; see `datasets.DatasetBuilder.download_and_prepare`.

        Where no download manager is given, an `ArchiveDownloadManager` is made, which records sizes, and checksums
        where `datasets` asks for them.
        """
        if dl_manager is None:
            record = bool(getattr(self, "_record_checksums", False))  # datasets 3 has no such word
            dl_manager = ArchiveDownloadManager(self.config.settings, self.dataset_name, record_checksums=record)
        super().download_and_prepare(*args, dl_manager=dl_manager, **options)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        from builder.dataset.rows import join
        from builder.store.fill import results
        from builder.workspace import make_plan

        settings = self.config.settings
        if not isinstance(dl_manager, ArchiveDownloadManager):  # of a stream, or the caller's own
            dl_manager = ArchiveDownloadManager(settings)
        workspace = dl_manager.workspace
        plan = make_plan(workspace, settings)
        if left := [column.name for column in own_columns(plan.catalog.schema)]:
            logger.warning("the builder leaves out %s: chandra-spectra prepare keeps them", ", ".join(left))
        # datasets shares lists out among its processes, but what is distinct or summed must be met by one process
        packages = tuple(plan.packages) if self.config.table in (*_DISTINCT, "sources") else list(plan.packages)
        # of a tuple every process gets the whole
        found = {"packages": packages, "plan": plan.packages, "catalog": plan.catalog, "workspace": workspace}
        names = [
            split
            for config, split in parts(settings.splits, True, self.config.bins, True)
            if config == self.config.table
        ]
        if len(names) > 1:  # datasets refuses a split without rows
            there: set[str] = set()
            for package, result in results(packages, workspace.archive, workspace.store, plan.packages):
                there.update(join(plan.catalog, package, result, settings.splits)["split"].to_pylist())
                if len(there) == len(names):
                    break
            names = [split for split in names if split in there] or names[:1]
        own = [{"split": split, "warn": split == names[0]} for split in names]
        return [datasets.SplitGenerator(options["split"], found | options) for options in own]

    def _generate_examples(self, **share: Any) -> Iterator[tuple[int | str, dict[str, Any]]]:
        from builder.dataset.rows import examples

        key = _DISTINCT.get(self.config.table, "object_id")
        for _, table in self._generate_tables(**share):
            for row in examples(table):
                yield row["detection_ids"][0] if self.config.table == "sources" else row[key], row

    def _generate_tables(
        self,
        packages: list[Package],
        plan: tuple[Package, ...],
        catalog: pa.Table,
        workspace: Workspace,
        split: str,
        warn: bool,
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of each package that has any, as one table."""
        from builder.dataset.binned import binned
        from builder.dataset.rows import join, public
        from builder.dataset.sources import sum_sources
        from builder.store.fill import results

        name, settings = self.config.table, self.config.settings
        splits, bins = settings.splits, settings.bins
        rejected, known = 0, set[str]()

        def read() -> Iterator[tuple[Package, PackageResult, pa.Table]]:
            """Read the packages, from the first on each time; of joined rows those of the split."""
            nonlocal rejected
            rejected = 0
            for package, result in results(packages, workspace.archive, workspace.store, plan):
                rejected += len(result.rejections)
                rows = join(catalog, package, result, splits)
                rows = binned(rows, result, settings.recipe, bins) if bins else rows
                yield package, result, rows.filter(pc.equal(rows["split"], split)) if splits.divided else rows

        if name == "sources":
            for number, sums in enumerate(sum_sources(lambda: (rows for *_, rows in read()))):
                yield number, public(sums, name)
        else:
            for package, result, rows in read():
                if key := _DISTINCT.get(name):
                    rows = getattr(result, name)
                    new = [value not in known for value in rows[key].to_pylist()]
                    known.update(rows[key].to_pylist())
                    rows = rows.filter(pa.array(new, pa.bool_()))
                if len(rows):
                    yield package.start, public(rows, name, bins)
        if rejected and warn:  # each split goes through all packages
            logger.warning("%d detections have no usable spectrum and are left out", rejected)

    def _prepare_split_single(self, **options: Any) -> Iterator[tuple[int, bool, Any]]:
        """Write the tables as they are: a Python dict a row, with an array for each list, takes five times as long."""
        for name in ("split_info", "check_duplicate_keys"):  # the latter of datasets 3
            options.pop(name, None)
        written: Iterator[tuple[int, bool, Any]] = datasets.ArrowBasedBuilder._prepare_split_single(self, **options)
        return written
