"""Errors of the project, as one tree.

ChandraSpectraError       anything this project refuses or cannot do; its text is one clear line
├── SettingError          an option or a configuration value is wrong
├── MissingExtraError     what is asked for needs a package that is not installed
├── ArchiveError          the archive could not be reached, or what it answered is not what was asked
│   ├── TransientError    the same, where asking again may help
│   │   └── WrongAnswerError  the answer is complete, but something else
│   ├── UnavailableError  asking again did not help for as long as it was tried
│   │   └── TooSlowError  the service may still be working for the request
│   ├── RefusedError      the archive answers, but refuses this one request
│   └── CatalogError      the answer to the catalog query
│       └── QueryError    the catalog refuses the query, in its own words
├── ProductError          one product file cannot be used: it becomes a Rejection with a reason code
├── StoreError            the store of finished packages
├── OutputError           the folder to be written
└── HubError              a hub could not be reached, or refuses what was asked
"""

from __future__ import annotations

import importlib


class ChandraSpectraError(Exception):
    """A failure with a name: what was wrong, where, and what to do, in one line."""


class SettingError(ChandraSpectraError, ValueError):
    """An option or a configuration value is refused."""


class MissingExtraError(ChandraSpectraError):
    """A package of one of the extras is needed, but not installed."""


def require(module: str, extra: str, purpose: str) -> None:
    """Import a package of an extra, or say how to install it.

    Parameters
    ----------
    module : str
        Name to import.
    extra : str
        Extra of ``chandra-spectra`` that brings it.
    purpose : str
        What needs it, as the subject of a sentence.

    Raises
    ------
    MissingExtraError
        If it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{purpose} needs {module}: pip install 'chandra-spectra[{extra}]'") from error


class ArchiveError(ChandraSpectraError):
    """The archive could not be reached or answered something else than was asked for."""


class TransientError(ArchiveError):
    """A failure of the archive that may be gone at the next try.

    Parameters
    ----------
    retry_after : float, optional
        Seconds that the server asked to wait (``Retry-After``).
    status : int
        HTTP status of the answer; 0 where it is not what failed.
    """

    def __init__(self, message: str, retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class WrongAnswerError(TransientError):
    """A complete answer that is something else than was asked for."""


class UnavailableError(ArchiveError):
    """No right answer came for as long as it was asked for."""


class TooSlowError(UnavailableError):
    """No answer came in time, and the service may still be working for it."""


class RefusedError(ArchiveError):
    """The archive refuses one request, or answers it with what cannot be accepted; others may succeed.

    Parameters
    ----------
    status : int
        HTTP status of the refusal; 0 where it is not one.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class CatalogError(ArchiveError):
    """The catalog's answer is an error, is cut short or cannot be read."""


class QueryError(CatalogError):
    """The catalog refuses a query; the message has its own words."""


class ProductError(ChandraSpectraError):
    """One product file cannot be used.

    Parameters
    ----------
    reason : str
        A key of :data:`builder.model.records.REASONS`.
    message : str
        What was found, and in which file.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ProductError], tuple[str, str]]:
        # an exception is pickled as its type and `args`, which do not hold the reason
        return type(self), (self.reason, str(self))


class StoreError(ChandraSpectraError):
    """A finished package cannot be written, or one on disk is damaged."""


class OutputError(ChandraSpectraError):
    """The output folder cannot be written, or holds something else."""


class HubError(ChandraSpectraError):
    """A hub cannot be reached, or refuses what was asked."""
