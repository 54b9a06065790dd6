"""Fit an absorbed power law to the channel counts of one source, and compare with Sherpa's own fit.

    pip install 'chandra-spectra[plots]'
    python examples/forward_fit.py [FOLDER] [PICTURE]

FOLDER is a prepared folder with config `responses` (default chandra_spectra), PICTURE the PNG (forward_fit.png).

One fit knows the row and `Calibration.fold`; the other is Sherpa's own, of the PHA, ARF and RMF files that come with
Sherpa. Both minimise the Cash statistic of the counts in 0.5-7 keV; what they expect in a channel is the folded model
plus the background, scaled to the source region and smoothed: channel by channel it would bias faint rows.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

try:
    from matplotlib import pyplot as plt
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots]'")
import numpy as np
import sherpa
from datasets import concatenate_datasets, load_dataset
from sherpa.optmethods import NelderMead

from builder.dataset.layout import lacks
from builder.simulator.sky import absorption_cross_section
from chandra_spectra import Calibration

FILES = {"4938.0.43": "acisf04938_000N002_r0043_pha3.fits", "7867.0.2": "acisf07867_000N001_r0002_pha3.fits"}
DETECTION = "4938.0.43"
ENERGIES = 0.5, 7.0
UNITS = {"nh": "1e22 cm-2", "index": "none", "log_norm": "log10 photon cm-2 s-1 keV-1 at 1 keV"}
START, LOWER, UPPER = [0.1, 1.7, -4.0], [0.0, -1.0, -7.0], [10.0, 5.0, -1.0]


def absorbed_power_law(low: Any, high: Any, nh: float, index: float, log_norm: float) -> Any:
    """Photons cm-2 s-1 in each energy bin, from the value at its middle: the bins are 0.01 keV wide."""
    middle = (low + high) / 2
    return 10**log_norm * middle**-index * np.exp(-1e22 * nh * absorption_cross_section(middle)) * (high - low)


def fit_row(row: dict[str, Any], calibration: Calibration) -> tuple[Any, Any]:
    """Fit the parameters, and predict the counts in each channel with the background."""
    low, high = calibration.energies(row["ebounds_id"])
    kept = (high > ENERGIES[0]) & (low < ENERGIES[1])  # as Sherpa: all channels that reach into the range
    background = calibration.background(row)

    def expected(parameters: Any) -> Any:
        return background + calibration.fold(lambda low, high: absorbed_power_law(low, high, *parameters), row)

    def cash(parameters: Any) -> tuple[float, None]:
        model = expected(parameters)[kept]
        return 2 * float(np.sum(model - row["counts"][kept] * np.log(model))), None

    best = NelderMead().fit(cash, START, LOWER, UPPER)[1]
    return best, expected(best)


def fit_files(detection: str) -> tuple[Any, Any]:
    """Let Sherpa fit its own files; best parameters and their errors."""
    logging.getLogger("sherpa").setLevel(logging.ERROR)
    from sherpa.astro import ui

    ui.load_pha(f"{sherpa.__path__[0]}/astro/datastack/tests/data/{FILES[detection]}")
    background = np.convolve(ui.get_data().sum_background_data(), np.full(51, 1 / 51), "same")  # scaled, all channels
    ui.load_user_model(lambda p, low, high: absorbed_power_law(low, high, *p), "absorbed")
    ui.add_user_pars("absorbed", list(UNITS), START, LOWER, UPPER)
    ui.load_user_model(lambda p, *channels: background, "background")
    absorbed, constant = ui.get_model_component("absorbed"), ui.get_model_component("background")
    constant.ampl.freeze()
    ui.set_full_model(ui.get_response()(absorbed) + constant)
    ui.notice(*ENERGIES)
    ui.set_stat("cash"), ui.set_method("neldermead")
    ui.fit(), ui.covar()
    return np.array(ui.get_fit_results().parvals), np.array(ui.get_covar_results().parmaxes)


def draw(picture: str, row: dict[str, Any], calibration: Calibration, model: Any) -> None:
    bins = calibration.rebin(row, np.geomspace(*ENERGIES, 50))
    low, high = bins["energy_lo"], bins["energy_hi"]
    first = np.searchsorted(calibration.energies(row["ebounds_id"])[0], np.append(low, high[-1]))
    expected, background = (np.add.reduceat(each, first)[:-1] for each in (model, calibration.background(row)))
    figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(6.4, 5), height_ratios=(3, 1), layout="constrained")
    width, middle, steps = high - low, (low + high) / 2, np.append(low, high[-1])
    rate, error = bins["counts"] / width, np.sqrt(bins["counts"]) / width
    top.errorbar(middle, rate, error, width / 2, fmt="none", ecolor="C0", elinewidth=1, label=row["name"])
    top.stairs(background / width, steps, color="0.6", label="background, smoothed")
    top.stairs(expected / width, steps, color="C1", label="absorbed power law + background")
    top.set(ylabel="counts / keV", xscale="log", yscale="log", xlim=ENERGIES)
    top.legend(frameon=False)
    bottom.axhline(0, color="C1", lw=1)
    bottom.plot(middle, (bins["counts"] - expected) / np.sqrt(expected), "o", color="C0", ms=3)
    bottom.set(xlabel="energy (keV)", ylabel="residual (σ)", ylim=(-4, 4))
    bottom.set_xticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    bottom.xaxis.set_minor_formatter("")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "forward_fit.png") -> None:
    """Fit twice, compare, and draw."""
    plt.switch_backend("Agg")
    if reason := lacks(folder, "responses"):
        sys.exit(reason)
    counts = concatenate_datasets(list(load_dataset(folder, "counts").values())).with_format("numpy")
    row, calibration = counts[list(counts["detection_id"]).index(DETECTION)], Calibration.load(folder)
    best, model = fit_row(row, calibration)
    theirs, errors = fit_files(DETECTION)
    print("parameter    the row    Sherpa     error  unit")
    for (name, unit), *numbers in zip(UNITS.items(), best, theirs, errors, strict=True):
        print(f"{name:<10}" + "".join(f"{number:>10.4f}" for number in numbers), unit, sep="  ")
    print(f"largest difference: {np.max(np.abs(best - theirs) / errors):.1g} of the error")
    draw(picture, row, calibration, model)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
