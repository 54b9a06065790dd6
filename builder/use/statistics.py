"""Mean, spread and quantiles of the rows to train on, as a prepared folder or a dataset on a hub has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.dataset.layout import MANIFEST_FILE, Manifest
from builder.model.column import ROW_CONFIGS
from builder.model.errors import OutputError, SettingError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of a column.

    Attributes
    ----------
    mean, std : ndarray of float64, shape () or (energies,)
        Null values are left out.
    quantiles : dict of float to ndarray
        By level: 0 (the least value), 0.05, 0.25, 0.5, 0.75, 0.95 and 1; empty for the 1024 channels.
    """

    mean: Floats
    std: Floats
    quantiles: dict[float, Floats]


class Statistics(Mapping[str, Distribution]):
    """Distributions by column of the rows to train on: those whose column ``split`` is train, in any split's files.

    Parameters
    ----------
    said : dict
        As the manifest has them.
    config : str
        Config ``spectra``, ``counts`` or ``binned``: all have the scalars, and the latter two their counts by energy.

    Examples
    --------
    >>> from chandra_spectra import Statistics
    >>> Statistics.load("chandra_spectra")["theta"].mean  # doctest: +SKIP
    """

    def __init__(self, said: Mapping[str, Any], config: str = "spectra") -> None:
        if config not in ROW_CONFIGS or (config != "spectra" and said.get("rows") and config not in said):
            raise SettingError(
                f"there are no statistics of config {config!r}: take spectra, counts, or binned if it is there"
            )
        self.rows: int = said["rows"]
        known = said["spectra"] | (said.get(config, {}) if config != "spectra" else {})
        self._known = {name: _distribution(each, said["levels"]) for name, each in known.items()}

    @classmethod
    def load(cls, path: str | Path, config: str = "spectra", revision: str | None = None) -> Statistics:
        """Read those of a prepared folder, or of a dataset on a hub.

        Parameters
        ----------
        path : str or Path
            A folder, else ``organisation/name`` on the hub.
        config : str
            ``spectra``, ``counts`` or ``binned``.
        revision : str, optional
            Of the dataset on the hub.

        Raises
        ------
        SettingError
            If the config has none.
        OutputError
            If it is no prepared folder, or one of an older version.
        """
        folder = Path(path)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            file = hf_hub_download(str(path), MANIFEST_FILE, repo_type="dataset", revision=revision)
            folder = Path(file).parent
        manifest = Manifest.read(folder)
        if not manifest.statistics:
            raise OutputError(f"the manifest of {path} has no statistics: prepare it again with --force")
        return cls(manifest.statistics, config)

    def __getitem__(self, name: str) -> Distribution:
        return self._known[name]

    def __iter__(self) -> Any:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def standardise(self, name: str, values: Any) -> Any:
        """Subtract the mean of a column and divide by its spread, where it has one.

        Parameters
        ----------
        name : str
            The column.
        values : array_like or torch.Tensor, shape (...) or (..., energies)
            Floats of any kind: what is NaN stays so.

        Returns
        -------
        ndarray or torch.Tensor
            Of the same shape.

        Raises
        ------
        SettingError
            If there is no such column.
        """
        if name not in self:
            raise SettingError(f"there are no statistics of a column {name!r}")
        pair: Any = self[name].mean, np.where(self[name].std > 0, self[name].std, 1.0)
        if hasattr(values, "numpy"):
            import torch

            pair = tuple(torch.as_tensor(each, dtype=torch.float32) for each in pair)
        else:
            values = np.asarray(values)
        return (values - pair[0]) / pair[1]


def _distribution(said: Mapping[str, Any], levels: list[float]) -> Distribution:
    quantiles = dict(zip(levels, map(np.asarray, said.get("quantiles", [])), strict=False))
    return Distribution(np.asarray(said["mean"]), np.asarray(said["std"]), quantiles)
