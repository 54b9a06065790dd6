"""A catalog row made of what a PHA file tells of its detection, where no catalog is at hand."""

from __future__ import annotations

from typing import Any

from builder.model.columns import ASKED
from builder.model.errors import ProductError
from builder.model.ids import DetectionId
from builder.model.records import ProductFile
from builder.model.sky import separation, source_name
from builder.reduce.ogip import Table, content, inflate, tables


def header_row(detection: DetectionId, pha: ProductFile | None = None) -> dict[str, Any]:
    """Make a catalog row of a detection.

    ``theta`` is the angle between the source and the pointing; ``name`` is made of the position. Files of release 2 do
    not say where the source is, so that their rows have none of these. ``src_cnts_aper_b`` is null: the counts of the
    file are not corrected for the aperture, as the catalog's are.

    Parameters
    ----------
    pha : ProductFile, optional
        Its PHA file; without one the row has its ids and nothing else.

    Returns
    -------
    dict
        Values by the names of `ASKED`; None where the file does not tell.

    Raises
    ------
    ProductError
        If the file is damaged or no FITS file.
    """
    ids = {"obsid": detection.obsid, "obi": detection.obi, "region_id": detection.region_id}
    measured = _measured(pha) if pha is not None else {}
    return {column.name: None for column in ASKED} | measured | ids


def _measured(pha: ProductFile) -> dict[str, Any]:
    source = next((table for table in tables(inflate(pha), pha.name, "pha") if _is_source(table)), None)
    if source is None:
        raise ProductError("unreadable_pha", f"{pha.name}: no source spectrum")
    words = ("RA", "DEC", "RA_PNT", "DEC_PNT", "LIVETIME", "MJD_OBS", "MJD-OBS")
    ra, dec, ra_pnt, dec_pnt, livetime, began, start = (_number(source, word) for word in words)
    row: dict[str, Any] = {
        "instrument": source.word("INSTRUME"),
        "livetime": livetime,
        "gti_mjd_obs": start if began is None else began,
    }
    if ra is not None and dec is not None and 0 <= ra < 360 and abs(dec) <= 90:
        row |= {"name": source_name("2CXO", ra, dec), "ra": ra, "dec": dec}
        if ra_pnt is not None and dec_pnt is not None:
            row["theta"] = 60.0 * separation(ra, dec, ra_pnt, dec_pnt)
    return row


def _is_source(table: Table) -> bool:
    return content(table.text) == "SPECTRUM" and table.text("HDUCLAS2", "") == "TOTAL"


def _number(table: Table, keyword: str) -> float | None:
    return table.number(keyword) if table.text(keyword, "") else None
