"""Train, validation and test by place on the sky, so that one source is never on two sides.

The split of a row follows from its HEALPix cell alone. With u = (the first 8 bytes of the SHA-256 of the text
``healpix <cell>``, as a big-endian integer) / 2**64, the row is `train` where u is below the first share,
`validation` where it is below the sum of the first two, else `test`. So all rows of a source, and of most of its
neighbours, are in one split, and a source keeps its split under other cuts and in other releases.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from builder.model.errors import SettingError

SPLITS = ("train", "validation", "test")
"""The names, in the order of the shares; a row without a position is `train`."""


@dataclass(frozen=True, slots=True)
class Splits:
    """Division of the rows into splits.

    Attributes
    ----------
    divided : bool
        Files for each split, as by default; if not, all rows are in the files of `train`, and column ``split`` tells
        them apart.
    shares : (int, int, int)
        Shares of the sky, per cent, of train, validation and test.

    Raises
    ------
    SettingError
        If the shares are negative or do not add up to 100.
    """

    divided: bool = True
    shares: tuple[int, int, int] = (80, 10, 10)

    def __post_init__(self) -> None:
        if len(self.shares) != len(SPLITS) or min(self.shares) < 0 or sum(self.shares) != 100:
            shares = "/".join(map(str, self.shares))
            raise SettingError(f"the shares {shares} of train, validation and test must be 3 that add up to 100")

    @classmethod
    def parse(cls, text: str) -> Splits:
        """Read ``source``, ``none`` or, with other shares, such as ``source:70/20/10``; SettingError for another."""
        match = re.fullmatch(r"(none|source)(?::(\d+(?:/\d+)*))?", text) if isinstance(text, str) else None
        if match is None:
            raise SettingError(f"splits {text!r}: give source, source:70/20/10 for other shares, or none")
        shares = tuple(map(int, match[2].split("/"))) if match[2] else cls().shares
        return cls(match[1] == "source", shares)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{'source' if self.divided else 'none'}:{'/'.join(map(str, self.shares))}"

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that have files."""
        return SPLITS if self.divided else SPLITS[:1]

    def of(self, healpix: int | None) -> str:
        """Give the split of a HEALPix cell (nside 16, nested); without a cell it is `train`."""
        if healpix is None:
            return SPLITS[0]
        train, validation, _ = self.shares
        bounds = (train / 100, (train + validation) / 100)
        return SPLITS[bisect.bisect_right(bounds, _place(healpix))]


@lru_cache(maxsize=12 * 16**2)
def _place(healpix: int) -> float:
    """Give the number u of a cell."""
    return int.from_bytes(hashlib.sha256(f"healpix {healpix}".encode()).digest()[:8], "big") / 2**64
