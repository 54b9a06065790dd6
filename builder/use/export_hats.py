"""Rows as a HATS catalog: Parquet files that each hold a patch of the sky, with what tools need to find them.

The layout is that of the IVOA note on HATS; the `hats` package writes all of it but the choice of the patches, for
which it counts rows on a fixed grid and gives up where one cell of the grid has too many, as a deep field has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hats.catalog import CatalogType, PartitionInfo, TableProperties
from hats.io.file_io import get_parquet_write_table_kwargs
from hats.io.parquet_metadata import write_parquet_metadata
from hats.io.paths import pixel_catalog_file
from hats.pixel_math import HealpixPixel
from hats.pixel_math.spatial_index import SPATIAL_INDEX_COLUMN, SPATIAL_INDEX_ORDER, compute_spatial_index
from numpy.typing import NDArray

from builder import __version__
from builder.dataset.describe import with_descriptions
from builder.dataset.hdf5 import read_rows
from builder.dataset.rows import public
from builder.model.column import Column
from builder.model.columns import columns_of
from builder.model.text import Progress

_ROWS = 10_000
"""Rows in a file at most, about 30 MB; as many are in hand at once."""


def write_hats(file: h5py.File, folder: Path, progress: Progress, own: tuple[Column, ...] = ()) -> None:
    """Write the columns of config ``spectra`` as a HATS catalog.

    Rows are in the order of their place on the sky. The bins of a spectrum are a struct of lists, which LSDB takes
    for a nested column.

    Parameters
    ----------
    file : h5py.File
        The canonical file.
    folder : Path
        An empty folder, the root of the catalog.
    own : tuple of Column
        Columns besides those of every dataset.
    """
    columns = columns_of("spectra", own=own)
    index = compute_spatial_index(file["ra"][:], file["dec"][:])
    pixels, done, largest = [], 0, 0
    for pixel, rows in _partitions(index, np.argsort(index, kind="stable")):
        rising = np.sort(rows)
        table = public(read_rows(file, columns, rising), "spectra", own=own).take(np.searchsorted(rising, rows))
        table = table.add_column(0, SPATIAL_INDEX_COLUMN, pa.array(index[rows]))
        table = table.cast(with_descriptions(table.schema, columns))
        path = Path(str(pixel_catalog_file(folder, pixel)))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **get_parquet_write_table_kwargs(table.schema))
        pixels.append(pixel)
        largest = max(largest, len(rows))
        done += len(rows)
        progress("export", done, len(index))
    write_parquet_metadata(folder)
    PartitionInfo(pixels).write_to_file(catalog_path=folder)
    TableProperties(
        catalog_name="chandra_spectra",
        catalog_type=CatalogType.SOURCE,
        total_rows=len(index),
        ra_column="ra",
        dec_column="dec",
        healpix_column=SPATIAL_INDEX_COLUMN,
        healpix_order=SPATIAL_INDEX_ORDER,
        hats_max_rows=largest,
        hats_builder=f"chandra-spectra {__version__}",
        hats_version="v1.0",
    ).to_properties_file(folder)


def _partitions(
    index: NDArray[np.int64], rows: NDArray[np.int64], order: int = -1
) -> Iterator[tuple[HealpixPixel, NDArray[np.int64]]]:
    """Share rows out among the largest HEALPix cells that have no more than `_ROWS` of them.

    Parameters
    ----------
    index : ndarray of int64
        Cell of each row of the catalog at the highest order.
    rows : ndarray of int64
        Rows of one cell of `order` (-1 for the whole sky), sorted by `index`.

    Yields
    ------
    HealpixPixel
    ndarray of int64
        Its rows, sorted by `index`.
    """
    order += 1
    cells = index[rows] >> 2 * (SPATIAL_INDEX_ORDER - order)
    for part in np.split(rows, np.flatnonzero(np.diff(cells)) + 1):
        if len(part) <= _ROWS or order == SPATIAL_INDEX_ORDER:
            yield HealpixPixel(order, int(index[part[0]] >> 2 * (SPATIAL_INDEX_ORDER - order))), part
        else:
            yield from _partitions(index, part, order)
