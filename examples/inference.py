"""Infer the posterior of an absorbed power law by a network that is trained on simulated draws, and check it.

    pip install 'chandra-spectra[plots,torch]'
    python examples/inference.py [FOLDER] [PICTURE] [STEPS]

FOLDER is a prepared folder with config `binned` (default chandra_spectra), PICTURE the PNG (default inference.png),
STEPS the number of training steps (default 4000: a minute).

A draw takes parameters from the prior, response and background from some row; its counts are Poisson. The network
learns the posterior of all at once, and is checked on draws with rows of other sources: an interval of 68 % must hold
the truth of 68 %. Then it sees the counts of the two real detections, which Sherpa fits beside it.
"""

from __future__ import annotations

import sys

try:
    import torch
    from matplotlib import pyplot as plt
    from torch import Tensor, nn
    from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots,torch]'")
from datasets import load_dataset
from forward_fit import FILES, fit_files

from builder.dataset.layout import lacks
from builder.simulator.sky import absorption_cross_section
from chandra_spectra import collate

NAMES = ("nh, 1e22 cm-2", "photon index", "log10 norm")  # photons cm-2 s-1 keV-1 at 1 keV
LOWER, WIDTH = torch.tensor([0.0, 0.5, -6.0]), torch.tensor([1.0, 3.0, 3.0])  # of a flat prior
PARTS = 4  # of the mixture that the posterior is


class Rows:
    """Rows of a split, with which draws are made."""

    def __init__(self, folder: str, split: str) -> None:
        data = load_dataset(folder, "binned", split=split).with_format("arrow")
        self.batch = batch = collate(data.filter(lambda rows: rows["response"].is_valid(), batched=True)[:1000])
        self.background = batch["background_scale"][:, None] * batch["background_counts"]
        low, high = batch["photon_energy_lo"][0], batch["photon_energy_hi"][0]
        self.energy, self.width = (low + high) / 2, high - low
        self.absorption = torch.from_numpy(1e22 * absorption_cross_section(self.energy.numpy())).float()

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Simulate counts, each with a row's response and exposures around its own: where in the prior, and `see`."""
        row, place = torch.randint(len(self.background), (number,)), torch.rand(number, 3)
        nh, index, log_norm = (LOWER + WIDTH * place).T[..., None]
        photons = 10**log_norm * self.energy**-index * torch.exp(-nh * self.absorption) * self.width
        longer, more = 4 ** (2 * torch.rand(2, number) - 1)
        exposure, background = longer * self.batch["exposure"][row], more[:, None] * self.background[row]
        source = exposure[:, None] * torch.einsum("re,reb->rb", photons, self.batch["response"][row])
        return place, self.see(torch.poisson(source + background), background, exposure, row)

    def see(self, counts: Tensor, background: Tensor, exposure: Tensor, row: Tensor) -> Tensor:
        """Give the network's input: counts, background, and exposure times area, as logarithms."""
        area = exposure[:, None] * self.batch["effective_area"][row]
        return torch.cat([torch.log1p(counts), torch.log1p(background), torch.log1p(area) - 16], dim=1)


def posterior(network: nn.Module, seen: Tensor) -> MixtureSameFamily:
    """Make normal distributions of the places in the prior, which a logit maps from 0..1 to all real numbers."""
    weight, mean, scale, slant = network(seen).unflatten(-1, (PARTS, 10)).split([1, 3, 3, 3], dim=-1)
    tril = torch.diag_embed(nn.functional.softplus(scale) + 1e-3)
    tril[..., [1, 2, 2], [0, 0, 1]] = slant
    return MixtureSameFamily(Categorical(logits=weight[..., 0]), MultivariateNormal(mean, scale_tril=tril))


@torch.enable_grad()
def train(rows: Rows, steps: int) -> nn.Module:
    network = nn.Sequential(nn.LazyLinear(128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10 * PARTS))
    network(rows.draw(1)[1])  # tells it how much there is to see
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        place, seen = rows.draw(256)
        loss = -posterior(network, seen).log_prob(torch.logit(place, eps=1e-6)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(), schedule.step()
    return network


@torch.no_grad()
def main(folder: str = "chandra_spectra", picture: str = "inference.png", steps: str = "4000") -> None:
    """Train, check the coverage, compare with Sherpa, and draw."""
    if reason := lacks(folder, "binned"):
        sys.exit(reason)
    torch.manual_seed(0), torch.set_num_threads(1), plt.switch_backend("Agg")
    rows, held_out = Rows(folder, "train"), Rows(folder, "validation+test")
    network = train(rows, int(steps))
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6), layout="constrained")
    place, seen = held_out.draw(4000)
    below = (torch.sigmoid(posterior(network, seen).sample((500,))) < place).float().mean(dim=0)
    print("held-out draws within the interval of      68 %    95 %")
    for name, parts in zip(NAMES, below.T, strict=True):
        level = (2 * parts - 1).abs().sort().values  # of the central interval that just holds the truth
        left.plot(level, torch.linspace(0, 1, len(level)), label=name)
        print(f"{name:<38}" + "".join(f"{100 * (level <= wanted).float().mean():6.1f} %" for wanted in (0.68, 0.95)))
    left.set(xlabel="central interval of the posterior", ylabel="held-out draws within it", aspect="equal")
    for number, detection in enumerate(FILES):
        row = torch.tensor([rows.batch["detection_id"].index(detection)])
        seen = rows.see(rows.batch["counts"][row], rows.background[row], rows.batch["exposure"][row], row)
        samples = LOWER + WIDTH * torch.sigmoid(posterior(network, seen).sample((4000,)))[:, 0]
        fit, errors = fit_files(detection)
        for name, own, best, error in zip(NAMES, samples.T, fit, errors, strict=True):
            print(f"{detection:<10}{name:<14}{own.mean():6.2f} +- {own.std():.2f}  Sherpa{best:6.2f} +- {error:.2f}")
        right.plot(*samples[:300, :2].T, ".", color=f"C{number}", ms=3, alpha=0.5)
        right.errorbar(*fit[:2], *errors[1::-1], "o", color=f"C{number}", ecolor="k", label=f"Sherpa, {detection}")
    right.set(xlabel=NAMES[0], ylabel=NAMES[1], xlim=(-0.1, 0.4))
    left.legend(), right.legend()
    figure.savefig(picture, dpi=100, metadata={"Software": None})
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
