"""Learn spectra without labels: a masked autoencoder that predicts the counts of hidden bins, as a baseline.

    pip install 'chandra-spectra[plots,torch]'
    chandra-spectra prepare --archive embedded --bins 64
    python examples/masked.py [FOLDER] [PICTURE]

FOLDER is a prepared folder in splits (chandra_spectra), PICTURE the PNG to write (masked.png); the network is saved
beside it, loaded again, and measured by the Poisson deviance of a hidden bin (Cash 1979; about 1 for a true model) of
the test split, each run of eight bins hidden in its turn. The settings were chosen by the validation split.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from datasets import load_dataset

try:
    import torch
    from matplotlib.figure import Figure
    from torch import nn
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots,torch]'")
from builder.dataset.layout import lacks
from chandra_spectra import collate, thin

COLUMNS = ["counts", "background_counts", "exposure", "effective_area", "energy_lo", "energy_hi"]
EPOCHS, HIDDEN = 400, 8  # bins


class Masked(nn.Module):
    """A convolutional autoencoder of the bins that are seen, which corrects an interpolation of them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        first, last = nn.Conv1d(4, width, 7, padding=3), nn.Conv1d(width, 1, 7, padding=3)
        inner, outer = nn.Conv1d(width, width, 5, 2, 2), nn.ConvTranspose1d(width, width, 4, 2, 1)
        self.layers = nn.Sequential(first, nn.GELU(), inner, nn.GELU(), outer, nn.GELU(), last)
        nn.init.zeros_(last.weight)  # an interpolation to begin with

    def forward(self, batch: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Predict the counts in every bin from the ones that are not hidden."""
        area, smooth, seen = response(batch), interpolated(batch, hidden), (~hidden).float()
        level = ((batch["counts"] * seen).sum(dim=1) + 1) / (area * seen).sum(dim=1)
        shape = (smooth / area / level[:, None] + 1e-2).log()
        pull = seen * (batch["counts"] - smooth) / (smooth + 1).sqrt()
        inputs = torch.stack([shape, pull, seen, (area / area.mean(dim=1, keepdim=True)).log()], dim=1)
        return smooth * self.layers(inputs)[:, 0].clamp(-2, 2).exp()


def response(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    area = batch["exposure"][:, None] * batch["effective_area"] * (batch["energy_hi"] / batch["energy_lo"]).log()
    return area.clamp(min=1e-6 * float(area.max()))


def interpolated(batch: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """Expect in each bin what the bins around it have that are seen, by response and nearness."""
    bins = torch.arange(hidden.shape[1])
    near = 1 / (1 + ((bins[:, None] - bins) / 1.5) ** 4)
    area, seen = response(batch), (~hidden).float()
    return area * ((batch["counts"] * seen) @ near + 0.1) / ((area * seen) @ near)


def deviance(counts: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return 2 * (expected - counts + torch.xlogy(counts, counts) - counts * expected.log())


@torch.no_grad()
def filled(batch: dict[str, torch.Tensor], predict: Any) -> torch.Tensor:
    """Predict each run of bins from all the others."""
    runs = torch.arange(batch["counts"].shape[1]).expand(batch["counts"].shape) // HIDDEN
    return sum(torch.where(runs == run, predict(batch, runs == run), 0.0) for run in runs.unique())


def draw(picture: str, rows: dict[str, Any], expected: torch.Tensor) -> None:
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, row in zip(panels, rows["counts"].sum(dim=1).argsort()[[0, len(expected) // 2, -1]], strict=True):
        edges = np.append(rows["energy_lo"][row], rows["energy_hi"][row, -1])
        axes.stairs(rows["counts"][row], edges, label="measured")
        axes.stairs(expected[row], edges, baseline=None, color="C1", lw=1.5, label="predicted, when hidden")
        axes.set(xscale="log", xlabel="energy (keV)", xticks=[0.5, 1, 2, 4, 8], xticklabels=["0.5", "1", "2", "4", "8"])
        axes.minorticks_off()
    panels[0].legend(frameon=False, fontsize=8, title="counts in a bin", title_fontsize=8)
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "masked.png") -> None:
    """Train, save, load again, measure on the test split, and draw."""
    if reason := lacks(folder, "binned"):
        sys.exit(reason)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    splits = load_dataset(folder, "binned").select_columns(COLUMNS).with_format("arrow")
    train, test = (collate(splits[split][:]) for split in ("train", "test"))
    model, rows, bins = Masked(), len(train["counts"]), torch.arange(train["counts"].shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        batch = thin(train, 10 ** generator.uniform(-1, 0, rows), generator)  # of a tenth of the exposure or more
        hidden = (bins - torch.randint(len(bins), (rows, 1))) % len(bins) < HIDDEN
        loss = deviance(batch["counts"], model(batch, hidden))[hidden].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), file := f"{picture.removesuffix('.png')}.pt")
    again = Masked()
    again.load_state_dict(torch.load(file, weights_only=True))
    print(f"trained on {rows} rows, saved as {file}; deviance of a hidden bin, median of {len(test['counts'])} rows:")
    for part in (1.0, 0.1):
        batch = thin(test, part, generator)
        rows = [deviance(batch["counts"], filled(batch, each)).mean(dim=1) for each in (again, interpolated)]
        print("exposure x {}: {:.2f}; an interpolation {:.2f}".format(part, *(float(each.median()) for each in rows)))
    draw(picture, test, filled(test, again))
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
