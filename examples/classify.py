"""Classify sources by their spectra, with labels of your own, and show the confusion matrix.

    pip install 'chandra-spectra[plots,torch]'
    chandra-spectra prepare --archive embedded --bins 64 --labels examples/sample_classes.csv
    python examples/classify.py [FOLDER] [PICTURE]

FOLDER is a prepared folder with fixed bins and a column `class` (default chandra_spectra, as `make sample` makes it),
PICTURE the PNG to write (default classify.png).

The classes of the embedded sample are the shapes that its spectra were simulated with. They are few, so each epoch
sees every row at another exposure: `thin` keeps a part of its counts. Rows of one source are on one side only.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from datasets import concatenate_datasets, load_dataset

try:
    import torch
    from matplotlib.figure import Figure
    from torch import nn
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots,torch]'")

from builder.dataset.layout import lacks
from chandra_spectra import collate, thin

COLUMNS = ["split", "class", "counts", "background_counts", "background_scale", "exposure", "effective_area"]
EPOCHS, COPIES = 150, 4


class Classifier(nn.Module):
    """A network of the shares of the bins in the counts: how bright a source is must not matter."""

    def __init__(self, bins: int, classes: int) -> None:
        super().__init__()
        self.bins = bins
        self.layers = nn.Sequential(nn.Linear(2 * bins // 4, 48), nn.GELU(), nn.Dropout(0.3), nn.Linear(48, classes))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Give the logarithms of the classes' probabilities, up to a sum."""
        net = batch["counts"] - batch["background_scale"][:, None] * batch["background_counts"]
        coarse = net.reshape(len(net), -1, 4).sum(dim=2)  # four bins together: most have few counts
        area = batch["effective_area"].reshape(len(net), -1, 4).mean(dim=2)
        photons = coarse / area  # a rough spectrum of photons
        shares = coarse / coarse.sum(dim=1, keepdim=True), photons / photons.sum(dim=1, keepdim=True)
        return self.layers(10 * torch.cat(shares, dim=1))


def draw(picture: str, matrix: torch.Tensor, names: list[str]) -> None:
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    share = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(matrix.numpy()):
        axes.text(
            column, row, int(number), ha="center", va="center", color="white" if share[row, column] > 0.6 else "k"
        )
    ticks = range(len(names))
    axes.set(xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names, xlabel="class found", ylabel="class")
    axes.set_title("rows of sources that were held out", fontsize=10)
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "classify.png") -> None:
    """Train on thinned rows, count what becomes of the others, and draw it."""
    if reason := lacks(folder, "binned"):
        sys.exit(reason)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the batches are tiny
    generator = np.random.default_rng(0)
    splits = load_dataset(folder, "binned")
    if "class" not in (features := splits["train"].features):
        sys.exit(f"{folder} was prepared without --labels: prepare it again so, with --force")
    names = features["class"].names
    rows = collate(concatenate_datasets(list(splits.values())).select_columns(COLUMNS).with_format("arrow")[:])
    known = rows["class"] >= 0  # a null is -1
    train = known & torch.tensor([split == "train" for split in rows.pop("split")])

    def chosen(which: torch.Tensor) -> dict[str, Any]:
        return {name: values[which] for name, values in rows.items()}

    seen, held_out = chosen(train), chosen(known & ~train)
    weight = 1 / torch.bincount(seen["class"], minlength=len(names)).clamp(min=1)
    model = Classifier(rows["counts"].shape[1], len(names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(EPOCHS * COPIES):
        fraction = 10 ** generator.uniform(-0.7, 0, len(seen["class"]))  # from a fifth of the exposure to all of it
        batch = thin(seen, fraction, generator)
        loss = nn.functional.cross_entropy(model(batch), batch["class"], weight / weight.mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = {part: model(thin(held_out, part, generator)).argmax(dim=1) for part in (1.0, 0.2)}
    matrix = torch.zeros(len(names), len(names), dtype=torch.int64)
    matrix.index_put_((held_out["class"], found[1.0]), torch.tensor(1), accumulate=True)
    print(f"trained on {len(seen['class'])} rows, {len(held_out['class'])} of other sources held out")
    right = [int((each == held_out["class"]).sum()) for each in found.values()]
    most = int(torch.bincount(held_out["class"]).max())
    print(f"right: {right[0]}, at a fifth of the exposure {right[1]}; the commonest class alone: {most}")
    for name, line in zip(names, matrix.tolist(), strict=True):
        print(f"{name:12}", *(f"{number:4}" for number in line))
    draw(picture, matrix, names)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
