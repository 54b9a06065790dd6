"""The catalog's releases: where each is asked for, and by which word."""

from __future__ import annotations

import re
from dataclasses import dataclass

from builder.model.errors import SettingError


@dataclass(frozen=True, slots=True)
class Release:
    """A release of the catalog. Region ids are a release's own, so catalog and files come from the same.

    Attributes
    ----------
    version : str
        Its word, in requests for files.
    service : str
        Name of its TAP service.
    schema : str
        Schema of its tables.
    known : bool
        Whether its names are known, and not only made by the rule of the others.
    """

    version: str
    service: str
    schema: str
    known: bool = True


RELEASES = {
    release.version: release
    for release in (
        Release("rel2.1", "csc21tap", "csc21"),
        Release("rel2.2", "csc22tap", "csc22"),
        Release("rel2.0", "csc2tap", "csc2"),
        Release("cur", "csc_snapshot_tap", "csc_snapshot"),  # the current database, which may change under you
    )
}
"""Releases whose names are known, by their words. Release 1 has no stacks and other tables."""


def release_of(word: str) -> Release:
    """Give a release by its word; SettingError for one that cannot be.

    A later one than those of `RELEASES` is taken to have names of the same form: ``rel2.3`` is schema ``csc23``.
    """
    if word in RELEASES:
        return RELEASES[word]
    match = re.fullmatch(r"rel([2-9])\.(\d)", word, re.ASCII)
    if match is None:
        raise SettingError(
            f"unknown release {word!r}: choose one of {', '.join(RELEASES)}, or a later one, such as rel2.3"
        )
    schema = f"csc{match[1]}{match[2]}"
    return Release(word, f"{schema}tap", schema, known=False)
