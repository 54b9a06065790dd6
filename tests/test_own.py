"""A user's own columns, and more of the catalog's, come through from any table to every file of the folder."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given
from hypothesis import strategies as st

from builder.archive.packages import plan
from builder.archive.values import SCHEMA, tidy
from builder.dataset.catalog_file import read_catalog, write_catalog
from builder.dataset.layout import Manifest
from builder.model.column import CONFIGS
from builder.model.columns import columns_of
from builder.model.errors import CatalogError, SettingError
from builder.model.own import UCDS, own_columns, ucd_of
from builder.model.schema import features
from builder.model.settings import Settings
from builder.prepare import prepare
from builder.simulator.products import SimulatedArchive
from builder.simulator.server import ArchiveServer
from builder.use.export import export
from builder.use.verify import verify
from builder.workspace import make_plan, open_workspace
from tests.fits_files import stable
from tests.runs import command

pytestmark = pytest.mark.usefixtures("without_pictures")

SUFFIXES = (".fits", ".ecsv", ".csv", ".vot", ".parquet", ".hdf5")


def save(table: Table, path: Path) -> Path:
    """Write a table as its owner would, by astropy, or by pyarrow with its NaN and nulls as they are."""
    with warnings.catch_warnings(action="ignore"):
        if path.suffix == ".parquet":
            columns = {
                name: pa.array(np.asarray(column), mask=np.ma.getmaskarray(column)) for name, column in table.items()
            }
            pq.write_table(pa.table(columns), path)
        elif path.suffix == ".vot":
            table.write(path, format="votable")
        elif path.suffix == ".hdf5":
            table.write(path, path="labels", serialize_meta=True)
        else:
            table.write(path)
    return path


# Words that no reader takes for numbers, and numbers that every format writes whole.
words = st.text("abcdwxyz-", min_size=1, max_size=8).filter(lambda text: text.strip("-") and text != "nan")
floats = st.floats(-1e30, 1e30).map(lambda value: float(f"{value:.12g}"))
own = {
    "Redshift": st.one_of(floats, st.just(math.nan), st.none()),
    "CLASS": st.one_of(words, st.none()),
    "n_visits": st.one_of(st.integers(-(2**53), 2**53), st.none()),
    "is_agn": st.booleans(),
}
catalog = {
    "OBSID": st.integers(0, 99_999),
    "obi": st.integers(0, 3),
    "Region_ID": st.integers(1, 999),
    "NAME": words.map(lambda text: f"2CXO J{text}"),
    "theta": st.one_of(st.floats(0, 20).map(lambda value: float(f"{value:.9g}")), st.just(math.nan), st.none()),
    "sat_src_flag": st.booleans(),
    "conf_code": st.one_of(st.integers(0, 300), st.none()),
}


def table_of(rows: list[dict[str, Any]]) -> Table:
    table = Table()
    empty = {"NAME": "", "CLASS": "", "Redshift": 0.0, "theta": 0.0}
    for name in rows[0]:
        values = [row[name] for row in rows]
        mask = [value is None for value in values]
        filled = [empty.get(name, 0) if value is None else value for value in values]
        table[name] = MaskedColumn(filled, mask=mask) if any(mask) else filled
    return table


@stable(12)
@given(rows=st.lists(st.fixed_dictionaries(catalog | own), min_size=1, max_size=8))
def test_the_same_table_gives_the_same_plan_in_any_format(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Names in any case, NaN and masked values as nulls, flags as T and F: one catalog comes of each reader."""
    folder, table, plans = tmp_path_factory.mktemp("formats"), table_of(rows), {}
    for suffix in SUFFIXES:
        read, notes = tidy(read_catalog(save(table, folder / f"labels{suffix}")))
        assert not notes
        plans[suffix] = plan(read)
    first = plans[".fits"]
    kinds = {column.name: column.dtype for column in own_columns(first.catalog.schema)}
    assert kinds == {"redshift": "float64", "class": "string", "n_visits": "int64", "is_agn": "bool"} or any(
        all(row[name] is None or row[name] != row[name] for row in rows) for name in own
    )
    for suffix, made in plans.items():
        assert made.catalog.to_pylist() == first.catalog.to_pylist(), suffix
        if kinds == {"redshift": "float64", "class": "string", "n_visits": "int64", "is_agn": "bool"}:
            assert made.catalog.schema.equals(first.catalog.schema), suffix
        assert (made.packages, made.rejections, made.duplicates) == (first.packages, first.rejections, first.duplicates)
    thetas = {row["theta"] for row in first.catalog.to_pylist()}
    assert not any(theta != theta for theta in thetas if theta is not None)


def small(**columns: Any) -> Table:
    return Table({"name": ["2CXO J1", "2CXO J2"], "obsid": [1, 2], "obi": [0, 0], "region_id": [3, 4], **columns})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flags_as_letters_are_flags(suffix: str, tmp_path: Path) -> None:
    table = small(sat_src_flag=["T", "F"], mine=["t", "F"], word=["T", "maybe"])
    read = read_catalog(save(table, tmp_path / f"x{suffix}"))
    assert read["sat_src_flag"].to_pylist() == read["mine"].to_pylist() == [True, False]
    assert read["word"].to_pylist() == ["T", "maybe"]


@pytest.mark.parametrize("suffix", [".fits", ".ecsv", ".vot", ".hdf5"])
def test_units_and_descriptions_of_a_table_are_those_of_its_columns(suffix: str, tmp_path: Path) -> None:
    table = small(kt=[1.5, 2.5])
    table["kt"].unit, table["kt"].description = "keV", "temperature by hand"
    (column,) = own_columns(read_catalog(save(table, tmp_path / f"x{suffix}")).schema)
    assert (column.unit, column.source) == ("keV", f"x{suffix}")
    assert column.meaning == "temperature by hand"


def test_a_column_of_objects_is_what_the_objects_are(tmp_path: Path) -> None:
    """As a list with None gives it; of several kinds it is text."""
    table = small(z=[None, 0.5], kind=[None, "AGN"], mixed=[1, "a"])
    read = read_catalog(save(table, tmp_path / "x.ecsv"))
    assert [read[name].to_pylist() for name in ("z", "kind", "mixed")] == [[None, 0.5], [None, "AGN"], ["1", "a"]]
    assert read["z"].type == pa.float64()


@pytest.mark.parametrize("suffix", [".vot", ".parquet", ".hdf5"])
def test_a_catalog_with_own_columns_is_written_and_read_back(suffix: str, tmp_path: Path) -> None:
    """A label of -1 is a label, and no null."""
    table = small(label=MaskedColumn([-1, 0], mask=[False, True]), sure=[True, False])
    table["label"].description = "cluster by eye"
    first = plan(read_catalog(save(table, tmp_path / "x.ecsv"))).catalog
    assert first["label"].to_pylist() == [-1, None]
    write_catalog(tmp_path / f"y{suffix}", first)
    again = read_catalog(tmp_path / f"y{suffix}")
    assert again.equals(first)
    assert [column.meaning for column in own_columns(again.schema)][:1] == ["cluster by eye"]


def test_numbers_of_single_precision_are_the_same_in_any_format(tmp_path: Path) -> None:
    table = small(x=np.array([0.1, 2.3e-13], np.float32), theta=np.array([0.1, np.nan], np.float32))
    for suffix in SUFFIXES:
        read = read_catalog(save(table, tmp_path / f"x{suffix}"))
        assert read["x"].to_pylist() == [float(np.float32(0.1)), float(np.float32(2.3e-13))]
        assert read["theta"].to_pylist() == [float(np.float32(0.1)), None]


def test_what_cannot_be_kept_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"name": ["2CXO J1"], "obsid": [1], "obi": [0], "region_id": [2], "n_bins": [7], "Image": [[1.0, 2.0]]}
    pq.write_table(pa.table(rows | {"Theta": [1.0], "theta": [2.0]}), tmp_path / "x.parquet")
    read = read_catalog(tmp_path / "x.parquet")
    assert read.schema.equals(SCHEMA) and read["theta"].to_pylist() == [1.0]
    (line,) = caplog.messages
    assert "theta (there twice), n_bins (made anew), image (of list<element: double>)" in line


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"", r"ends in \.fits, \.ecsv, \.csv"),
        ("x.fits", b"no FITS", "cannot read the table"),
        ("x.csv", b"name,obsid\na,1\n", "has no column obi"),
        ("x.csv", b"name,obsid,obi,region_id\na,x,0,1\n", "column obsid cannot be read"),
        ("x.hdf5", b"no HDF5", "cannot read the table"),
        ("gone.ecsv", None, "no such file"),
    ],
)
def test_a_file_that_is_no_catalog_is_one_clear_line(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((CatalogError, SettingError), match=message) as caught:
        read_catalog(tmp_path / name)
    assert "\n" not in str(caught.value)


# --- to the end


@pytest.fixture(scope="module")
def labelled(whole_mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded archive prepared with a FITS file of labels, by the command."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = read_catalog(whole_mirror / "catalog.vot").slice(0, 12).to_pylist()
    table = Table({name.upper(): [row[name] for row in rows] for name in ("name", "obsid", "obi", "region_id")})
    table["RA"], table["DEC"] = ([row[name] for row in rows] for name in ("ra", "dec"))
    table["z_spec"] = [0.1 * number if number % 3 else math.nan for number in range(len(rows))]
    table["z_spec"].unit = "km s-1"
    table["kind"] = ["AGN" if number % 2 else "star" for number in range(len(rows))]
    hidden = [number == 5 for number in range(len(rows))]
    table["cluster"] = MaskedColumn([number - 1 for number in range(len(rows))], mask=hidden)
    table["sure"] = [number % 4 == 0 for number in range(len(rows))]
    save(table, folder / "labels.fits")
    result = command(
        "prepare", folder / "out", "--archive", whole_mirror, "--cat-file", folder / "labels.fits", "--workers", 1
    )
    assert result.returncode == 0, result.stderr
    assert "labels.fits: columns of its own are kept: z_spec, kind, cluster, sure" in result.stderr
    return folder / "out"


OWN = ("z_spec", "kind", "cluster", "sure")


def test_own_columns_are_in_both_configs_the_hdf5_file_the_card_and_the_manifest(labelled: Path) -> None:
    manifest = Manifest.read(labelled)
    assert [column.name for column in manifest.own] == list(OWN)
    assert manifest.own[0].unit == "km s-1"
    for config in ("data", "counts"):
        rows = pq.read_table(labelled / config).select(OWN).to_pylist()
        assert [row["cluster"] for row in rows][:6] == [-1, 0, 1, 2, 3, None]
        assert [row["z_spec"] for row in rows][:3] == [None, 0.1, 0.2]
        assert [row["kind"] for row in rows][:2] == ["star", "AGN"]
        assert [row["sure"] for row in rows][:2] == [True, False]
    with h5py.File(labelled / "chandra_spectra.hdf5") as file:
        assert file["cluster"][:6].tolist() == [-1, 0, 1, 2, 3, -(2**63)]
        assert file["cluster"].attrs["null"] == -(2**63)
        assert file["z_spec"].attrs["unit"] == "km s-1"
    assert "| `z_spec` | float64 | km s-1 | column of the catalog file | labels.fits |" in (
        labelled / "README.md"
    ).read_text(encoding="utf-8")


def test_verify_knows_own_columns_and_finds_a_changed_one(labelled: Path) -> None:
    assert not verify(labelled).failures
    with h5py.File(labelled / "chandra_spectra.hdf5", "r+") as file:
        file["cluster"][2] = 7
    try:
        assert any("cluster is 7, in Parquet 1" in line for line in _content(labelled))
    finally:
        with h5py.File(labelled / "chandra_spectra.hdf5", "r+") as file:
            file["cluster"][2] = 1


def _content(folder: Path) -> list[str]:
    from builder.dataset.slices import order_of, slices
    from builder.use.checks import Check, check_hdf5

    manifest, check = Manifest.read(folder), Check("HDF5")
    with h5py.File(folder / "chandra_spectra.hdf5") as file:
        for rows in slices(folder, manifest, order_of(folder, manifest)):
            check_hdf5(check, rows, file)
    return check.failures


def test_own_columns_load_with_load_dataset(labelled: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(labelled), "counts", split="train", cache_dir=str(tmp_path))
    assert loaded.features == features("counts", own=Manifest.read(labelled).own)
    assert loaded["kind"][:2] == ["star", "AGN"]


def test_own_columns_are_exported(labelled: Path, tmp_path: Path) -> None:
    export(labelled, tmp_path / "healpix", layout="healpix")
    found: dict[int, int] = {}
    for path in (tmp_path / "healpix").rglob("*.hdf5"):
        with h5py.File(path) as file:
            found |= dict(zip(file["object_id"][:].tolist(), file["cluster"][:].tolist(), strict=True))
    rows = pq.read_table(labelled / "data").to_pylist()
    assert found == {row["object_id"]: -(2**63) if row["cluster"] is None else row["cluster"] for row in rows}
    export(labelled, tmp_path / "hats", layout="hats")
    hats = pa.concat_tables(map(pq.read_table, (tmp_path / "hats").rglob("Npix=*.parquet")))
    assert {row["object_id"]: row["cluster"] for row in hats.to_pylist()} == {
        row["object_id"]: row["cluster"] for row in rows
    }
    assert hats.schema.field("z_spec").metadata[b"unit"] == b"km s-1"
    assert hats.schema.field("flux_aper_b").metadata[b"unit"] == b"erg s-1 cm-2"


# --- more of the catalog's columns


@pytest.fixture(scope="module")
def served() -> SimulatedArchive:
    return SimulatedArchive(12)


ASKED = ("m.gal_l", "o.apec_z", "o.cnts_aper_b", "o.gti_obs")


def test_columns_that_are_asked_for_are_typed_and_described_by_the_service(
    served: SimulatedArchive, tmp_path: Path
) -> None:
    from astropy.coordinates import SkyCoord

    with ArchiveServer(served) as server:
        settings = Settings(server.url, columns=ASKED)
        manifest = prepare(tmp_path / "out", settings, cache=tmp_path / "cache").manifest
        with pytest.raises(CatalogError, match=r"no column o\.apec_y: did you mean o\.apec_z"):
            prepare(tmp_path / "no", Settings(server.url, columns=("o.apec_y",)), cache=tmp_path / "cache")
    kinds = {column.name: (column.dtype, column.unit, column.ucd, column.source) for column in manifest.own}
    assert kinds == {
        "gal_l": ("float64", "deg", "pos.galactic.lon", "CSC master_source.gal_l"),
        "apec_z": ("float64", "", "", "CSC observation_source.apec_z"),
        "cnts_aper_b": ("int64", "counts", "phot.count", "CSC observation_source.cnts_aper_b"),
        "gti_obs": ("string", "", "time.start", "CSC observation_source.gti_obs"),
    }
    assert all(column.meaning for column in manifest.own)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    for row in rows:
        place = SkyCoord(row["ra"], row["dec"], unit="deg").galactic
        assert row["gal_l"] == pytest.approx(place.l.deg, abs=1e-5)
        assert (row["apec_z"] is None) == (row["apec_kt"] is None)
    assert {type(row["cnts_aper_b"]) for row in rows} == {int}
    assert not verify(tmp_path / "out", load=False).failures
    assert Manifest.read(tmp_path / "out").read_settings(tmp_path / "out").columns == ASKED
    assert "--columns m.gal_l,o.apec_z" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_mirror_keeps_what_was_asked_for(served: SimulatedArchive, tmp_path: Path) -> None:
    with ArchiveServer(served) as server:
        result = command(
            "download", tmp_path / "mirror", "--archive", server.url, "--limit", 3, "--columns", "m.gal_l, o.apec_z"
        )
    assert result.returncode == 0, result.stderr
    settings = Settings(str(tmp_path / "mirror"))
    planned = make_plan(open_workspace(settings, tmp_path), settings)
    assert [(column.name, column.unit) for column in own_columns(planned.catalog.schema)] == [
        ("gal_l", "deg"),
        ("apec_z", ""),
    ]
    chosen = Settings(str(tmp_path / "mirror"), columns=("m.gal_l",))
    assert make_plan(open_workspace(chosen, tmp_path), chosen).catalog.schema.names[-1] == "gal_l"
    lacking = Settings(str(tmp_path / "mirror"), columns=("m.gal_b",))
    with pytest.raises(SettingError, match="has no column gal_b"):
        make_plan(open_workspace(lacking, tmp_path), lacking)


@pytest.mark.parametrize(
    ("columns", "message"),
    [(("theta",), "is no column such as"), (("o.theta",), "every dataset has"), (("o.n_bins",), "every dataset has")],
)
def test_columns_that_cannot_be_asked_for_are_refused_before_anything_is_asked(
    columns: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        open_workspace(Settings("http://127.0.0.1:9", columns=columns), tmp_path)


# --- what files say of their columns


def test_every_field_of_a_shard_says_its_unit_and_meaning(sample: Path) -> None:
    for config, folder in (("spectra", "data"), ("counts", "counts"), ("ebounds", "ebounds")):
        (path,) = (sample / folder).glob("*.parquet")
        fields: dict[str, pa.Field] = {}
        for field in pq.read_schema(path):
            parts = field.type if pa.types.is_struct(field.type) else []
            fields |= {f"{field.name}.{part.name}": part for part in parts} or {field.name: field}
        for column in columns_of(config):
            said = fields[column.name].metadata
            assert said[b"description"].decode() == column.meaning
            assert said.get(b"unit", b"").decode() == column.unit
            assert said.get(b"ucd", b"").decode() == ucd_of(column)


def test_a_shard_has_the_header_of_voparquet(sample: Path) -> None:
    from astropy import units
    from astropy.io import votable

    (path,) = (sample / "data").glob("*.parquet")
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    content = metadata[b"IVOA.VOTable-Parquet.content"]
    with warnings.catch_warnings(action="ignore", category=units.UnitsWarning):  # the catalog's erg is deprecated
        table = votable.parse(io.BytesIO(content), verify="exception").get_first_table()
        fields = {field.name: field for field in table.fields}
        scalars = [field.name for field in pq.read_schema(path) if not pa.types.is_struct(field.type)]
        assert list(fields) == scalars
        assert fields["flux_aper_b"].unit == units.Unit("erg cm-2 s-1")
        assert fields["powlaw_nh"].unit == units.Unit("1e20 cm-2")
        assert (fields["ra"].datatype, fields["theta"].datatype) == ("double", "float")
        assert fields["theta"].description == "off-axis angle"


def test_astropy_reads_units_and_descriptions_of_a_shard(sample: Path) -> None:
    (path,) = (sample / "data").glob("*.parquet")
    table = Table.read(path, include_names=["obsid", "theta", "flux_aper_b"])
    assert table["theta"].unit == "arcmin" and table["flux_aper_b"].unit == "erg s-1 cm-2"
    assert table["theta"].description == "off-axis angle"


@pytest.mark.parametrize("name", ["ra", "spectrum"])
def test_the_descriptions_change_nothing_that_load_dataset_gives(name: str, sample: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded: Callable[..., Any] = load_dataset
    data = loaded(str(sample), split="train", cache_dir=str(tmp_path))
    assert data.features == features("spectra")
    (path,) = (sample / "data").glob("*.parquet")
    assert data[0][name] == pq.read_table(path)[name][0].as_py()


def test_kinds_of_quantities_are_words_of_the_virtual_observatory_for_columns_that_there_are() -> None:
    from astropy.io.votable.ucd import check_ucd

    columns = {column.name: column for config in CONFIGS for column in columns_of(config)}
    assert set(UCDS) <= set(columns)
    for column in columns.values():
        word = ucd_of(column)
        assert not word or check_ucd(word, check_controlled_vocabulary=True, has_colon=True), column.name
    assert ucd_of(columns["flux_aper_lolim_b"]) == "phot.flux;em.X-ray;stat.min"
