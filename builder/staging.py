"""A folder or a file takes its place when it is complete, and not before; what a killed run leaves does no harm."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from builder.errors import OutputError

__all__ = ["beside", "hold", "recover_folder", "staging_folder"]


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def recover_folder(output: Path) -> None:
    """End the swap of a run that was killed amid it: without the new folder, the old one is brought back."""
    old = _old(output)
    if not old.exists():
        return
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.replace(output)


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
def _workplace(output: Path) -> Iterator[Path]:
    """A folder beside `output` to work in, and to be removed; what a killed run left of its own is removed, too."""
    place = output.with_name(f".{output.name}.{uuid.uuid4().hex}.incomplete")
    output.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir()
    with hold(place, output):  # not before: until then it is as good as left by a killed run
        try:
            # Held first, so that of two runs that begin at once one finds the other.
            for left in output.parent.iterdir():
                if left != place and re.fullmatch(rf"\.{re.escape(output.name)}\.[0-9a-f]+\.incomplete", left.name):
                    with hold(left, output):
                        shutil.rmtree(left, ignore_errors=True)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _flush(*paths: Path) -> None:
    """Have files, and the names in folders, on disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if not path.is_dir():  # some network file systems flush no folders
                raise
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
    old = _old(output)
    try:
        with _workplace(output) as staging:
            yield staging
            _flush(*staging.rglob("*"), staging)
            if output.exists():
                output.replace(old)
            staging.replace(output)
            _flush(output.parent)
            with contextlib.suppress(FileNotFoundError):
                old.replace(staging)  # in one step, as what is called old must be whole; it is removed from there
    except OSError as error:
        name = error.filename or output
        raise OutputError(f"cannot write {name}: {error.strerror or error}; what was there before is kept") from error


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A file in a folder beside `path` that takes its place when the block ends well, and is removed when it does not.

    Raises
    ------
    OutputError
        If the file system refuses, or another run is writing the same file.
    """
    try:
        with _workplace(path) as place:
            yield place / path.name
            (place / path.name).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
