"""`chandra-spectra` with short pauses and small packages, so that tests of faults are quick and have many packages."""

from __future__ import annotations

import functools

import builder.remote
import builder.sources
from builder.catalog import plan
from builder.cli import main
from builder.client import Client, Patience

PATIENCE = Patience(connect=2, read=1, base=0.01, longest=0.05)


def impatient() -> None:
    builder.remote.Client = functools.partial(Client, patience=PATIENCE)  # type: ignore[misc]
    builder.sources.plan = functools.partial(plan, size=10)


if __name__ == "__main__":
    impatient()
    main()
