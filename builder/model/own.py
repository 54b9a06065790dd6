"""Columns beside the declared ones: a user's own labels, or more of the catalog's; and what a file says of any column.

An Arrow field carries what is known of its column (unit, description, UCD, source) as its metadata. A table with own
columns declares them itself so, from the reader of a catalog to the Parquet file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from builder.model.column import DIVIDED_CONFIGS, ROW_CONFIGS, Column
from builder.model.columns import CATALOG, COLUMNS, EBOUNDS, SOURCES, binned_columns
from builder.model.errors import SettingError

_FLUX, _ENERGY, _FLAG = "phot.flux;em.X-ray", "em.energy", "meta.code"
UCDS = {
    "name": "meta.id;meta.main", "detection_id": "meta.id;src", "object_id": "meta.id;src", "obsid": "meta.id;obs",
    "instrument": "meta.id;instr", "ra": "pos.eq.ra;meta.main", "dec": "pos.eq.dec;meta.main", "healpix": "pos.healpix",
    "significance": "stat.snr", "flux_significance_b": "stat.snr", "src_cnts_aper_b": "phot.count;em.X-ray",
    "theta": "pos.angDistance;instr.det", "phi": "pos.posAng;instr.det", "livetime": "time.duration;obs.exposure",
    "exposure": "time.duration;obs.exposure", "gti_mjd_obs": "time.start;obs.exposure",
    "gti_end": "time.end;obs.exposure", "var_prob_b": "stat.probability;src.var", "var_index_b": "src.var.index",
    "err_ellipse_r0": "phys.angSize.smajAxis;pos.errorEllipse", "nh_gal": "phys.columnDensity",
    "err_ellipse_r1": "phys.angSize.sminAxis;pos.errorEllipse", "err_ellipse_ang": "pos.posAng;pos.errorEllipse",
    **{f"hard_{pair}": "phot.color;em.X-ray" for pair in ("hm", "hs", "ms")},
    **{f"flux_{what}": _FLUX for what in ("aper_b", "bb_aper_b", "powlaw", "aper_s", "aper_m", "aper_h")},
    **{f"{what}_flag": _FLAG for what in ("sat_src", "streak_src", "extent", "pileup")},
    **{f"{what}_code": _FLAG for what in ("conf", "extent")},
    "powlaw_gamma": "spect.index;em.X-ray", "powlaw_nh": "phys.columnDensity",
    "powlaw_ampl": "phot.flux.density;em.X-ray",
    **{f"{model}_kt": "phys.temperature" for model in ("bb", "brems", "apec")},
    **{f"{model}_stat": "stat.fit.goodness" for model in ("powlaw", "bb", "brems", "apec")},
    "source_counts": "phot.count;em.X-ray", "background_counts_total": "phot.count;instr.background",
    "counts": "phot.count;em.X-ray", "background_counts": "phot.count;instr.background",
    **dict.fromkeys(("energy_lo", "energy_hi", "arf.energy_lo", "arf.energy_hi"), _ENERGY),
    **{f"spectrum.ene_{part}_bin": _ENERGY for part in ("center", "low", "high")},
    "arf.specresp": "phys.area;instr", "effective_area": "phys.area;instr",
}  # fmt: skip
"""Kinds of quantities in the words of the Virtual Observatory (UCD1+), by column; limits are those of their values."""

_TYPES = {"string": pa.string(), "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}
"""Types of own columns."""

_SOURCE = "source"
"""Scope of a column that is the same for all detections of a source."""

_SAID = {"unit": "unit", "description": "meaning", "ucd": "ucd", "source": "source"}
"""Keys of a field's metadata, and the attributes of a column that they hold."""

_KNOWN = frozenset(column.name for column in CATALOG)

MADE = (
    frozenset(word for column in COLUMNS for word in (column.name, column.hdf5_name, column.name.partition(".")[0]))
    | frozenset(column.name for column in (*binned_columns(1), *SOURCES, *EBOUNDS))
    | {"ebounds"}
) - _KNOWN
"""Names of what the dataset makes itself, which no own column can have."""


def check_asked(columns: Iterable[str]) -> None:
    """Raise SettingError for what is no further column of the catalog's tables, such as ``m.gal_l``."""
    for column in columns:
        if not re.fullmatch(r"[mo]\.[a-z][a-z0-9_]*", column):
            raise SettingError(f"{column!r} is no column such as m.gal_l (of a source) or o.apec_z (of a detection)")
        if (name := column.partition(".")[2]) in _KNOWN | MADE:
            raise SettingError(f"{column}: every dataset has a column {name}")


def own_name(text: str) -> str:
    """Write a name as that of an own column: in lower case, with ``_`` for what is no letter, digit or ``_``."""
    return re.sub(r"\W", "_", text.strip().lower())


def own_column(name: str, kind: pa.DataType, said: Mapping[str, str]) -> Column:
    """Declare an own column, by what is said of it under the keys of a field's metadata."""
    dtype = next(word for word, each in _TYPES.items() if each == kind)
    known: dict[str, Any] = {attribute: said.get(key, "") for key, attribute in _SAID.items()}
    configs = DIVIDED_CONFIGS if said.get("scope") == _SOURCE else ROW_CONFIGS
    classes = tuple(json.loads(said.get("classes", "[]")))
    return Column(name, dtype, **known, configs=configs, nullable=True, own=True, classes=classes)


def ucd_of(column: Column) -> str:
    """Return what kind of quantity a column is, empty where no word fits."""
    if column.own:
        return column.ucd
    for limit, word in (("_lolim", "stat.min"), ("_hilim", "stat.max")):
        if limit in column.name:
            return f"{UCDS[column.name.replace(limit, '')]};{word}"
    return UCDS.get(column.name, "")


def _further(column: Column) -> dict[str, str]:
    """Write what is known of an own column besides what any column has."""
    scope = {"scope": _SOURCE} if column.own and column.configs == DIVIDED_CONFIGS else {}
    return scope | ({"classes": json.dumps(column.classes, ensure_ascii=False)} if column.classes else {})


def described(field: pa.Field, column: Column) -> pa.Field:
    """Give a field what is known of its column."""
    known = {key: getattr(column, attribute) for key, attribute in _SAID.items()} | {"ucd": ucd_of(column)}
    known |= _further(column)
    return field.with_metadata({key: text for key, text in known.items() if text})


def said_of(field: pa.Field) -> dict[str, str]:
    """Read what a field says of its column."""
    found = {key.decode(): text.decode(errors="replace") for key, text in (field.metadata or {}).items()}
    return {key: text for key, text in found.items() if key in (*_SAID, "scope", "classes")}


def own_columns(schema: pa.Schema) -> tuple[Column, ...]:
    """Return the own columns of a catalog's table."""
    return tuple(own_column(field.name, field.type, said_of(field)) for field in schema if field.name not in _KNOWN)


def own_dicts(columns: Iterable[Column]) -> list[dict[str, str]]:
    """Write own columns as the manifest has them."""
    return [
        {"name": c.name, "dtype": c.dtype, **{a: getattr(c, a) for a in _SAID.values()}, **_further(c)} for c in columns
    ]


def own_of_dicts(said: Iterable[Mapping[str, str]]) -> tuple[Column, ...]:
    """Return the inverse of `own_dicts`; KeyError or TypeError where it cannot be."""
    keys = {attribute: key for key, attribute in _SAID.items()}
    return tuple(
        own_column(each["name"], _TYPES[each["dtype"]], {keys.get(a, a): text for a, text in each.items()})
        for each in said
    )
