"""Places on the sky: angles as people write them, circles, and positions of one's own."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

from builder.model.errors import SettingError


def angle(text: str, *, hours: bool = False) -> float:
    """Read an angle in deg: a plain number, one with a unit (``1arcmin``), or sexagesimal.

    Parameters
    ----------
    hours : bool
        Take sexagesimal text without units, such as ``23:19:29.3``, for hours.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        return float(text)
    except ValueError:
        from astropy.coordinates import Angle

    sexagesimal = ":" in text or len(text.split()) == 3
    with warnings.catch_warnings(action="ignore"):  # of a 60 in the place of seconds, which is taken for a minute
        return float(Angle(text.strip(), "hourangle" if hours and sexagesimal else "deg").deg)


def radius_of(text: str) -> float:
    """Read a radius in deg, which must have a unit: a bare 2 would be 2 deg to the one and 2 arcsec to the other."""
    try:
        return angle(text if text.rstrip()[-1:].isalpha() or text.rstrip()[-1:] in "'\"" else "")
    except ValueError:
        raise SettingError(f"radius {text!r} is not an angle with a unit, such as 2arcsec") from None


def separation(ra1: float, dec1: float, ra2: float, dec2: float) -> float:
    """Compute the angle between two positions, deg; the haversine formula keeps its precision for small ones."""
    lon1, lat1, lon2, lat2 = map(math.radians, (ra1, dec1, ra2, dec2))
    chord = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return math.degrees(2 * math.asin(math.sqrt(min(1.0, chord))))


def source_name(prefix: str, ra: float, dec: float) -> str:
    """Write the catalog's name of a position in deg: ``<prefix> JHHMMSS.s±DDMMSS``, truncated and not rounded."""
    tenths = int(ra % 360.0 * 2400.0)
    seconds = int(abs(dec) * 3600.0)
    hms = f"{tenths // 36000:02d}{tenths // 600 % 60:02d}{tenths // 10 % 60:02d}.{tenths % 10}"
    return f"{prefix} J{hms}{'-' if dec < 0 else '+'}{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


class Position(NamedTuple):
    """A place that a user names: right ascension and declination in deg, and a name, which may be empty."""

    ra: float
    dec: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Cone:
    """A circle on the sky: centre and radius in degrees.

    Raises
    ------
    SettingError
        If the centre is not on the sky, or the radius not between 0 and 180.
    """

    ra: float
    dec: float
    radius: float

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (self.ra, self.dec, self.radius))
        if not finite or not (0 <= self.ra < 360 and -90 <= self.dec <= 90 and 0 < self.radius <= 180):
            raise SettingError(
                f"the cone {self.ra:g},{self.dec:g},{self.radius:g} must have 0 <= RA < 360, -90 <= DEC <= 90 and "
                "0 < RADIUS <= 180, all in degrees"
            )

    @classmethod
    def parse(cls, text: str) -> Cone:
        """Read ``RA,DEC,RADIUS``, each as `angle` does; SettingError if it is not that."""
        try:
            ra, dec, radius = text.split(",")
            place = angle(ra, hours=True), angle(dec), angle(radius)
        except ValueError:
            raise SettingError(
                f"cone {text!r} is not RA,DEC,RADIUS, such as 83.82,-5.39,0.2 or 23:19:29.3,+00:35:57,1arcmin"
            ) from None
        return cls(*place)

    def holds(self, ra: float, dec: float) -> bool:
        """Tell whether a position lies within, by its true separation."""
        return separation(self.ra, self.dec, ra, dec) <= self.radius

    @property
    def conditions(self) -> list[str]:
        """A box in right ascension and declination that holds the circle: the service has no geometry."""
        low, high = self.dec - self.radius, self.dec + self.radius
        box = [f"m.dec >= {max(low, -90)!r}", f"m.dec <= {min(high, 90)!r}"]
        if low <= -90 or high >= 90:  # a pole lies within: every right ascension does
            return box
        # The meridians that touch the circle; a hair wider, against rounding.
        sine = math.sin(math.radians(self.radius)) / math.cos(math.radians(self.dec))
        width = math.degrees(math.asin(min(1.0, sine))) + 1e-9
        west, east = self.ra - width, self.ra + width
        if west < 0 or east >= 360:
            return [*box, f"(m.ra >= {west % 360!r} OR m.ra <= {east % 360!r})"]
        return [*box, f"m.ra >= {west!r}", f"m.ra <= {east!r}"]
