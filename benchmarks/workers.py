"""Throughput of 1 worker and of N, turn by turn, from a mirror on this machine (no server takes part)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from builder.archive.mirror import Mirror
from builder.model.settings import Settings
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from builder.store.fill import download, fill
from builder.workspace import make_plan, open_workspace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, default=9000, help="each takes 0.4 MB of disk (default: 9000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(Path(folder) / "mirror")
        with ArchiveServer(SimulatedArchive(options.detections)) as server:
            settings = Settings(server.url)
            source = open_workspace(settings, Path(folder))
            planned = make_plan(source, settings)
            mirror.write_catalog(planned)
            download(planned.packages, source.archive, mirror)
        settings = Settings(str(mirror.folder))
        for number in range(options.rounds):
            seconds = {}
            for workers in (1, options.workers):
                cache = Path(folder) / f"{number}-{workers}"
                source = open_workspace(settings, cache)
                start = time.perf_counter()
                fill(make_plan(source, settings).packages, source.archive, source.store, workers=workers)
                seconds[workers] = time.perf_counter() - start
            rates = ", ".join(f"{workers}: {options.detections / taken:.0f}" for workers, taken in seconds.items())
            print(f"spectra a second by workers {rates}; ratio {seconds[1] / seconds[options.workers]:.2f}")


if __name__ == "__main__":
    main()
