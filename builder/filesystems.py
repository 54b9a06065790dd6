"""File systems of fsspec, such as an object store: how a URL is opened, and their errors as one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from fsspec.core import url_to_fs

from builder.errors import ChandraSpectraError, SettingError

__all__ = ["check_place", "open_url", "reported"]


def check_place(place: str) -> None:
    """SettingError for a URL that lacks a slash: it would be taken for a folder of that name."""
    if re.match(r"\w+:/(?!/)", place):
        raise SettingError(f"{place!r} is neither a folder nor a URL such as s3://bucket/folder")


def open_url(url: str, error: type[ChandraSpectraError]) -> tuple[Any, str]:
    """The file system that a URL names, and the path on it; `error` where there is none, or its back-end is missing."""
    hint = "; pip install 'chandra-spectra[s3]'" if url.startswith("s3://") else ""
    try:
        with reported(error, f"cannot use {url}"):
            fs, path = url_to_fs(url)
    except error as raised:
        if isinstance(raised.__cause__, ImportError):
            raise error(f"{raised}{hint}") from raised.__cause__
        raise
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
