"""Predict a source's hardness ratio from its spectrum, with torch and a stream.

    pip install 'chandra-spectra[plots,torch]'
    python examples/hardness.py [FOLDER] [PICTURE]

FOLDER is a prepared folder (default chandra_spectra), PICTURE the PNG to write (default hardness.png).

Rows are streamed as Arrow tables, padded by `collate`, and split by place on the sky, so that no source is on both
sides. The catalog's `hard_hs` is of photon fluxes; the model has the spectrum in counts only, and has
to find out by itself what the effective area does, which energies matter, and that the number of bins does not.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    import torch
    from matplotlib import pyplot as plt
    from torch import nn
    from torch.utils.data import DataLoader
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots,torch]'")
import pyarrow.compute as pc

from builder.dataset.layout import lacks
from chandra_spectra import Stream, collate

EPOCHS = 50


class Hardness(nn.Module):
    """A small network of the energy, averaged over the spectrum's bins by the counts in them."""

    def __init__(self) -> None:
        super().__init__()
        self.of_energy = nn.Sequential(nn.Linear(1, 32), nn.GELU(), nn.Linear(32, 16))
        self.of_mean = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 1), nn.Tanh())

    def forward(self, spectrum: dict[str, torch.Tensor]) -> torch.Tensor:
        """Predict a number in -1..1 for each spectrum; padding and bins below zero weigh nothing."""
        weight = (spectrum["flux"] * (spectrum["ene_high_bin"] - spectrum["ene_low_bin"])).clamp(min=0)
        weight = weight / weight.sum(dim=1, keepdim=True)
        log_energy = torch.where(spectrum["mask"], spectrum["ene_center_bin"], 1.0).log()
        mean = (weight[..., None] * self.of_energy(log_energy[..., None])).sum(dim=1)
        return self.of_mean(mean)[:, 0]


def loader(folder: str, split: str, *, shuffle: bool) -> DataLoader[Any]:
    known = pc.field("hard_hs").is_valid()
    stream = Stream(folder, split=split, columns=["hard_hs", "spectrum"], where=known, batch_size=8, shuffle=shuffle)
    return DataLoader(stream, batch_size=None, collate_fn=collate)


@torch.no_grad()
def predict(model: nn.Module, batches: DataLoader[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the catalog's values with the model's."""
    pairs = [(batch["hard_hs"], model(batch["spectrum"])) for batch in batches]
    known, found = zip(*pairs, strict=True)
    return torch.cat(known), torch.cat(found)


def draw(picture: str, train: tuple[torch.Tensor, torch.Tensor], held_out: tuple[torch.Tensor, torch.Tensor]) -> None:
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axes.plot([-1, 1], [-1, 1], color="0.7", lw=1, zorder=0)
    axes.plot(*train, "o", mfc="none", color="C0", alpha=0.6, ms=5, label=f"train ({len(train[0])})")
    axes.plot(*held_out, "o", color="C1", ms=6, label=f"held out ({len(held_out[0])})")
    axes.set(
        xlabel="hard_hs of the catalog   (hard - soft) / (hard + soft)",
        ylabel="hard_hs from the spectrum",
        xlim=(-1.05, 1.05),
        ylim=(-1.05, 1.05),
        aspect="equal",
    )
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "hardness.png") -> None:
    """Train, compare with guessing the mean, and draw."""
    if reason := lacks(folder):
        sys.exit(reason)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the batches are tiny
    train = loader(folder, "train", shuffle=True)  # another order in each epoch
    held_out = loader(folder, "validation+test", shuffle=False)
    model = Hardness()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in train:
            loss = nn.functional.mse_loss(model(batch["spectrum"]), batch["hard_hs"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    found, test = predict(model, train), predict(model, held_out)
    guess = (test[0] - found[0].mean()).square().mean().sqrt()
    error = (test[0] - test[1]).square().mean().sqrt()
    print(f"trained on {len(found[0])} spectra, {len(test[0])} of other sources held out")
    print(f"error of hard_hs, held out:  the mean of the training set {guess:.3f},  the model {error:.3f}")
    draw(picture, found, test)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
