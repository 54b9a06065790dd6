"""`chandra-spectra` in processes of their own, started from one that has imported what they all need."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Importing these takes a process two seconds, and most tests of the command no more than that; forking takes nothing.
# A bare start and a bare end are tested in test_hub, from prepare to push, and by what is killed or interrupted.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "builder.cli.run",
        "builder.prepare",
        "builder.reduce.spectrum",
        "builder.simulator.embedded",
        "builder.archive.csc",
        "builder.use.verify",
        "builder.use.export",
        "builder.use.plot",
        "astropy.coordinates",
        "astropy.io.votable",
        "healpix",
        "datasets",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
    ]
)


class Run:
    """A run, from the words of the command line to the exit code.

    Parameters
    ----------
    *words : object
    cwd : Path, optional
    change : callable, optional
        Changes the process before; it can be pickled.

    Attributes
    ----------
    process : multiprocessing.Process
    """

    def __init__(self, *words: object, cwd: Path | None = None, change: Callable[[], object] | None = None) -> None:
        self.words = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for path in self._files:
            path.touch()
        self.process = FORK.Process(
            target=_main, args=(self.words, cwd or Path.cwd(), dict(os.environ), self._files, change)
        )
        self.process.start()

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait for the end; TimeoutExpired if it does not come."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        self.process.close()
        output, errors = (path.read_text() for path in self._files)
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self.words, timeout, output, errors)
        return subprocess.CompletedProcess(self.words, code, output, errors)


def _main(
    words: list[str], cwd: Path, environment: dict[str, str], files: list[Path], change: Callable[[], object] | None
) -> None:
    for descriptor, path in enumerate(files, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["chandra-spectra", *words]
    if change is not None:
        change()
    from builder.cli.run import main

    main()


def python(code: str, *words: object, cwd: Path | None = None, stdin: str = "", **environment: str) -> Any:
    """Run code in a bare process; gives the last line that it prints, which is JSON."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `chandra-spectra` as a user does."""
    return Run(*words, cwd=cwd).wait()
