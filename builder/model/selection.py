"""The cuts that select detections, and the queries that ask for them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.model.errors import SettingError
from builder.model.ids import DetectionId, designation
from builder.model.sky import Cone, Position

if TYPE_CHECKING:
    import pyarrow as pa


_LIST = 100
"""Names or observations in one query: the service drops the connection on very long lists."""

_BOXES = 25
"""Boxes on the sky in one query."""

DEFAULT_RADIUS = 2 / 3600
"""Radius of a match, deg: about the error of a bright source's position far off axis, and of most other catalogs."""

_NAME = re.compile(r"[\w .+:-]+")

_FROM = (
    "FROM {0}.master_source m, {0}.master_stack_assoc a, {0}.observation_source o, "
    "{0}.stack_observation_assoc b, {0}.stack_source s"
)
# The way from a source to its detections. The service's parser is fussy about joins; this form is known to work.
_WHERE = (
    "a.match_type = 'u'",
    "o.flux_bb_aper_b IS NOT NULL",
    "m.name = a.name",
    "s.detect_stack_id = a.detect_stack_id",
    "s.region_id = a.region_id",
    "s.detect_stack_id = b.detect_stack_id",
    "s.region_id = b.region_id",
    "o.obsid = b.obsid",
    "o.obi = b.obi",
    "o.region_id = b.region_id",
)


# Setting, column and relation of each cut.
_CUTS = (("min_cnts", "src_cnts_aper_b", ">"), ("min_sig", "flux_significance_b", ">"), ("max_theta", "theta", "<"))


@dataclass(frozen=True, slots=True)
class Selection:
    """Cuts and lists that select detections: all that are given must pass.

    Attributes
    ----------
    min_cnts : float, optional
        More net counts than this, 0.5-7 keV (``src_cnts_aper_b``).
    min_sig : float, optional
        A flux significance above this, S/N (``flux_significance_b``).
    max_theta : float, optional
        An off-axis angle below this, arcmin (``theta``).
    cone : Cone, optional
        Of sources in this circle.
    positions : tuple of Position
        Of the source that is nearest to each of these, whatever its detections; right ascension and declination in
        deg, and perhaps a name.
    radius : float, optional
        Greatest separation of such a source, deg.
    names : tuple of str
        Of these sources; designations in any case and with any blanks.
    obsids : tuple of int
        In these observations.
    detections : frozenset of DetectionId
        Just these.
    limit : int, optional
        The first so many, in the order of obsid, obi, region_id.

    Raises
    ------
    SettingError
        If a cut is negative or not a finite number, or another value is not what it should be.
    """

    min_cnts: float | None = None
    min_sig: float | None = None
    max_theta: float | None = None
    cone: Cone | None = None
    names: tuple[str, ...] = ()
    obsids: tuple[int, ...] = ()
    detections: frozenset[DetectionId] = frozenset()
    limit: int | None = None
    positions: tuple[Position, ...] = ()
    radius: float | None = None

    def __post_init__(self) -> None:
        for name, _, _, value in self._cuts:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise SettingError(f"{name} must be a number from 0 up, not {value!r}")
            object.__setattr__(self, name, float(value))
        object.__setattr__(self, "names", tuple(map(_folded, self.names)))
        if wrong := [name for name in self.names if not _NAME.fullmatch(name)]:
            raise SettingError(_no_name(wrong[0]))
        if wrong_obsids := [obsid for obsid in self.obsids if not 0 <= obsid < 10**6]:
            raise SettingError(f"{wrong_obsids[0]} is not an observation: obsid has up to 6 digits")
        object.__setattr__(self, "positions", tuple(Position(*place) for place in self.positions))
        if self.positions and self.radius is None:
            object.__setattr__(self, "radius", DEFAULT_RADIUS)
        if self.radius is not None and not self.positions:
            raise SettingError("a radius goes with positions: give --positions FILE")
        _ = self._circles  # refuses what is not on the sky
        if self.limit is not None and self.limit < 1:
            raise SettingError(f"limit must be at least 1, not {self.limit}")

    @property
    def _cuts(self) -> Iterator[tuple[str, str, str, float]]:
        """Setting, column, relation and bound of each cut that is given."""
        for name, column, relation in _CUTS:
            if (bound := getattr(self, name)) is not None:
                yield name, column, relation, bound

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as written beside the data; a list of detections by its number and SHA-256."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, (), frozenset())}
        if self.detections:
            text = "\n".join(map(str, sorted(self.detections)))
            given["detections"] = {"number": len(self.detections), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        if self.positions:
            text = "\n".join(f"{place.ra!r} {place.dec!r} {place.name}" for place in self.positions)
            given["positions"] = {"number": len(self.positions), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}

    def not_in(self, catalog: pa.Table) -> list[str]:
        """List sources, observations and ids that are asked for by name, but are not among the catalog's rows."""
        rows = catalog.select(["obsid", "obi", "region_id"]).to_pylist() if self.detections else []
        return [
            *map(str, sorted(self.detections - {DetectionId.of(row) for row in rows})),
            *(f"observation {obsid}" for obsid in sorted({*self.obsids} - {*catalog["obsid"].to_pylist()})),
            *(f"source {name!r}" for name in sorted({*self.names} - {*map(_folded, catalog["name"].to_pylist())})),
        ]

    def keeps(self, row: dict[str, Any], *, nulls: bool = False) -> bool:
        """Tell whether a catalog row passes, as the query's WHERE would decide, and by true separation.

        Parameters
        ----------
        row : dict
            Values by bare column name.
        nulls : bool
            Let a null pass a cut; in the query, as in SQL, it never does.
        """
        if row["flux_bb_aper_b"] is None and not nulls:
            return False
        for _, column, relation, bound in self._cuts:
            value = row[column]
            passes = nulls if value is None else value > bound if relation == ">" else value < bound
            if not passes:
                return False
        return (
            (self.cone is None or (None not in (row["ra"], row["dec"]) and self.cone.holds(row["ra"], row["dec"])))
            and (not self.names or _folded(row["name"]) in self.names)
            and (not self.obsids or row["obsid"] in self.obsids)
            and (not self.detections or DetectionId.of(row) in self.detections)
        )

    def name_hint(self) -> str:
        """Say what may be wrong with the names; empty where there are none."""
        if other := [name for name in self.names if not designation(name)]:
            return _no_name(other[0])
        return "look for slips in the names, such as '2CXO J004248.5+411521'" if self.names else ""

    @property
    def columns(self) -> set[str]:
        """Catalog columns, by bare name, without which the selection cannot be made."""
        place = ("ra", "dec") if self.cone or self.positions else ()
        return {"name", "obsid", "obi", "region_id", "flux_bb_aper_b", *(cut[1] for cut in self._cuts), *place}

    def queries(self, schema: str) -> Iterator[str]:
        """Yield the part after SELECT ... of each query; together they find every row that `keeps`, and more.

        The nearest source of a position is known only where none is cut away, so that the cuts are made on this side.
        """
        cuts = [f"o.{column} {relation} {bound!r}" for _, column, relation, bound in self._cuts]
        cuts += self.cone.conditions if self.cone else []
        obsids = self.obsids or {detection.obsid for detection in self.detections}
        if self.positions:
            cuts, lists = [], [*self._boxes()]
        elif self.names:  # where several lists are given, one is asked for and the rest is cut on this side
            lists = [*_in("m.name", [f"'{name}'" for name in sorted(set(self.names))])]
        else:
            lists = [*_in("o.obsid", [str(obsid) for obsid in sorted(set(obsids))])]
        for part in lists or [""]:
            yield f"{_FROM.format(schema)} WHERE {' AND '.join((*_WHERE, *cuts, *([part] if part else [])))}"

    @property
    def _circles(self) -> list[Cone]:
        places = {place[:2] for place in self.positions}
        return [Cone(ra, dec, self.radius or 0) for ra, dec in sorted(places, key=lambda place: (place[1], place[0]))]

    def _boxes(self) -> Iterator[str]:
        boxes = [f"({' AND '.join(circle.conditions)})" for circle in self._circles]
        for start in range(0, len(boxes), _BOXES):
            yield f"({' OR '.join(boxes[start : start + _BOXES])})"


def _folded(name: str | None) -> str:
    """Write a name of the catalog as the catalog does, and any other with single blanks."""
    return designation(name or "") or " ".join((name or "").split())


def _no_name(text: str) -> str:
    said = f"{text!r} is not a source's name, such as '2CXO J004248.5+411521'"
    if re.search(r"J\s*\d", text, re.IGNORECASE):
        return f"{said}: look for slips in it"
    return (
        f"{said}; for its position try astropy's SkyCoord.from_name({text!r}), which asks Sesame, and give "
        "--cone RA,DEC,1arcmin"
    )


def _in(column: str, values: list[str]) -> Iterator[str]:
    for start in range(0, len(values), _LIST):
        yield f"{column} IN ({', '.join(values[start : start + _LIST])})"
