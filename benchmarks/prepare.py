"""What a whole `prepare` costs for each detection, as a user runs it, against the archive's services on loopback.

The command runs as it is and is watched from outside, through /proc: CPU by stage, memory and disk. The server is a
process of its own, and its CPU is not counted. Run it with
``python benchmarks/prepare.py [--detections 1000 --detections 4000] [--workers 2] [--bandwidth MB/s] [--real]
[--rmf observation]``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from builder.archive.products import ProductName, group_products
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.settings import RMFS, Recipe
from builder.reduce.ogip import inflate
from builder.simulator.embedded import embedded_rows_and_files
from builder.simulator.products import SimulatedArchive
from builder.simulator.services import Holdings

TICK = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36  # prctl(2), in linux/prctl.h
PERIOD = 0.1  # s between two looks at the run
SAMPLE = 40  # detections whose reduction alone is timed, before and after each run
OBSERVATION = 13  # detections of an observation in the default selection: 130,000 of some 10,000
ALL = ("--min-cnts", "0", "--min-sig", "0", "--max-theta", "60")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `chandra-spectra prepare` against a local archive server.")
    parser.add_argument("--detections", type=int, action="append", help="catalog rows; may be repeated")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bandwidth", type=float, help="of the server, MB/s")
    parser.add_argument("--latency", type=float, default=0.0, help="of the server, s")
    parser.add_argument("--real", action="store_true", help="serve the two real detections' files under other ids")
    parser.add_argument("--rmf", choices=RMFS, default=RMFS[0], help="this beside 'each', where it is another")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # to become the parent of what a run leaves
    runs = []
    for number in options.detections or [1000, 4000]:
        for rmf in dict.fromkeys((RMFS[0], options.rmf)):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(number, options, rmf, Path(folder)))
    report(runs, options.workers, options.bandwidth)


# -- what is served


class RealHoldings:
    """The files of the two real detections under other ids, 13 of an observation: real sizes, made at little cost."""

    def __init__(self, n: int) -> None:
        self.rows = [
            row | {"obsid": 50000 + number // OBSERVATION, "obi": 0, "region_id": number % OBSERVATION + 1}
            for number, row in enumerate(SimulatedArchive(n, interleaved=0.0).rows)
        ]
        embedded = embedded_rows_and_files()
        self._products = [
            [_Product(file) for file in files] for row, files in embedded if str(row["name"]).startswith("2CXO")
        ]

    def files(self, detection: DetectionId) -> list[File]:
        return [product.of(detection) for product in self._products[detection.region_id % len(self._products)]]


class _Product:
    """A file with its ids left open; what follows the last of them is deflated once."""

    _ID = re.compile(rb"(OBS_ID  |OBI_NUM |REGIONID)= .{70}")
    _CHECKSUM = re.compile(rb"(?<=CHECKSUM= ')[^']{16}")

    def __init__(self, file: File) -> None:
        name, data = ProductName.parse(file.name), inflate(file)
        assert name is not None
        data = self._CHECKSUM.sub(b" " * 16, data)  # it would tell of the other ids
        end = max(match.end() for match in self._ID.finditer(data))
        self._kind, self._head, self._tail = name.kind, data[:end], data[end:]
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._deflated = deflate.compress(self._tail) + deflate.flush()

    def of(self, detection: DetectionId) -> File:
        ids = {
            b"OBS_ID  ": f"'{detection.obsid:<8}'",
            b"OBI_NUM ": f"{detection.obi:>20}",
            b"REGIONID": f"'{detection.region_id:04d}    '",
        }
        head = self._ID.sub(lambda match: match[1] + b"= " + ids[match[1]].ljust(70).encode(), self._head)
        deflate = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = deflate.compress(head) + deflate.flush(zlib.Z_SYNC_FLUSH) + self._deflated
        crc, size = zlib.crc32(self._tail, zlib.crc32(head)), len(head) + len(self._tail)
        stem = f"acisf{detection.obsid:05d}_{detection.obi:03d}N001_r{detection.region_id:04d}_{self._kind}3.fits.gz"
        trailer = crc.to_bytes(4, "little") + size.to_bytes(4, "little")
        return File(stem, b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + trailer)


def holdings(number: int, real: bool) -> Holdings:
    return RealHoldings(number) if real else SimulatedArchive(number)


def serve(number: int, real: bool, bandwidth: float | None, latency: float, pipe: Connection) -> None:
    """Serve until told to stop; says its address first and the bytes served last."""
    from builder.simulator.server import ArchiveServer

    limit = bandwidth and bandwidth * 1e6
    with ArchiveServer(holdings(number, real), bytes_per_second=limit, latency=latency) as server:
        pipe.send(server.url)
        pipe.recv()
        pipe.send(sum(request.size for request in server.log))


# -- what is measured


@dataclass
class Run:
    """One run of the command; CPU and times in s, sizes in bytes."""

    rmf: str = RMFS[0]
    detections: int = 0
    wall: float = 0.0
    served: int = 0
    fetch: float = 0.0
    reduce: float = 0.0
    assemble: float = 0.0
    memory_main: int = 0
    memory_worker: int = 0
    disk: int = 0
    folder: int = 0
    alone: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> float:
        return self.fetch + self.reduce + self.assemble


def measure(number: int, options: argparse.Namespace, rmf: str, folder: Path) -> Run:
    workers, real = options.workers, options.real
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(number, real, options.bandwidth, options.latency, there))
    server.start()
    run = Run(rmf)
    try:
        url = here.recv()
        run.alone += reduce_alone(number, real)
        command = [
            sys.executable,
            "-m",
            "builder.cli",
            "prepare",
            str(folder / "out"),
            "--archive",
            url,
            "--cache",
            str(folder / "cache"),
            "--workers",
            str(workers),
            "--rmf",
            rmf,
            *ALL,
        ]
        own = set(children(os.getpid()))
        with (folder / "log").open("w") as log:
            begun = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=log)
            watch(process.pid, folder, run)
            run.wall = time.monotonic() - begun
            if process.wait():
                sys.exit((folder / "log").read_text())
            run.reduce += orphans_cpu(own)
        run.alone += reduce_alone(number, real)
        here.send("stop")
        run.served = here.recv()
    finally:
        server.terminate()
        server.join()
    counts = json.loads((folder / "out" / "manifest.json").read_text())["counts"]
    run.detections, run.folder = counts["selected"], disk_usage(folder / "out")
    return run


def reduce_alone(number: int, real: bool) -> list[float]:
    """CPU of `reduce_products` for some of the same detections."""
    from builder.reduce.spectrum import reduce_products

    archive, times = holdings(number, real), []
    for row in archive.rows[:SAMPLE]:
        detection = DetectionId(*(int(str(row[name])) for name in ("obsid", "obi", "region_id")))
        for products in group_products([detection], archive.files(detection)):
            begun = time.process_time()
            reduce_products(products, Recipe())
            times.append(time.process_time() - begun)
    return times


def watch(pid: int, folder: Path, run: Run) -> None:
    """Look at a run until it ends. Assembly begins when the new folder appears in the place that the run works in."""
    before_assembly = None
    while True:
        state, own, waited = cpu(pid)
        if before_assembly is None and any(folder.glob(".out.*.incomplete/new")):
            before_assembly = own
        if state == "Z":  # ended, and not yet waited for: the numbers are the last
            run.fetch = before_assembly if before_assembly is not None else own
            run.assemble, run.reduce = own - run.fetch, waited
            return
        run.memory_main = max(run.memory_main, peak_memory(pid))
        run.memory_worker = max(run.memory_worker, *map(peak_memory, descendants(pid)), 0)
        run.disk = max(run.disk, disk_usage(folder))
        time.sleep(PERIOD)


def orphans_cpu(own: set[int]) -> float:
    """Wait for the processes that a run has left, and return their CPU in s and that of their children.

    The workers' parent is a process that ends when it sees that the run has ended. `own` are those of the benchmark.
    """
    total = 0.0
    for pid in set(children(os.getpid())) - own:
        usage = os.wait4(pid, 0)[2]
        total += usage.ru_utime + usage.ru_stime
    return total


def cpu(pid: int) -> tuple[str, float, float]:
    """State, and CPU in s of the process and of those children that have ended (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    utime, stime, cutime, cstime = (int(value) / TICK for value in fields[11:15])
    return fields[0], utime + stime, cutime + cstime


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [other for child in found for other in descendants(child)]


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(text) for path in tasks for text in path.read_text().split()]
    except OSError:  # it ended
        return []


def peak_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def disk_usage(folder: Path) -> int:
    total, folders = 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat().st_blocks * 512
        except OSError:  # removed in the meantime
            continue
    return total


# -- what is shown


def report(runs: list[Run], workers: int, bandwidth: float | None) -> None:
    table = Table(title=f"prepare, {workers} workers", title_justify="left")
    table.add_column("")
    for run in runs:
        shared = "" if run.rmf == RMFS[0] else f", --rmf {run.rmf}"
        table.add_column(f"{run.detections:,} spectra{shared}", justify="right")

    def row(label: str, cells: list[str], last: bool = False) -> None:
        table.add_row(label, *cells, end_section=last)

    def per(name: str) -> list[str]:
        return [f"{1e3 * getattr(run, name) / run.detections:.2f}" for run in runs]

    alone = [median(run.alone) for run in runs]
    row("spectra a second", [f"{run.detections / run.wall:.0f}" for run in runs])
    row("answers, MB", [f"{run.served / 1e6:,.0f}" for run in runs], last=not bandwidth)
    each = [next(other for other in runs if other.detections == run.detections) for run in runs]
    if any(run.rmf != RMFS[0] for run in runs):
        row("answers / those of each", [f"{run.served / one.served:.3f}" for run, one in zip(runs, each, strict=True)])
        row("CPU / that of each", [f"{run.cpu / one.cpu:.2f}" for run, one in zip(runs, each, strict=True)], True)
    if bandwidth:
        row("time / time of the link alone", [f"{run.wall / (run.served / bandwidth / 1e6):.2f}" for run in runs], True)
    row("CPU a spectrum, ms", per("cpu"))
    row("  start, catalog, fetch", per("fetch"))
    row("  reduce and store (workers)" if workers > 1 else "  reduce and store (above)", per("reduce"))
    row("  assemble", per("assemble"))
    row("reduction alone, ms", [f"{1e3 * one:.2f}" for one in alone])
    row(
        "whole / reduction alone",
        [f"{run.cpu / run.detections / one:.2f}" for run, one in zip(runs, alone, strict=True)],
    )
    first = runs[0].cpu / runs[0].detections
    row(
        f"cost / cost at {runs[0].detections:,}", [f"{run.cpu / run.detections / first:.2f}" for run in runs], last=True
    )
    row("peak memory, MB: main", [f"{run.memory_main / 1e6:.0f}" for run in runs])
    row("  a worker", [f"{run.memory_worker / 1e6:.0f}" for run in runs])
    row("disk at worst, MB", [f"{run.disk / 1e6:,.0f}" for run in runs])
    row("  finished folder", [f"{run.folder / 1e6:,.0f}" for run in runs])
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
