"""The HDF5 file holds what was appended, under the canonical names, and is the same for the same rows."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.dataset.hdf5 import HDF5Writer, read_datasets
from builder.model.column import RAGGED, Column
from builder.model.columns import CATALOG, COLUMNS, EBOUNDS
from builder.model.records import N_CHANNELS
from builder.model.schema import arrow_schema
from tests.fits_files import stable

SCHEMA = arrow_schema(COLUMNS)


def value(column: Column, rng: np.random.Generator, length: int) -> Any:
    kind = column.full_type if column.length is None else column.full_type.value_type
    size = None if column.length is None else length if column.length == RAGGED else column.length
    if pa.types.is_string(kind):
        return f"ä{rng.integers(1000)} Σ"
    if pa.types.is_boolean(kind):
        return bool(rng.integers(2))
    if pa.types.is_integer(kind):
        integers = rng.integers(0, 2**31 - 1, size)
        return int(integers) if size is None else integers.astype(kind.to_pandas_dtype())
    floats = rng.normal(size=size)
    return float(floats) if size is None else floats.astype(kind.to_pandas_dtype())


def table(rows: int, seed: int = 1, length: int | None = None, nulls: bool = False) -> pa.Table:
    """Rows of every column; ragged ones of `length`, or of any from 0 up. With nulls, each column that may has some."""
    rng = np.random.default_rng(seed)
    content: dict[str, list[Any]] = {column.name: [] for column in COLUMNS}
    for row in range(rows):
        bins = int(rng.integers(0, 9)) if length is None else length
        for number, column in enumerate(COLUMNS):
            missing = nulls and column.nullable and (row + number) % 3 == 0
            content[column.name].append(None if missing else value(column, rng, bins))
    return pa.Table.from_pydict(content, schema=SCHEMA)


def write(path: Path, *tables: pa.Table, **options: Any) -> Path:
    with HDF5Writer(path, **options) as writer:
        for one in tables:
            writer.append(one)
    return path


def assert_holds(path: Path, expected: pa.Table) -> None:
    with h5py.File(path) as file:
        assert set(file) == {column.hdf5_name for column in COLUMNS}
        for column in COLUMNS:
            dataset = file[column.hdf5_name]
            assert len(dataset) == len(expected)
            for found, wanted in zip(dataset[:], expected[column.name].to_pylist(), strict=True):
                if column.length is not None:
                    assert found.dtype == column.full_type.value_type.to_pandas_dtype()
                    assert found.tolist() == (wanted or [])
                elif column.dtype == "string":
                    assert found.decode() == (wanted or "")
                elif wanted is None and pa.types.is_floating(column.full_type):
                    assert np.isnan(found)
                else:
                    assert found == (-1 if wanted is None else wanted)


def test_every_column_comes_back(tmp_path: Path) -> None:
    rows = table(5)
    assert_holds(write(tmp_path / "x.hdf5", rows), rows)


def test_nulls_are_nan_minus_one_or_empty(tmp_path: Path) -> None:
    """In floats, in whole numbers and switches, and in text and lists."""
    rows = table(6, nulls=True)
    for column in (column for column in COLUMNS if column.nullable):
        assert 0 < rows[column.name].null_count < 6
    assert_holds(write(tmp_path / "x.hdf5", rows), rows)


@stable(25)
@given(
    rows=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 20), max_size=5),
    seed=st.integers(0, 99),
    chunked=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_content(
    tmp_path_factory: pytest.TempPathFactory, rows: int, cuts: list[int], seed: int, chunked: bool
) -> None:
    """Slices and tables of several chunks among them."""
    whole = table(rows, seed, nulls=True)
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    pieces = [whole.slice(start, stop - start) for start, stop in itertools.pairwise(edges)]
    if chunked:
        pieces = [pa.concat_tables([piece.slice(0, 1), piece.slice(1)]) for piece in pieces]
    assert_holds(write(tmp_path_factory.mktemp("pieces") / "x.hdf5", *pieces), whole)


@pytest.mark.parametrize("length", [0, 1, 7])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_ragged_rows_of_one_length_are_no_matrix(tmp_path: Path, rows: int, length: int) -> None:
    """300 rows are more than a chunk."""
    columns = tuple(column for column in COLUMNS if column.length == RAGGED)
    whole = table(rows, length=length).select([column.name for column in columns])
    path = write(tmp_path / "x.hdf5", whole, columns=columns)
    with h5py.File(path) as file:
        for column in columns:
            dataset = file[column.hdf5_name]
            assert dataset.shape == (rows,)
            assert h5py.check_vlen_dtype(dataset.dtype) == column.full_type.value_type.to_pandas_dtype()
            assert [list(one) for one in dataset] == whole[column.name].to_pylist()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    files = [
        write(tmp_path / f"{number}.hdf5", table(7, nulls=True), table(3, 2), attributes={"a": {"y": 1, "x": 2}})
        for number in range(2)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    other = write(tmp_path / "2.hdf5", table(7, 3, nulls=True), table(3, 2), attributes={"a": {"y": 1, "x": 2}})
    assert other.read_bytes() != files[0].read_bytes()


def test_a_file_without_rows_has_every_dataset(tmp_path: Path) -> None:
    for number, tables in enumerate(([], [table(0)])):
        assert_holds(write(tmp_path / f"{number}.hdf5", *tables), table(0))


def test_types_shapes_and_attributes(tmp_path: Path) -> None:
    """The canonical spectra are variable-length float64, text is UTF-8."""
    path = write(
        tmp_path / "x.hdf5", table(2), attributes={"settings": {"b": 1, "a": [2]}, "release": "rel2.1", "n": 3}
    )
    with h5py.File(path) as file:
        assert json.loads(file.attrs["settings"]) == {"a": [2], "b": 1}
        assert (file.attrs["release"], file.attrs["n"]) == ("rel2.1", 3)
        for name in ("spectrum_ene", "spectrum_ene_lo", "spectrum_ene_hi", "spectrum_flux", "spectrum_flux_err"):
            assert h5py.check_vlen_dtype(file[name].dtype) == np.float64
        assert h5py.check_string_dtype(file["name"].dtype).encoding == "utf-8"
        assert file["ra"].dtype == file["theta"].dtype == np.float64
        assert file["object_id"].dtype == file["healpix"].dtype == np.int64
        assert file["sat_src_flag"].dtype == np.int8
        assert file["counts"].shape == (2, N_CHANNELS)
        for column in COLUMNS:
            attributes = dict(file[column.hdf5_name].attrs)
            assert attributes.pop("description") == column.meaning
            assert attributes.pop("source") == column.source
            assert attributes.pop("unit", "") == column.unit
            assert attributes == {}


def test_the_grids_are_a_group(tmp_path: Path) -> None:
    grids = pa.Table.from_pydict(
        {"ebounds_id": ["a", "b"], "energy_lo": [np.arange(1024.0)] * 2, "energy_hi": [np.arange(1, 1025.0)] * 2},
        schema=arrow_schema(EBOUNDS),
    )
    for number, content in enumerate((grids, grids.slice(1), grids.slice(0, 0))):
        path = tmp_path / f"{number}.hdf5"
        with HDF5Writer(path) as writer:
            writer.append(table(1))
            writer.append_ebounds(content)
        with h5py.File(path) as file:
            assert file["ebounds/ebounds_id"].asstr()[:].tolist() == content["ebounds_id"].to_pylist()
            for name in ("energy_lo", "energy_hi"):
                assert file[f"ebounds/{name}"].shape == (len(content), 1024)
                assert file[f"ebounds/{name}"][:].tolist() == content[name].to_pylist()
                assert file[f"ebounds/{name}"].attrs["unit"] == "keV"


def read_columns(path: Path, columns: tuple[Column, ...]) -> pa.Table:
    return pa.table({name: found.values for name, found in read_datasets(path, columns).items()})


def test_a_catalog_is_a_file_of_its_own(tmp_path: Path) -> None:
    """And is read back with its nulls."""
    names = [column.name for column in CATALOG]
    rows = table(6, nulls=True).select(names)
    path = write(tmp_path / "catalog.hdf5", rows, columns=CATALOG)
    with h5py.File(path) as file:
        assert set(file) == set(names)
    assert read_columns(path, CATALOG).select(names).equals(rows)


def test_every_scalar_is_read_back_with_its_nulls(tmp_path: Path) -> None:
    scalars = tuple(column for column in COLUMNS if column.length is None)
    rows = table(6, nulls=True).select([column.name for column in scalars])
    found = read_columns(write(tmp_path / "x.hdf5", rows, columns=scalars), scalars)
    assert found.select(rows.column_names).equals(rows)


def test_older_files_with_fewer_columns_and_fixed_length_text_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "old.hdf5", "w") as file:
        file["name"] = np.array([b"2CXO J1", b""], dtype="S12")
        file["obsid"] = np.array([7, 8], dtype=np.int64)
        file["theta"] = np.array([1.5, np.nan], dtype=np.float32)
    found = read_columns(tmp_path / "old.hdf5", CATALOG)
    assert found.to_pydict() == {"name": ["2CXO J1", None], "obsid": [7, 8], "theta": [1.5, None]}
    assert found.schema.field("obsid").type == pa.int32()


def test_a_failed_write_still_closes_the_file(tmp_path: Path) -> None:
    def append_half_a_table() -> None:
        with HDF5Writer(tmp_path / "x.hdf5") as writer:
            writer.append(table(2).drop_columns(["theta"]))

    with pytest.raises(KeyError, match="theta"):
        append_half_a_table()
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        assert "theta" in file


def test_a_disk_that_is_full_at_whatever_byte_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk, in a process of its own: it is the end that crashed."""
    code = (
        "import errno, resource, sys; from pathlib import Path; from builder.dataset.hdf5 import HDF5Writer\n"
        "from tests.test_hdf5 import table; rows = table(300, length=90)\n"
        "for size in (0, 1000, 40_000, 150_000, 300_000, 900_000, 1_500_000):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))\n"
        "    try:\n"
        "        with HDF5Writer(Path(sys.argv[1])) as writer:\n"
        "            for _ in range(5): writer.append(rows)\n"
        "    except OSError as error:\n"
        "        assert error.errno == errno.EFBIG\n"
        "    else:\n"
        "        sys.exit(f'{size} bytes were enough')\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "x.hdf5")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
