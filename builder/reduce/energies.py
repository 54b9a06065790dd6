"""The channel energies of an RMF file, and what the headers of all product files must say.

It knows nothing of Sherpa, whose import takes seconds, so that whoever fetches can judge an RMF.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.archive.packages import HARDLY
from builder.archive.products import ProductName
from builder.model.errors import ProductError
from builder.model.ids import DetectionId
from builder.model.invariants import demand, energy_faults
from builder.model.records import N_CHANNELS, Energies, ProductFile
from builder.reduce.ogip import Table, extension, inflate, sha256, tables

logger = logging.getLogger(__name__)

CHANNELS = np.arange(1, N_CHANNELS + 1, dtype=np.float64)

EVERYWHERE = {"TELESCOP": "CHANDRA", "INSTRUME": "ACIS", "CHANTYPE": "PI"}
"""Values that these keywords of each extension have, where they are there (see docs/recipe.md)."""

_IDS = ("OBS_ID", "OBI_NUM", "REGIONID")
_CYCLE_HEADER = {"e1": "P", "e2": "S"}  # the CYCLE keyword: primary and secondary exposures


def read_energies(detection: DetectionId, file: ProductFile) -> Energies:
    """Read the channel energies of an RMF file.

    Raises
    ------
    ProductError
        For anything that would reject the detection because of this file.
    """
    data = inflate(file)
    found = tables(data, file.name, "rmf")
    for table in found:
        check_words(table, EVERYWHERE)
        check_ids(table, detection, complete=False)
    return energies_of(detection, file.name, found, data)


def energies_of(detection: DetectionId, file: str, found: list[Table], data: bytes) -> Energies:
    """Take the channel energies out of the tables of an RMF file.

    Parameters
    ----------
    data : bytes
        The whole file, inflated.

    Raises
    ------
    ProductError
        ``channel_mismatch``, ``bad_energies``, or there is no table EBOUNDS that can be read.
    """
    ebounds = extension(found, "EBOUNDS", file, "rmf")
    channel, low, high = ebounds.columns("CHANNEL", "E_MIN", "E_MAX")
    check_channels(ebounds.file, channel)
    low, high = (edges.astype(np.float64) for edges in (low, high))
    demand(energy_faults("ebounds", low, high), ebounds.file)
    telescope, instrument = (ebounds.text(keyword, "").upper() for keyword in ("TELESCOP", "INSTRUME"))
    return Energies(detection, ebounds.file, sha256(data), telescope, instrument, low, high)


def check_channels(name: str, numbers: NDArray[Any]) -> None:
    """Raise ProductError unless the channels are those of ACIS, 1 to 1024."""
    if not np.array_equal(numbers, CHANNELS):
        raise ProductError(
            "channel_mismatch", f"{name} has {numbers.size} channels from {numbers[:1]}, not 1 to {N_CHANNELS}"
        )


def check_shared(source: Table, energies: Energies, detection: DetectionId) -> None:
    """Raise ProductError unless the spectrum is said to be of the kind that another detection's RMF is made for.

    Where it is the detection's own, a keyword that is not there does no harm.
    """
    if energies.detection == detection:
        return
    for keyword, value in (
        ("TELESCOP", energies.telescope),
        ("INSTRUME", energies.instrument),
        ("CHANTYPE", EVERYWHERE["CHANTYPE"]),
    ):
        if not value or source.text(keyword, "").upper() != value:
            reason = "wrong_type" if keyword == "CHANTYPE" else "wrong_instrument"
            found = source.text(keyword, "")
            raise ProductError(reason, f"{source.file}: {keyword} is {found!r}, but {value!r} in {energies.file}")


def check_words(table: Table, wanted: dict[str, str]) -> None:
    """Raise ProductError for a keyword that is there, but has another value than it must have."""
    for keyword, value in wanted.items():
        if (found := table.text(keyword, value)).upper() != value:
            if keyword == "INSTRUME" and found.upper().startswith("HRC"):
                raise ProductError("not_acis", f"{table.file}: INSTRUME is {found!r}, and HRC {HARDLY}")
            reason = "wrong_instrument" if keyword in ("TELESCOP", "INSTRUME") else "wrong_type"
            raise ProductError(reason, f"{table.file}: {keyword} is {found!r}, not {value}")


def check_ids(table: Table, detection: DetectionId, *, complete: bool) -> None:
    """Check that no keyword of the table names another detection; unless `complete`, the file's name may do for it."""
    own = (detection.obsid, detection.obi, detection.region_id)
    try:
        obsid, obi, region_id = (
            table.integer(keyword, None if complete else number) for keyword, number in zip(_IDS, own, strict=True)
        )
        found = DetectionId(obsid, obi, region_id)
    except ValueError as error:
        raise ProductError("wrong_ids", f"{table.file}: {error}") from None
    if found != detection.catalog:
        raise ProductError("wrong_ids", f"{table.file} holds {found}, not {detection.catalog}")
    cycle = _CYCLE_HEADER.get(detection.cycle)
    if cycle is None or ((name := ProductName.parse(table.file)) and not name.detection.cycle):
        return  # a response without a cycle in its name is of both
    if (word := table.text("CYCLE", cycle)) != cycle:
        _warn_of_cycle(detection.cycle, word)


@lru_cache(maxsize=64)
def _warn_of_cycle(cycle: str, word: str) -> None:
    """Say it, once for all files alike: nothing public proves what the keyword is in files of secondary exposures."""
    logger.warning("files of cycle %s by their names have the keyword CYCLE %r: the names are believed", cycle, word)
