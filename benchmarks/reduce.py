"""What reducing one detection costs: Sherpa's session, this project, and the floor, turn by turn in one process.

- plain: gzipped PHA, ARF and RMF files on disk, through `sherpa.astro.ui`
- project: the same bytes through `builder.reduce.spectrum.reduce_products`
- floor: inflating the three files
- light: PHA and ARF through the same, with channel energies that are known, as `--rmf observation` does
- light floor: inflating these two

The detections are the two real ones that come with Sherpa and some simulated ones. Run it with
``python benchmarks/reduce.py [--rounds 50]``.
"""

from __future__ import annotations

import argparse
import logging
import operator
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from builder.archive.products import group_products
from builder.model.ids import DetectionId
from builder.model.records import Products, Spectrum
from builder.model.settings import Recipe
from builder.reduce import energies as channel_energies
from builder.reduce import spectrum as reduction
from builder.reduce.energies import read_energies
from builder.reduce.ogip import inflate
from builder.reduce.spectrum import reduce_products
from builder.simulator.embedded import embedded_rows_and_files

RECIPE = Recipe()
SIMULATED = 2
WAYS = ("plain", "project", "floor", "light", "light floor")
RATIOS = (("plain", "project"), ("project", "floor"), ("plain", "light"), ("light", "light floor"))
Step = tuple[str, Any, str]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the reduction of one detection against Sherpa's session.")
    parser.add_argument("--rounds", type=int, default=50, help="how often each is timed (default 50)")
    rounds = parser.parse_args().rounds
    logging.getLogger("sherpa").setLevel(logging.ERROR)
    found = detections()
    with tempfile.TemporaryDirectory() as folder:
        times = compare(found, Path(folder), rounds)
    profiles = {str(products.detection): profile(products, rounds) for products in found}
    console = Console(highlight=False)
    console.print(comparison(times, found), "", breakdown(profiles))


def detections() -> list[Products]:
    """The two real detections, and some simulated ones."""
    found = []
    for row, files in embedded_rows_and_files():
        detection = DetectionId(*(int(str(row[name])) for name in ("obsid", "obi", "region_id")))
        [products, *others] = group_products([detection], files)
        if not others and isinstance(reduce_products(products, RECIPE), Spectrum):
            found.append((not str(row["name"]).startswith("2CXO"), products))
    found.sort(key=lambda entry: entry[0])
    return [products for _, products in found[: 2 + SIMULATED]]


def three(products: Products) -> list[Any]:
    return [products.pha, products.arf, products.rmf]


def compare(found: list[Products], folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of CPU by detection and way."""
    import sherpa.astro.ui as ui

    energies = {
        products.detection: replace(
            read_energies(products.detection, three(products)[2]), detection=products.detection.with_cycle("e1")
        )
        for products in found  # of another detection, as most are
    }

    def plain(products: Products) -> None:
        ui.load_pha(str(folder / three(products)[0].name))
        ui.ignore(None, RECIPE.energy_min)
        ui.ignore(RECIPE.energy_max, None)
        ui.subtract()
        ui.group_counts(RECIPE.min_counts)
        ui.get_data_plot()

    ways: dict[str, Callable[[Products], object]] = {
        "plain": plain,
        "project": lambda products: reduce_products(products, RECIPE),
        "floor": lambda products: [inflate(file) for file in three(products)],
        "light": lambda products: reduce_products(
            replace(products, rmf=None), RECIPE, energies=energies[products.detection]
        ),
        "light floor": lambda products: [inflate(file) for file in three(products)[:2]],
    }
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for file in (file for products in found for file in three(products)):
        (folder / file.name).write_bytes(file.data)
    for turn in range(rounds + 1):
        for products in found:
            for way, run in ways.items():
                run(products)  # so that none finds the processor's caches as another way left them
                start = time.process_time()
                run(products)
                if turn:  # the first one imports and fills caches
                    times[str(products.detection)][way].append(time.process_time() - start)
    return times


class Steps:
    """Adds up the CPU time within some functions; a step within a step belongs to the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._busy = False

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return function(*args, **kwargs)
            self._busy = True
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] += time.process_time() - start
                self._busy = False

        return run


@contextmanager
def instrumented(steps: Steps) -> Iterator[None]:
    """Put a stopwatch around each step: some thirty calls, so that it shows nothing of its own."""
    pha, table = reduction.DataPHA, reduction.Table
    places: list[Step] = [
        ("inflate", reduction, "inflate"),
        ("headers", reduction, "tables"),
        ("columns", table, "columns"),
        ("sha256", reduction, "sha256"),
        ("sha256", channel_energies, "sha256"),
        ("Sherpa objects", reduction, "_data_pha"),
        ("Sherpa objects", pha, "set_background"),
        ("Sherpa filter", pha, "ignore"),
        ("Sherpa group", reduction, "_group"),
        ("Sherpa rate", pha, "get_background_scale"),
        ("Sherpa rate", pha, "get_y"),
        ("Sherpa errors", pha, "get_yerr"),
        ("Sherpa bins", pha, "apply_filter"),
        ("record", reduction, "Spectrum"),
    ]
    original = [(owner, name, getattr(owner, name)) for _, owner, name in places]
    try:
        for label, owner, name in places:
            setattr(owner, name, steps.timed(label, getattr(owner, name)))
        yield
    finally:
        for owner, name, function in original:
            setattr(owner, name, function)


def profile(products: Products, rounds: int) -> dict[str, float]:
    """Median seconds of each step of this project's reduction, `rest` and `all` included."""
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        steps = Steps()
        with instrumented(steps):
            start = time.process_time()
            reduce_products(products, RECIPE)
            total = time.process_time() - start
        for label, seconds in {**steps.seconds, "rest": total - sum(steps.seconds.values()), "all": total}.items():
            samples[label].append(seconds)
    return {label: median(values) for label, values in samples.items()}


def comparison(times: dict[str, dict[str, list[float]]], found: list[Products]) -> Table:
    table = Table(title="CPU, ms, and ratios within a turn: medians", title_justify="left")
    headings = ("detection", "gzipped kB", *WAYS, *(f"{one} / {other}" for one, other in RATIOS))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "detection" else "right")
    for products in found:
        name = str(products.detection)
        ratios = (map(operator.truediv, times[name][one], times[name][other]) for one, other in RATIOS)
        size = sum(len(file.data) for file in three(products)) / 1e3
        numbers = (f"{1e3 * median(times[name][way]):.2f}" for way in WAYS)
        table.add_row(name, f"{size:,.0f}", *numbers, *(f"{median(ratio):.2f}" for ratio in ratios))
    return table


def breakdown(profiles: dict[str, dict[str, float]]) -> Table:
    table = Table(title="The project's steps, ms and share", title_justify="left")
    table.add_column("step")
    for name in profiles:
        table.add_column(name, justify="right")
    for label in next(iter(profiles.values())):
        cells = [f"{1e3 * steps[label]:.2f}  {steps[label] / steps['all']:4.0%}" for steps in profiles.values()]
        table.add_row(label, *cells, end_section=label == "rest")
    return table


if __name__ == "__main__":
    main()
