"""What a run of `prepare` costs once: one over the embedded sample with all packages in the store.

Beside it, turn by turn, is the import of what a notebook would use in its place, by the names that tutorials give.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

PLAIN = "import datasets, matplotlib.pyplot, sherpa.astro.ui"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        words = ["prepare", str(out), "--archive", "embedded", "--cache", f"{folder}/cache", "--workers", "1"]
        cpu("-m", "builder.cli", *words)  # fills the store
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            shutil.rmtree(out)
            times[0].append(cpu("-m", "builder.cli", *words))
            times[1].append(cpu("-c", PLAIN))
    prepare, plain = map(median, times)
    print(f"CPU of prepare {prepare:.2f} s, of `{PLAIN}` {plain:.2f} s; ratio {prepare / plain:.2f}")


def cpu(*words: str) -> float:
    """Run Python with `words`, and return its user and system time in s."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
