"""Match a list of positions to the spectra, with astropy.

    pip install 'chandra-spectra[plots]'
    python examples/crossmatch.py [FOLDER] [PICTURE]

FOLDER is a prepared folder (default chandra_spectra), PICTURE the PNG to write (default crossmatch.png).

Every detection within 2 arcsec of a position is a match: a source that was observed more than once has several. The
catalog gives the position of the source, the same for all its detections. For lists of many thousands take
`SkyCoord.search_around_sky`, which needs SciPy, or the HATS export with LSDB.
"""

from __future__ import annotations

import sys
from typing import Any

try:
    from matplotlib import pyplot as plt
except ImportError as error:
    sys.exit(f"{error}: pip install 'chandra-spectra[plots]'")
import numpy as np
from astropy import units
from astropy.coordinates import SkyCoord
from datasets import concatenate_datasets, load_dataset

from builder.dataset.layout import lacks

RADIUS = 2 * units.arcsec

# What a list from elsewhere looks like: positions (ICRS, deg) that are off by about an arcsecond. The names A and B are
# real sources, C to F simulated ones of the embedded sample, and at X and Y there is nothing.
POSITIONS = {
    "A": (349.87240, 0.59930),
    "B": (353.00160, 0.26918),
    "C": (281.20620, 12.26140),
    "D": (152.40540, -50.78580),
    "E": (357.37740, -35.50200),
    "F": (32.06660, 15.14860),
    "X": (349.87240, 0.60100),
    "Y": (83.63308, 22.01450),
}


def match(listed: SkyCoord, rows: SkyCoord) -> list[tuple[int, int]]:
    """Pairs of a position and a row within the radius."""
    separation = listed[:, np.newaxis].separation(rows[np.newaxis, :])
    return [(int(position), int(row)) for position, row in zip(*np.nonzero(separation < RADIUS), strict=True)]


def draw(picture: str, listed: SkyCoord, sky: SkyCoord, pairs: list[tuple[int, int]], spectra: Any) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 4), width_ratios=(1, 1.3), layout="constrained")
    left.add_patch(plt.Circle((0, 0), RADIUS.value, fill=False, color="0.7"))
    left.plot(0, 0, "+", color="0.5", ms=10)
    for position, row in dict(pairs).items():  # the detections of a source share its position
        east, north = (offset.to_value("arcsec") for offset in listed[position].spherical_offsets_to(sky[row]))
        name, color = list(POSITIONS)[position], f"C{position}"
        left.plot(east, north, "o", color=color)
        left.annotate(name, (east, north), (5, 4), textcoords="offset points")
        spectrum, label = spectra[row]["spectrum"], f"{name}  {spectra[row]['name']}"
        right.plot(spectrum["ene_center_bin"], spectrum["flux"], color=color, lw=0.9, label=label)
    left.set(
        xlim=(2.4, -2.4),
        ylim=(-2.4, 2.4),
        aspect="equal",
        xlabel="source east of the position (arcsec)",
        ylabel="north (arcsec)",
    )
    right.set_yscale("log", nonpositive="mask")
    right.set(xscale="log", ylim=(1e-5, 2), xlabel="energy (keV)", ylabel="counts / s / keV")
    right.set_xticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
    right.xaxis.set_minor_formatter("")
    right.legend(frameon=False, fontsize=7, loc="lower left")
    figure.savefig(picture, dpi=100, metadata={"Software": None})


def main(folder: str = "chandra_spectra", picture: str = "crossmatch.png") -> None:
    """Match, print the matches, and draw."""
    plt.switch_backend("Agg")
    if reason := lacks(folder):
        sys.exit(reason)
    spectra = concatenate_datasets(list(load_dataset(folder).values()))
    places = spectra.select_columns(["ra", "dec"])[:]
    sky = SkyCoord(places["ra"], places["dec"], unit="deg")
    listed = SkyCoord(list(POSITIONS.values()), unit="deg")
    pairs = match(listed, sky)
    print(f"{len({position for position, _ in pairs})} of {len(POSITIONS)} positions match {len(pairs)} detections")
    print("    detection   arcsec  counts  source")
    for position, name in enumerate(POSITIONS):
        found = [row for each, row in pairs if each == position]
        if not found:
            print(f"{name}   nothing within {RADIUS}")
        for row in found:
            source, off = spectra[row], listed[position].separation(sky[row]).to_value("arcsec")
            print(f"{name}   {source['detection_id']:<11} {off:6.2f}  {source['source_counts']:6}  {source['name']}")
    draw(picture, listed, sky, pairs, spectra)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
