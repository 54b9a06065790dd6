"""The background to fit with: smooth, since that of single channels is a draw of few counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.model.errors import SettingError
from builder.model.records import N_CHANNELS

Floats = NDArray[np.float64]

WIDTH = 51
"""Channels of the running mean, 0.74 keV: as wide as the features of the background allow (docs/training.md)."""


def smoothed(counts: NDArray[Any], width: int = WIDTH) -> Floats:
    """Average counts over the channels about each, with fewer at both ends.

    Parameters
    ----------
    counts : ndarray, shape (rows, 1024)
    width : int
        Number of channels, odd; 1 leaves the counts as they are.

    Returns
    -------
    ndarray of float64, shape (rows, 1024)

    Raises
    ------
    SettingError
        If the width is no odd number from 1 to 1023.
    """
    if isinstance(width, bool) or not isinstance(width, int) or not (0 < width < N_CHANNELS and width % 2):
        raise SettingError(f"width must be an odd number of channels from 1 to {N_CHANNELS - 1}, not {width!r}")
    total = np.zeros((len(counts), N_CHANNELS + 1))
    np.cumsum(counts, axis=1, out=total[:, 1:])
    middle = np.arange(N_CHANNELS)
    first, end = np.maximum(middle - width // 2, 0), np.minimum(middle + width // 2 + 1, N_CHANNELS)
    mean: Floats = (total[:, end] - total[:, first]) / (end - first)
    return mean
