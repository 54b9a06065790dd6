"""A folder or a file takes its place when it is complete, and not before; what a killed run leaves does no harm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from builder.errors import OutputError

__all__ = ["beside", "hold", "recover_folder", "staging_folder"]


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def recover_folder(output: Path) -> None:
    """Bring the old folder back where a run was killed between the two renames of the swap."""
    if _old(output).exists() and not output.exists():
        _old(output).replace(output)


@contextlib.contextmanager
def hold(staging: Path, output: Path | str) -> Iterator[None]:
    """Hold the folder in which a run works on `output`, however it ends; OutputError where another run holds it."""
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(f"another run is writing {output}: wait for it, or give another name") from None
    except OSError:  # a network file system that locks no folders: one run at a time is then up to the user
        pass
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and is removed when it does not.

    Raises
    ------
    OutputError
        If the file system refuses, or another run is writing the same folder.
    """
    staging = output.with_name(f".{output.name}.{os.getpid()}.incomplete")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for left in output.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(output.name)}\.\d+\.incomplete", left.name):
                with hold(left, output):
                    shutil.rmtree(left)  # of a run that was killed
        staging.mkdir()
        with hold(staging, output):
            yield staging
            old = _old(output)
            if old.exists():
                shutil.rmtree(old)
            if output.exists():
                output.replace(old)
            staging.replace(output)
            if old.exists():
                shutil.rmtree(old)
    except OSError as error:
        name = error.filename or output
        raise OutputError(f"cannot write {name}: {error.strerror or error}; what was there before is kept") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, and is removed when it does not.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        raise
