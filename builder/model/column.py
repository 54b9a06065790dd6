"""The declaration of a column, and the configurations that it may be in."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from builder.model.records import Spectrum

CONFIGS = {
    "spectra": "one row a spectrum: all scalars and the reduced spectrum",
    "counts": "one row a spectrum: all scalars, the counts in each channel and the effective area",
    "binned": "one row a spectrum: all scalars, the counts in fixed bins, and the response by fixed photon energies",
    "sources": "one row a master source: its detections summed, counts in each channel and the mean effective area",
    "ebounds": "one row a channel energy grid",
    "responses": "one row a response matrix (RMF), sparse",
}
"""Configurations of a prepared folder; the first is the default; see `configs_with`."""


ROW_CONFIGS = ("spectra", "counts", "binned")
"""Configurations with a row for each spectrum."""


DIVIDED_CONFIGS = (*ROW_CONFIGS, "sources")
"""Configurations whose rows are divided into the splits."""


RAGGED = -1
"""Length of a list that differs from row to row."""


@dataclass(frozen=True, slots=True)
class Column:
    """The declaration of one column.

    Attributes
    ----------
    name : str
        Public name; ``struct.field`` for the field of a struct.
    dtype : str
        Arrow type of the values in Parquet; HDF5 holds all of ``float32`` from the catalog and the spectrum as
        ``float64``.
    meaning, source : str
        For people: what it is, and the CSC column, file or formula that it comes from.
    unit : str
        As in FITS; empty for none.
    length : int or tuple of int, optional
        None for a scalar, `RAGGED`, or the fixed length of a list, or of a list of lists.
    configs : tuple of str
        Configurations that have the column.
    hdf5 : str, optional
        Name in the HDF5 file, where it is not `name`.
    query : str, optional
        Expression of the catalog query, for columns that the catalog gives.
    record : str, optional
        Attribute of `builder.model.records.Spectrum` that holds it, where it is not `name`.
    nullable : bool
        Whether a row may lack it.
    ucd : str
        Kind of quantity of an own column in the words of the Virtual Observatory (UCD1+), where it is said.
    own : bool
        Whether it is a column of a catalog beside the declared ones, see `builder.model.own`.
    classes : tuple of str
        Names of classes, of which the values are the numbers; empty for other columns.
    """

    name: str
    dtype: str
    meaning: str
    source: str
    unit: str = ""
    length: int | tuple[int, ...] | None = None
    configs: tuple[str, ...] = ROW_CONFIGS
    hdf5: str = ""
    query: str = ""
    record: str = ""
    nullable: bool = False
    ucd: str = ""
    own: bool = False
    classes: tuple[str, ...] = ()

    @property
    def stand_in(self) -> int:
        """Value that stands for a null in HDF5, where the type has no NaN."""
        return -(2**63) if self.own and self.dtype == "int64" and not self.classes else -1

    @property
    def hdf5_name(self) -> str:
        """Name of the dataset in the HDF5 file."""
        return self.hdf5 or self.name

    @property
    def full_type(self) -> pa.DataType:
        """Arrow type in the store and in HDF5, where nothing is rounded."""
        wide = self.dtype == "float32" and (self.query or self.name.startswith("spectrum."))
        return self._listed(pa.float64() if wide else _value_type(self.dtype))

    @property
    def public_type(self) -> pa.DataType:
        """Arrow type in Parquet."""
        return self._listed(_value_type(self.dtype))

    def of(self, spectrum: Spectrum) -> Any:
        """Give the value of a measured column."""
        return operator.attrgetter(self.record or self.name)(spectrum)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of lists, the outer ones first; empty for a scalar."""
        return () if self.length is None else self.length if isinstance(self.length, tuple) else (self.length,)

    def _listed(self, value: pa.DataType) -> pa.DataType:
        for length in reversed(self.shape):
            value = pa.list_(value, length)  # a length of -1 is pyarrow's own word for a ragged list
        return value


def _value_type(dtype: str) -> pa.DataType:
    return {"string": pa.string(), "bool": pa.bool_()}.get(dtype) or pa.type_for_alias(dtype)
