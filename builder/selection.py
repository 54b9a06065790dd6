"""The cuts that select detections, and the query that asks for them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from builder.columns import CATALOG
from builder.errors import SettingError

__all__ = ["RELEASES", "Selection"]

RELEASES = ("rel2.1", "rel2.0", "cur")
"""Version words that the archive knows; ``cur`` may change under you."""

_FROM = (
    "FROM csc21.master_source m, csc21.master_stack_assoc a, csc21.observation_source o, "
    "csc21.stack_observation_assoc b, csc21.stack_source s"
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


@dataclass(frozen=True, slots=True)
class Selection:
    """Which detections to take.

    Attributes
    ----------
    min_cnts : float
        More net counts than this, 0.5-7 keV (``src_cnts_aper_b``).
    min_sig : float
        A flux significance above this, S/N (``flux_significance_b``).
    max_theta : float
        An off-axis angle below this, arcmin (``theta``).

    Raises
    ------
    SettingError
        If a cut is negative or not a finite number.
    """

    min_cnts: float = 40.0
    min_sig: float = 4.0
    max_theta: float = 10.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise SettingError(f"{field.name} must be a number from 0 up, not {value!r}")
            object.__setattr__(self, field.name, float(value))

    @property
    def _cuts(self) -> tuple[tuple[str, str, float], ...]:
        return (
            ("src_cnts_aper_b", ">", self.min_cnts),
            ("flux_significance_b", ">", self.min_sig),
            ("theta", "<", self.max_theta),
        )

    def keeps(self, row: dict[str, object], *, nulls: bool = False) -> bool:
        """Whether a catalog row passes the cuts, as the query's WHERE would decide.

        Parameters
        ----------
        row : dict
            Values by bare column name.
        nulls : bool
            Let a null pass a cut; in the query, as in SQL, it never does.
        """
        if row.get("flux_bb_aper_b") is None and not nulls:
            return False
        for column, relation, bound in self._cuts:
            value = row.get(column)
            if value is None:
                if not nulls:
                    return False
            elif not (value > bound if relation == ">" else value < bound):  # type: ignore[operator]
                return False
        return True

    def adql(self, what: str = "") -> str:
        """The query for the selected detections.

        Parameters
        ----------
        what : str
            The selected expressions; by default every catalog column of the dataset.
        """
        columns = what or ", ".join(column.query for column in CATALOG)
        cuts = (f"o.{column} {relation} {bound!r}" for column, relation, bound in self._cuts)
        return f"SELECT {columns} {_FROM} WHERE {' AND '.join((*_WHERE, *cuts))}"
