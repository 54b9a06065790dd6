"""Detections and how they are named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.model.errors import SettingError

CYCLES = ("", "e1", "e2")
"""Cycle words of product names; ``e1`` primary and ``e2`` secondary exposures of an interleaved observation."""

_DETECTION_ID = re.compile(r"(\d{1,6})\.(\d{1,3})\.(\d{1,4})(?:\.(e[12]))?", re.ASCII)

_DESIGNATION = re.compile(r"(\d?[A-Z]+)(J\d{6}(?:\.\d+)?[+-]\d{6}[A-Z]?)", re.ASCII)
"""Name of a source by its position (IAU), upper case and without blanks; ``X`` at the end is of an extended one."""


def designation(text: str) -> str | None:
    """Write a source's name as the catalog does, in whatever case and with whatever blanks; None if it is no such name.

    >>> designation("2cxoj004248.5+411521")
    '2CXO J004248.5+411521'
    """
    match = _DESIGNATION.fullmatch("".join(text.split()).upper().replace("\N{MINUS SIGN}", "-"))
    return match and f"{match[1]} {match[2]}"


@dataclass(frozen=True, slots=True, order=True)
class DetectionId:
    """Name of a detection: ``obsid.obi.region_id``, with the cycle of an interleaved observation.

    Raises
    ------
    SettingError
        If a number is negative or too large for :attr:`object_id`, or the cycle is unknown.
    """

    obsid: int
    obi: int
    region_id: int
    cycle: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.obsid < 10**6 and 0 <= self.obi < 10**3 and 0 <= self.region_id < 10**4):
            raise SettingError(f"{self} is not a detection: obsid has up to 6 digits, obi 3, region_id 4")
        if self.cycle not in CYCLES:
            raise SettingError(f"{self} is not a detection: the cycle is e1, e2 or left out")

    def __str__(self) -> str:
        stem = f"{self.obsid}.{self.obi}.{self.region_id}"
        return f"{stem}.{self.cycle}" if self.cycle else stem

    @classmethod
    def parse(cls, text: str) -> DetectionId:
        """Read ``4938.0.43`` or ``4938.0.43.e1``; SettingError if it is neither."""
        match = _DETECTION_ID.fullmatch(text.strip())
        if match is None:
            raise SettingError(f"{text.strip()!r} is not a detection: write obsid.obi.region_id, such as 4938.0.43")
        obsid, obi, region_id, cycle = match.groups()
        return cls(int(obsid), int(obi), int(region_id), cycle or "")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> DetectionId | None:
        """Find the detection that a catalog row names; None where its ids cannot be one's."""
        try:
            return cls(int(row["obsid"]), int(row["obi"]), int(row["region_id"]))
        except (TypeError, SettingError):
            return None

    @property
    def object_id(self) -> int:
        """The id as one integer, its decimal digits ``obsid | obi (3) | region_id (4) | cycle (1)``.

        ``((obsid * 1000 + obi) * 10000 + region_id) * 10 + c`` with c = 0, 1, 2 for no cycle, e1, e2. It depends
        on nothing but the detection, fits a double exactly, and :meth:`from_object_id` reads it back.
        """
        return ((self.obsid * 1000 + self.obi) * 10000 + self.region_id) * 10 + CYCLES.index(self.cycle)

    @classmethod
    def from_object_id(cls, object_id: int) -> DetectionId:
        """Return the inverse of :attr:`object_id`; SettingError if no detection has that number."""
        rest, cycle = divmod(int(object_id), 10)
        rest, region_id = divmod(rest, 10000)
        obsid, obi = divmod(rest, 1000)
        if cycle >= len(CYCLES):
            raise SettingError(f"{object_id} is not an object_id: its last digit is 0, 1 or 2")
        return cls(obsid, obi, region_id, CYCLES[cycle])

    @property
    def catalog(self) -> DetectionId:
        """The detection's row in the catalog, which knows no cycles."""
        return DetectionId(self.obsid, self.obi, self.region_id)

    @property
    def observation(self) -> str:
        """The observation interval, ``obsid.obi``, with the cycle of an interleaved one."""
        stem = f"{self.obsid}.{self.obi}"
        return f"{stem}.{self.cycle}" if self.cycle else stem

    def with_cycle(self, cycle: str) -> DetectionId:
        """Return the spectrum of one cycle of this detection."""
        return DetectionId(self.obsid, self.obi, self.region_id, cycle)
