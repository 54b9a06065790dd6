"""Measure the reading of a large catalog answer against astropy's general reader: CPU, and the most memory.

Run from a checkout: ``python benchmarks/catalog.py --rows 130000``. Needs Linux, for the memory.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def write(path: Path, rows: int) -> None:
    """Write an answer with so many rows, as a service does."""
    from builder.archive.catalog import write_votable
    from builder.simulator.products import SimulatedArchive

    simulated = SimulatedArchive(min(rows, 10_000)).rows
    path.write_bytes(write_votable([simulated[number % len(simulated)] for number in range(rows)]))


def read(path: Path, how: str) -> None:
    """Read it in one of two ways, and print the seconds of CPU and the most memory in MB."""
    import pyarrow as pa

    from builder.archive.catalog import read_votable
    from builder.model.columns import CATALOG

    if how == "astropy":
        from astropy.io import votable
    begun = time.process_time()
    if how == "project":
        table, _ = read_votable(path, str(path))
    else:
        first = votable.parse(io.BytesIO(path.read_bytes()), verify="ignore").get_first_table()
        table = pa.table({column.name: pa.array(first.array[column.name].tolist()) for column in CATALOG})
    seconds = time.process_time() - begun
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory, too
    print(len(table), seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main() -> None:
    """Read the same file in both ways, each in a process of its own, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=130_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", nargs=2, metavar=("FILE", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(Path(options.read[0]), options.read[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.vot"
        write(path, options.rows)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.rounds):
            for how in ("astropy", "project"):
                command = [sys.executable, __file__, "--read", str(path), how]
                answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                rows, seconds, memory = int(answer[0]), float(answer[1]), float(answer[2])
                if rows != options.rows:
                    sys.exit(f"{how} read {rows} rows")
                best[how] = min(best.get(how, (seconds, memory)), (seconds, memory))
    for how, (seconds, memory) in best.items():
        print(f"{how:8} {seconds:6.2f} s of CPU, {memory:5.0f} MB at most")
    print(f"ratio {best['project'][0] / best['astropy'][0]:.2f}")


if __name__ == "__main__":
    main()
