"""Errors of a look into a folder: a failure of the folder, or a hindrance that says nothing about it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.model.errors import ArchiveError, OutputError, StoreError
from builder.use.checks import Check

_HINDERED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
"""Errors of the system that say nothing about the folder: no room, no right, no memory."""


def hindrance(error: BaseException | None) -> str:
    """Say why something could not be looked at, where that is what an error comes of; else nothing."""
    while error is not None:
        if isinstance(error, (ArchiveError, StoreError, OutputError)):
            return str(error)
        if isinstance(error, MemoryError):
            return "no memory"
        if isinstance(error, OSError) and (error.errno in _HINDERED or "disk space" in str(error)):  # datasets' own
            return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def reading(check: Check, file: str) -> Iterator[None]:
    """Turn the errors of a damaged file or a strange manifest into a failure, others into what could not be seen.

    Any error: libraries that read a file raise more kinds than they say.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        if reason := hindrance(error):
            check.unseen = check.unseen or f"{file}: {' '.join(reason.split())}"
        elif isinstance(error, KeyError):
            check.fail(file, f"has no {error}")
        else:
            check.fail(file, f"cannot be read: {error or type(error).__name__}")


@contextmanager
def temporary() -> Iterator[Path]:
    """Give a folder for as long as it is needed; OutputError where none can be made."""
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise OutputError(f"no temporary folder: {error.strerror or error}; choose another place by TMPDIR") from error
    with folder as name:
        yield Path(name)
