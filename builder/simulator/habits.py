"""Habits of the services: ways of answering that are as plausible as the plain one, since none is documented.

What public clients show of the real service is compatible with each of these.
"""

from __future__ import annotations

from collections.abc import Iterable

from builder.model.errors import SettingError

HABITS = {
    "get-only": "retrieve takes GET; POST is answered 405",
    "post-only": "retrieve takes POST; GET is answered 405",
    "short-address": "an address of more than 300 characters is answered 414",
    "get-page": "retrieve by GET is answered by an HTML page with status 200",
    "files-only": "retrieve refuses everything with 404; browse and retrieveFile work",
    "strict-package": "a package of which one detection is not there is refused with 404",
    "tar-v7": "tars have v7 headers, without 'ustar'",
    "tar-gnu": "tars have GNU headers",
    "tar-pax": "tars have PAX headers",
    "tar-gzip": "tars are gzipped",
    "tar-endless": "tars have no end blocks",
    "unframed": "answers have no length: the connection is closed at their end",
    "chunked": "answers are sent in chunks",
    "browse-unbanded": "browse lists nothing where a band is named",
    "browse-banded": "browse lists nothing where no band is named",
    "browse-error": "of what is not there browse says 'Error executing query:' with status 200",
    "browse-blank": "of what is not there browse answers an empty page",
    "browse-500": "of what is not there browse answers status 500",
    "no-count": "the catalog refuses COUNT(*)",
    "slow-count": "the catalog answers no COUNT(*) in time",
    "fewer-columns": "the catalog has not all columns, and refuses a query for one that it has not",
    "no-tables": "the same, and its own list of columns is not there",
    "silent-limit": "the catalog cuts answers after 50 rows and says nothing of it",
    "slow-join": "the catalog answers no query in time that is of all observations",
    "slow-ranges": "the catalog answers no synchronous query for rows in time",
    "bad-row": "a row of the catalog has an obsid of seven digits",
    "status-400": "the catalog refuses a query with status 400",
    "relative": "redirects are relative",
    "alias": "redirects lead to another name of the host",
}
"""What each habit is."""

MISSING_COLUMNS = frozenset(
    {"streak_src_flag", "conf_code", "significance", "apec_kt_hilim", "nh_gal", "likelihood_class"}
)
"""Columns that a catalog of ``fewer-columns`` does not have."""

SILENT_ROWS = 50
"""Rows after which a catalog of ``silent-limit`` cuts."""


def check_habits(names: Iterable[str]) -> frozenset[str]:
    """Take names of habits; SettingError for one that is unknown."""
    found = frozenset(names)
    if unknown := found - HABITS.keys():
        raise SettingError(f"unknown habit {min(unknown)!r}: choose from {', '.join(HABITS)}")
    return found
