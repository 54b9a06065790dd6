"""Rows: what was measured joined with what the catalog says, in the types of the store or of the public configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.archive.packages import Package
from builder.model.column import Column
from builder.model.columns import COLUMNS, columns_of
from builder.model.ids import DetectionId
from builder.model.own import own_columns
from builder.model.schema import arrow_schema
from builder.model.splits import Splits
from builder.store.packages import PackageResult

HEALPIX_NSIDE = 16


def healpix(ra: pa.ChunkedArray, dec: pa.ChunkedArray) -> pa.Array:
    """Compute the HEALPix cell (nside 16, nested) of positions in degrees; null where there is no position."""
    from healpix import ang2pix

    lon, lat = ra.to_numpy(), dec.to_numpy()
    missing = ~((np.abs(lon) <= 360) & (np.abs(lat) <= 90))
    lon, lat = (np.where(missing, 0, angle) for angle in (lon, lat))
    return pa.array(ang2pix(HEALPIX_NSIDE, lon, lat, nest=True, lonlat=True), pa.int64(), mask=missing)


def join(catalog: pa.Table, package: Package, result: PackageResult, splits: Splits) -> pa.Table:
    """Return all columns of a package's spectra, nothing rounded.

    Parameters
    ----------
    catalog : pyarrow.Table
        The plan's catalog.

    Returns
    -------
    pyarrow.Table
        Columns of `builder.model.columns.COLUMNS` and the catalog's own, flat, in the order of the catalog and then of
        the cycles.
    """
    measured = result.spectra
    known = catalog.slice(package.start, len(package.detections)).take(measured["row"])
    ids = [str(DetectionId.from_object_id(number)) for number in measured["object_id"].to_pylist()]
    cells = healpix(known["ra"], known["dec"])
    derived = {
        "detection_id": pa.array(ids, pa.string()),
        "healpix": cells,
        "split": pa.array(map(splits.of, cells.to_pylist()), pa.string()),
    }
    columns = []
    schema = arrow_schema((*COLUMNS, *own_columns(catalog.schema)))
    for name in schema.names:
        if name in derived:
            columns.append(derived[name])
        else:
            columns.append((known if name in known.column_names else measured)[name])
    return pa.Table.from_arrays(columns, schema=schema)


def public(rows: pa.Table, config: str, bins: int = 0, own: tuple[Column, ...] = ()) -> pa.Table:
    """Return the columns of one config in their public types, with `struct.field` columns gathered into structs.

    Parameters
    ----------
    bins : int
        Number of bins, for config ``binned``.
    own : tuple of Column
        Columns besides those of every dataset.
    """
    arrays: dict[str, pa.Array] = {}
    structs: dict[str, dict[str, pa.Array]] = {}
    for column in columns_of(config, bins, own):
        array = rows[column.name].cast(column.public_type).combine_chunks()
        struct, _, name = column.name.rpartition(".")
        if struct:
            structs.setdefault(struct, {})[name] = array
            arrays.setdefault(struct, array)  # keeps the struct's place
        else:
            arrays[name] = array
    for struct, fields in structs.items():
        arrays[struct] = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    return pa.table(arrays)


def examples(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Return the rows of a table one by one, lists as numpy arrays rather than as Python numbers."""
    columns = [_values(table[name].combine_chunks()) for name in table.column_names]
    for values in zip(*columns, strict=True):
        yield dict(zip(table.column_names, values, strict=True))


def _values(array: pa.Array) -> Any:
    if pa.types.is_struct(array.type):
        fields = [_values(array.field(index)) for index in range(array.type.num_fields)]
        names = [field.name for field in array.type]
        return (dict(zip(names, values, strict=True)) for values in zip(*fields, strict=True))
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return (_block(item.values) if item.is_valid else None for item in array)
    return array.to_pylist()


def _block(values: pa.Array) -> NDArray[Any]:
    """Return a list, or a list of lists of one length, as an array."""
    if pa.types.is_fixed_size_list(values.type):
        return _block(values.flatten()).reshape(len(values), -1)
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]  # texts are copied
