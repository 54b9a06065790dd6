"""Files and folders here and on the file systems of fsspec: whole or not there at all.

A folder or a file takes its place when it is complete, and not before; what a killed run leaves does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.model.errors import ChandraSpectraError, OutputError, SettingError, require

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


def _try_swap(output: Path) -> None:
    """Move what is at `output` aside and back, as the last step will: now is the time to find out that it cannot be."""
    if not output.exists():
        return
    if Path.cwd().is_relative_to(output):
        raise OutputError(
            f"cannot replace {output}, as it is the current folder or holds it: run this from elsewhere, or give "
            "another name"
        )
    try:
        output.replace(_old(output))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OutputError(
            f"cannot replace {output}, as a disk is mounted there: give a folder in it, such as {output / 'data'}"
        ) from error
    _old(output).replace(output)


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
def workplace(output: Path, name: Path | str = "") -> Iterator[Path]:
    """Give a folder beside `output` that is this run's until the block ends; remove what a killed run left.

    Whether `output` can be replaced in the end is tried at once.

    Parameters
    ----------
    name : Path or str, optional
        For the messages, where `output` stands for something else, such as a URL.

    Raises
    ------
    OutputError
        If the file system refuses, or another run is writing the same output.
    """
    place = output.with_name(f".{output.name}.{uuid.uuid4().hex}.incomplete")
    name = name or output
    with contextlib.ExitStack() as stack:
        try:
            _make_parents(output, stack)
            place.mkdir()
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            # Not before: until then it is as good as left by a killed run.
            stack.enter_context(hold(place / _LOCK, name))
            # Held first, so that of two runs that begin at once one finds the other.
            for left in output.parent.iterdir():
                if left != place and re.fullmatch(rf"\.{re.escape(output.name)}\.[0-9a-f]+\.incomplete", left.name):
                    _remove_left(left, name)
            _recover(output)
            _try_swap(output)
        except OSError as error:
            raise OutputError(f"cannot write {name}: {error.strerror or error}") from error
        yield place


def _remove_left(place: Path, output: Path | str) -> None:
    """Remove what a killed run left, unless it is another user's, or the file system cannot tell that it is dead."""
    removed = False
    with contextlib.suppress(OSError), hold(place / _LOCK, output) as held:
        if held:
            shutil.rmtree(place, ignore_errors=True)
            removed = True
    if removed:
        _remove_empty(place)  # NFS keeps a file that is open, under another name


def _make_parents(path: Path, stack: contextlib.ExitStack) -> None:
    """Make the folders above a path; they go again with the stack, unless something came into them."""
    for parent in reversed(path.parents):
        if not parent.exists():
            stack.callback(_remove_empty, parent)
    path.parent.mkdir(parents=True, exist_ok=True)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _flush(*paths: Path) -> None:
    """Flush files, and the names in folders, to disk."""
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
    """Give a folder in the `workplace` that takes the place of `output` when the block ends well.

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
def write_whole(
    path: Path, error: type[ChandraSpectraError] = OutputError, *, advice: str = "", aside: Path | None = None
) -> Iterator[Path]:
    """Return a file that takes the place of `path` when the block ends well, flushed before; else it is removed.

    What a killed run left of the same file is removed, too. Of two runs that write it at once the last one's stays.

    Parameters
    ----------
    error : type of ChandraSpectraError
        Raised where the file system refuses.
    advice : str
        End of its message.
    aside : Path, optional
        Folder for the unfinished file, that of `path` by default: one that holds many files is slow to look through.
    """
    aside = aside or path.parent
    partial = aside / f".{path.name}.{uuid.uuid4().hex}.partial"
    try:
        with contextlib.ExitStack() as stack:
            _make_parents(path, stack)
            aside.mkdir(exist_ok=True)
            stack.callback(partial.unlink, missing_ok=True)
            stack.enter_context(hold(partial, path))
            yield partial
            _flush(partial)
            partial.replace(path)
            for left in aside.glob(f".{glob.escape(path.name)}.*.partial"):
                with contextlib.suppress(OSError, OutputError), hold(left, path) as held:
                    if held:  # by nobody else: its run is dead
                        left.unlink()
    except OSError as refused:
        raise error(f"cannot write {path}: {refused.strerror or refused}{advice}") from refused


def file_sha256(path: Path) -> str:
    """Compute SHA-256 of a file in hexadecimal, read piece by piece; OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_place(place: str) -> None:
    """Raise SettingError for a name that is not UTF-8, and for a URL that lacks a slash, which would be a folder's."""
    try:
        place.encode()
    except UnicodeEncodeError:  # neither pyarrow nor HDF5 opens it
        raise SettingError(f"{place!a} is not UTF-8: give another name") from None
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
        words = getattr(raised, "strerror", None) or str(raised)
        reason = " ".join(words.split()) or type(raised).__name__
        raise error(f"{doing}: {reason}{advice}") from raised


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine or at a URL, whose files are there whole or not at all.

    Every method raises `error` where the file system refuses.

    Attributes
    ----------
    place : Path or str
        A path, or a URL of fsspec such as ``s3://bucket/store``.
    advice : str
        End of the message where something cannot be written.
    """

    place: Path | str
    error: type[ChandraSpectraError] = OutputError
    advice: str = ""

    def _open(self) -> tuple[Any, str]:
        if isinstance(self.place, Path):
            from fsspec.implementations.local import LocalFileSystem

            return LocalFileSystem(), str(self.place)
        fs, root = open_url(self.place, self.error)
        fs.invalidate_cache()  # another process may have written since this one looked
        return fs, root

    def _failing(self, verb: str, name: str = "") -> contextlib.AbstractContextManager[None]:
        place = f"{self.place}/{name}" if name else f"{self.place}"
        return reported(self.error, f"cannot {verb} {place}", self.advice if verb == "write" else "")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by its path below the folder, by one listing."""
        fs, root = self._open()
        with self._failing("read"):
            found = fs.find(root, detail=True)
        if root in found:
            raise self.error(f"{self.place} is a file: give the name of a folder")
        # Consoles of object stores stand for an empty folder with an empty object whose name ends in a slash.
        return {path.removeprefix(f"{root}/"): info["size"] for path, info in found.items() if not path.endswith("/")}

    def __contains__(self, name: str) -> bool:
        fs, root = self._open()
        with self._failing("read", name):
            return bool(fs.exists(f"{root}/{name}"))

    def read(self, name: str) -> bytes:
        """Read a file."""
        fs, root = self._open()
        with self._failing("read", name):
            content: bytes = fs.cat_file(
                f"{root}/{name}", start=0
            )  # with a range s3fs does not ask for the size before
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, and the folder where there is none; a bucket is not made, as it may be a slip."""
        if isinstance(self.place, Path):
            with write_whole(
                self.place / name, self.error, advice=self.advice, aside=self.place / "partial"
            ) as partial:
                partial.write_bytes(content)
            return
        fs, root = self._open()
        with self._failing("write", name):
            try:
                fs.pipe_file(f"{root}/{name}", content)
            except Exception:  # file systems tell in many ways that a folder is missing
                bucket = root.partition("/")[0]
                if bucket and not fs.exists(bucket):
                    raise
                fs.makedirs(root, exist_ok=True)
                fs.pipe_file(f"{root}/{name}", content)

    def put(self, name: str, path: Path) -> None:
        """Upload a file of this machine."""
        fs, root = self._open()
        with self._failing("write", name):
            fs.put_file(str(path), f"{root}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file."""
        fs, root = self._open()
        with self._failing("remove", name):
            fs.rm_file(f"{root}/{name}")
