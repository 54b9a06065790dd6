"""Learn the photon index that the catalog's pipeline fitted, from the channels of a spectrum, with torch.

    pip install 'chandra-spectra[plots,torch]'
    python examples/powerlaw.py [FOLDER] [PICTURE]

FOLDER is a prepared folder (default chandra_spectra), PICTURE the PNG to write (default powerlaw.png).

The label, `powlaw_gamma`, is null where the pipeline fitted nothing: such rows are left out, never taken for 0. Its
limits are the weights: an index that is known to 0.05 counts for more than one known to 0.5. The model sees what a fit
sees: the net counts in ten bins, each divided by the effective area of that very detection, and how sure each is.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    import torch
    from matplotlib import pyplot as plt
    from torch import nn
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots,torch]'")
import numpy as np
import pyarrow.compute as pc
from datasets import concatenate_datasets, load_dataset

from builder.dataset.layout import lacks
from chandra_spectra import Calibration

COLUMNS = ["split", "powlaw_gamma", "powlaw_gamma_lolim", "powlaw_gamma_hilim", "exposure", "background_scale"]
CHANNELS = ["counts", "background_counts", "arf", "ebounds_id"]
EDGES = np.geomspace(0.5, 7.0, 11)
SCATTER = 0.2
"""Of the model: labels that are known better than this do not count for more."""


def inputs(calibration: Calibration, rows: Any) -> torch.Tensor:
    """Make 20 numbers of each row: log photon rates in bins, less their mean, and their relative errors."""
    binned = calibration.rebin(rows, EDGES)
    scale = np.array(rows["background_scale"])[:, None]
    net = binned["counts"] - scale * binned["background_counts"]
    error = np.sqrt(binned["counts"] + scale**2 * binned["background_counts"] + 1)
    width = binned["energy_hi"] - binned["energy_lo"]
    log_rate = np.log(np.maximum(net, 0.5 * error) / binned["effective_area"] / width)
    sure = np.clip(net / error, 0.5, None)
    log_rate -= np.average(log_rate, axis=1, weights=sure**2)[:, None]
    return torch.from_numpy(np.concatenate([log_rate, 1 / sure], axis=1)).float()


def labels(rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the labels and their weights: the inverse square of half the width between the limits, and of SCATTER."""
    gamma, low, high = (torch.tensor(rows[name].to_numpy()) for name in COLUMNS[1:4])
    weight = 1 / (((high - low) / 2) ** 2 + SCATTER**2)
    return gamma, weight / weight.mean()


def fit(known: torch.Tensor, gamma: torch.Tensor, weight: torch.Tensor) -> nn.Module:
    """Train a small network, which starts from the mean of the labels."""
    model = nn.Sequential(nn.Linear(known.shape[1], 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 1), nn.Flatten(0))
    nn.init.zeros_(model[3].weight)
    nn.init.constant_(model[3].bias, float((weight * gamma).mean()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=3)  # strong: there may be few rows
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        loss = (weight * (model(known) - gamma) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def draw(picture: str, parts: dict[str, tuple[Any, Any]]) -> None:
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
    for (label, (rows, found)), style in zip(parts.items(), (("C0", "none", 0.5), ("C1", "C1", 1)), strict=True):
        gamma, low, high = (rows[name].to_numpy() for name in COLUMNS[1:4])
        color, fill, alpha = style
        bars = np.maximum([gamma - low, high - gamma], 0)
        axes.errorbar(gamma, found, xerr=bars, fmt="o", ms=4, lw=0.8, mfc=fill, color=color, alpha=alpha,
                      label=f"{label} ({len(gamma)})")  # fmt: skip
    ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(ends, ends, color="0.7", lw=1, zorder=0)
    axes.set(xlabel="powlaw_gamma of the catalog, with its limits", ylabel="photon index from the spectrum")
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "powerlaw.png") -> None:
    """Train, compare with guessing the mean, and draw."""
    if reason := lacks(folder):
        sys.exit(reason)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the batches are tiny
    splits = load_dataset(folder, "counts")
    rows = concatenate_datasets(list(splits.values())).select_columns(COLUMNS + CHANNELS).with_format("arrow")[:]
    fitted = rows.filter(pc.and_(pc.is_valid(rows["powlaw_gamma"]), pc.is_valid(rows["powlaw_gamma_hilim"])))
    is_train = pc.equal(fitted["split"], "train")
    train, held_out = fitted.filter(is_train), fitted.filter(pc.invert(is_train))
    calibration = Calibration.load(folder)
    known, test = inputs(calibration, train), inputs(calibration, held_out)
    (gamma, weight), (truth, sure) = labels(train), labels(held_out)
    model = fit(known, gamma, weight)
    with torch.no_grad():
        found, seen = model(test), model(known)
    guess = (sure * (truth - gamma.mean()) ** 2).mean().sqrt()
    error = (sure * (truth - found) ** 2).mean().sqrt()
    print(f"{len(rows)} spectra, {len(fitted)} of them fitted: {len(train)} to train on, {len(held_out)} held out")
    print(f"weighted error of the index, held out:  the mean of the training set {guess:.2f},  the model {error:.2f}")
    draw(picture, {"train": (train, seen), "held out": (held_out, found)})
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
