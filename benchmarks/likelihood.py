"""Recover a power law from drawn counts with each likelihood, and write the table of docs/training.md.

Run from a checkout: ``python benchmarks/likelihood.py --draws 60``. The response, the background's shape and its scale
are those of a real detection of the embedded sample; the photon index is 1.7.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from builder.use.background import smoothed

CASES = ((40, 4), (40, 20), (100, 50), (1000, 40))
"""Net counts, and background counts in the source region, that are expected in the kept channels."""

INDEX = 1.7
_GRID = np.arange(-3.0, 7.01, 0.05)

Statistic = Callable[[Any], float]


def cash(counts: Any, background: Any) -> Statistic:
    """Statistic of counts whose background is taken as exact (Cash 1979, ApJ 228, 939)."""
    return lambda model: 2 * float(np.sum(model + background - counts * np.log(model + background)))


def wstat(counts: Any, background: Any, scale: float) -> Statistic:
    """Statistic in which each bin has a background of its own, the best for it (XSPEC's W; Wachter et al. 1979)."""
    ratio = 1 / scale
    both = 1 + ratio

    def statistic(model: Any) -> float:
        spread = both * model - counts - background
        best = (np.sqrt(spread**2 + 4 * both * background * model) - spread) / (2 * both)
        told = model + both * best - _logged(counts, model + best) - _logged(background, ratio * best)
        return 2 * float(np.sum(told))

    return statistic


def _logged(counts: Any, expected: Any) -> Any:
    return counts * np.log(np.where(counts > 0, expected, 1))


class Experiment:
    """A power law seen through the response of a row of config ``counts``."""

    def __init__(self, row: dict[str, Any], calibration: Any, bins: int = 32, scale: float | None = None) -> None:
        self.low, self.high = calibration.energies(row["ebounds_id"])
        self.kept = (self.low >= 0.5) & (self.high <= 7)
        self.bins, self.scale = bins, scale or float(row["background_scale"])
        self.shape = smoothed(np.asarray(row["background_counts"])[None])[0]
        self.shape /= self.shape[self.kept].sum()
        folded = [calibration.fold(lambda low, high, g=g: ((low + high) / 2) ** -g * (high - low), row) for g in _GRID]
        self.folded = np.array(folded)
        centre = (self.low + self.high) / 2
        self.first = np.searchsorted(centre, np.geomspace(0.5, 7, bins + 1))

    def rebin(self, values: Any) -> Any:
        """Sum channels in logarithmic bins."""
        return np.add.reduceat(values, self.first, axis=-1)[..., :-1]

    def recover(self, net: float, background: float, draws: int, seed: int = 1) -> dict[str, Any]:
        """Fit each draw by each likelihood: index and norm, as a part of the true one, of shape (draws, 2)."""
        generator = np.random.default_rng(seed)
        true = self.folded[int(np.abs(_GRID - INDEX).argmin())]
        norm = net / true[self.kept].sum()
        expected = background * self.shape
        kept, scale, rebin = self.kept, self.scale, self.rebin
        found: dict[str, list[Any]] = {}
        for _ in range(draws):
            counts, other = generator.poisson(norm * true + expected), generator.poisson(expected / scale)
            smooth = scale * smoothed(other[None])[0]
            statistics: dict[str, tuple[Statistic, Any]] = {
                "channel by channel": (cash(counts[kept], scale * other[kept]), self.folded[:, kept]),
                "W, in channels": (wstat(counts[kept], other[kept], scale), self.folded[:, kept]),
                "smoothed over 51 channels": (cash(counts[kept], smooth[kept]), self.folded[:, kept]),
                f"in {self.bins} bins": (cash(rebin(counts), scale * rebin(other)), rebin(self.folded)),
                f"W, in {self.bins} bins": (wstat(rebin(counts), rebin(other), scale), rebin(self.folded)),
                "the true one": (cash(counts[kept], expected[kept]), self.folded[:, kept]),
            }
            for name, (statistic, folded) in statistics.items():
                found.setdefault(name, []).append(_fit(statistic, np.log(folded), norm))
        return {name: np.array(values) for name, values in found.items()}


def _fit(statistic: Statistic, folded: Any, norm: float) -> tuple[float, float]:
    """Minimise the statistic over index and norm; between the indices of the grid its logarithm is linear."""
    from sherpa.optmethods import NelderMead

    def told(parameters: Any) -> tuple[float, None]:
        place = (parameters[0] - _GRID[0]) / (_GRID[1] - _GRID[0])
        number = min(int(place), len(_GRID) - 2)
        part = place - number
        logged = (1 - part) * folded[number] + part * folded[number + 1] + parameters[1]
        return statistic(norm * np.exp(logged)), None

    _, best, *_ = NelderMead().fit(told, [INDEX, 0.0], [_GRID[0], -5.0], [_GRID[-1], 5.0])
    return best[0], float(np.exp(best[1]))


def experiment(folder: str, detection: str, *options: Any) -> Experiment:
    """Make an experiment of a row of a folder that was prepared with the responses."""
    from datasets import concatenate_datasets, load_dataset

    from chandra_spectra import Calibration

    counts = concatenate_datasets(list(load_dataset(folder, "counts").values())).with_format("numpy")
    return Experiment(counts[list(counts["detection_id"]).index(detection)], Calibration.load(folder), *options)


def main() -> None:
    """Print the table."""
    from datasets import disable_progress_bars

    from builder import DetectionId, Selection, Settings, prepare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=60, help="draws of each case (default: 60)")
    parser.add_argument("--detection", default="4938.0.43", help="detection of the embedded sample")
    parser.add_argument("--bins", type=int, default=32, help="logarithmic bins in 0.5-7 keV (default: 32)")
    parser.add_argument("--scale", type=float, help="background scale (default: the detection's)")
    arguments = parser.parse_args()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as work:
        chosen = Selection(detections=frozenset([DetectionId.parse(arguments.detection)]))
        prepare(f"{work}/chandra_spectra", Settings("embedded", selection=chosen, responses=True))
        made = experiment(f"{work}/chandra_spectra", arguments.detection, arguments.bins, arguments.scale)
    found = [made.recover(*case, arguments.draws) for case in CASES]
    print(f"index and norm, mean of {arguments.draws} draws; true are {INDEX} and 1; background scale {made.scale:.3f}")
    print("| background | " + " | ".join(f"{net} on {background}" for net, background in CASES) + " |")
    print("| --- |" + " --- |" * len(CASES))
    for name in found[0]:
        cells = []
        for case in found:
            index, norm = case[name].T
            error = index.std(ddof=1) / np.sqrt(len(index))
            cells.append(f"{index.mean():.2f} ± {error:.2f}, {norm.mean():.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
