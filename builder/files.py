"""Files and folders here and on the file systems of fsspec: whole or not there at all.

A folder or a file takes its place when it is complete, and not before; what a killed run leaves does no harm.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.model.errors import ChandraSpectraError, OutputError, SettingError, require

__all__ = [
    "beside",
    "check_place",
    "file_sha256",
    "hold",
    "open_url",
    "recover_folder",
    "reported",
    "staging_folder",
    "workplace",
]

_LOCK = ".lock"


def _old(output: Path) -> Path:
    return output.with_name(f".{output.name}.old")


def recover_folder(output: Path) -> None:
    """End the swap of a run that was killed amid it: without the new folder, the old one is brought back.

    Raises
    ------
    OutputError
        As for `workplace`.
    """
    if _old(output).exists():
        with workplace(output):
            pass


def _recover(output: Path) -> None:
    old = _old(output)
    if output.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.replace(output)


@contextlib.contextmanager
def hold(path: Path, output: Path | str) -> Iterator[bool]:
    """Hold the lock by which one run works on `output`, however it ends.

    Parameters
    ----------
    path : Path
        A file, made if it is not there, or a folder that is, which some network file systems do not lock.
    output : Path or str
        For the message.

    Returns
    -------
    bool
        False where the file system locks nothing: one run at a time is then up to the user.

    Raises
    ------
    OutputError
        If another run holds it.
    OSError
        If it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            raise OutputError(f"another run is writing {output}: wait for it, or give another name") from None
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is this run's until the block ends; what a killed run left of its own is removed.

    Raises
    ------
    OutputError
        If the file system refuses, or another run is writing the same output.
    """
    place = output.with_name(f".{output.name}.{uuid.uuid4().hex}.incomplete")
    with contextlib.ExitStack() as stack:
        try:
            for parent in reversed((output.parent, *output.parent.parents)):
                if not parent.exists():  # it goes again, unless something came into it
                    stack.callback(_remove_empty, parent)
            output.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir()
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            # Not before: until then it is as good as left by a killed run.
            stack.enter_context(hold(place / _LOCK, output))
            # Held first, so that of two runs that begin at once one finds the other.
            for left in output.parent.iterdir():
                if left != place and re.fullmatch(rf"\.{re.escape(output.name)}\.[0-9a-f]+\.incomplete", left.name):
                    _remove_left(left, output)
            _recover(output)
        except OSError as error:
            raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
        yield place


def _remove_left(place: Path, output: Path) -> None:
    """Remove what a killed run left, unless it is another user's, or the file system cannot tell that it is dead."""
    removed = False
    with contextlib.suppress(OSError), hold(place / _LOCK, output) as held:
        if held:
            shutil.rmtree(place, ignore_errors=True)
            removed = True
    if removed:
        _remove_empty(place)  # NFS keeps a file that is open, under another name


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


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
def staging_folder(output: Path, place: Path) -> Iterator[Path]:
    """A folder in the `workplace` that takes the place of `output` when the block ends well.

    Raises
    ------
    OutputError
        If the file system refuses.
    """
    staging, old = place / "new", _old(output)
    try:
        staging.mkdir()
        yield staging
        _flush(*staging.rglob("*"), staging)
        if output.exists():
            output.replace(old)
        staging.replace(output)
        _flush(output.parent)
        with contextlib.suppress(FileNotFoundError):
            old.replace(place / "old")  # in one step, as what is called old must be whole; it is removed from there
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
    with workplace(path) as place:
        try:
            staging = place / "new"
            staging.mkdir()
            yield staging / path.name
            (staging / path.name).replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_place(place: str) -> None:
    """SettingError for a URL that lacks a slash: it would be taken for a folder of that name."""
    if re.match(r"\w+:/(?!/)", place):
        raise SettingError(f"{place!r} is neither a folder nor a URL such as s3://bucket/folder")


def open_url(url: str, error: type[ChandraSpectraError]) -> tuple[Any, str]:
    """Open the file system that a URL names, and give the path on it; `error` where there is none."""
    from fsspec.core import url_to_fs

    if url.startswith("s3://"):
        require("s3fs", "s3", url)
    with reported(error, f"cannot use {url}"):
        fs, path = url_to_fs(url)
    return fs, path.rstrip("/")


@contextlib.contextmanager
def reported(error: type[ChandraSpectraError], doing: str, advice: str = "") -> Iterator[None]:
    """Turn what a file system raises into one line: what could not be done, why, and `advice`.

    Back-ends have exceptions of their own, from libraries that need not be installed: botocore's are no OSError.
    """
    try:
        yield
    except ChandraSpectraError:
        raise
    except Exception as raised:
        reason = " ".join(str(raised).split()) or type(raised).__name__
        raise error(f"{doing}: {reason}{advice}") from raised
