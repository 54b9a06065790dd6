"""What `export` writes is what other readers open, and they get the rows of the prepared folder."""

from __future__ import annotations

import gzip
import io
import json
import resource
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from builder.archive.products import members
from builder.model.columns import COLUMNS
from builder.model.errors import ArchiveError, MissingExtraError, OutputError, SettingError
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.sky import Cone
from builder.prepare import prepare
from builder.use import export_hats
from builder.use.export import Exported, export, write_healpix
from builder.use.verify import verify
from tests.fits_files import REAL, REAL_FOLDER
from tests.folders import contents, rehash
from tests.goldens import CATALOG_DATASETS, GOLDENS
from tests.runs import command

STEMS = {str(detection): stem for detection, stem in REAL.items()}
FLOATS = {
    "spectrum_ene": "ene_center_bin",
    "spectrum_ene_lo": "ene_low_bin",
    "spectrum_ene_hi": "ene_high_bin",
    "spectrum_flux": "flux",
    "spectrum_flux_err": "flux_error",
}


@pytest.fixture(scope="module")
def exported(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports of the sample, each made once."""
    made: dict[str, Path] = {}

    def make(layout: str) -> Path:
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp("export") / layout
            options: dict[str, Any] = {"detections": list(GOLDENS), "archive": "embedded"} if layout == "fits" else {}
            export(sample, made[layout], layout=layout, **options)
        return made[layout]

    return make


# --- HDF5 by sky pixel


def existing_reader(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the layout as CSC.md describes it, and by nothing else: a row for each object_id."""
    rows = {}
    for path in sorted(folder.glob("spectra/healpix=*/*.hdf5")):
        assert path.name == "001-of-001.hdf5"
        with h5py.File(path) as file:
            columns = {name: file[name][:] for name in (*CATALOG_DATASETS, *FLOATS, "object_id", "healpix")}
            assert all(isinstance(file[name], h5py.Dataset) and len(file[name]) == len(file["ra"]) for name in file)
        for index, number in enumerate(columns["object_id"]):
            rows[int(number)] = {name: values[index] for name, values in columns.items()}
            assert rows[int(number)]["healpix"] == int(path.parent.name.removeprefix("healpix="))
    return rows


def test_an_existing_reader_finds_every_row_in_its_pixel(sample: Path, exported: Callable[[str], Path]) -> None:
    found = existing_reader(exported("healpix"))
    expected = pq.read_table(sample / "data").to_pylist()
    assert len(found) == len(expected) == 62
    for row in expected:
        other = found[row["object_id"]]
        assert other["name"].decode() == row["name"]
        assert np.isnan(other["hard_hm"]) if row["hard_hm"] is None else np.float32(other["hard_hm"]) == row["hard_hm"]
        for name, public in FLOATS.items():
            assert other[name].dtype == np.float64
            assert np.array_equal(other[name].astype(np.float32), np.float32(row["spectrum"][public]))


def test_the_pixels_files_are_laid_out_as_the_canonical_one(sample: Path, exported: Callable[[str], Path]) -> None:
    parts = [h5py.File(path) for path in sorted(exported("healpix").rglob("*.hdf5"))]
    with h5py.File(sample / "chandra_spectra.hdf5") as whole:
        ids = np.concatenate([part["object_id"][:] for part in parts])
        assert all(dict(part.attrs) == dict(whole.attrs) for part in parts)
        for column in COLUMNS:
            dataset = whole[column.hdf5_name]
            values = [value for part in parts for value in part[column.hdf5_name][:]]
            order = np.argsort(ids)
            for one, other in zip(dataset[:], (values[index] for index in order), strict=True):
                assert np.array_equal(one, other, equal_nan=dataset.dtype.kind == "f"), column.name
            for part in parts:
                assert part[column.hdf5_name].dtype == dataset.dtype
                assert dict(part[column.hdf5_name].attrs) == dict(dataset.attrs)


def test_load_dataset_reads_the_pixels_files(exported: Callable[[str], Path]) -> None:
    from datasets import load_dataset

    rows = load_dataset("hdf5", data_files=f"{exported('healpix')}/spectra/healpix=*/*.hdf5", split="train")
    rows = {row["detection_id"]: row for row in rows}
    assert len(rows) == 62
    for detection, golden in GOLDENS.items():
        assert rows[detection]["spectrum_flux"][:3] == pytest.approx(golden["rate"], rel=1e-5)


def test_rows_are_read_in_slices(sample: Path, tmp_path: Path, exported: Callable[[str], Path]) -> None:
    with h5py.File(sample / "chandra_spectra.hdf5") as file:
        write_healpix(file, tmp_path, lambda *_: None, slice_rows=2)
    assert contents(tmp_path / "spectra") == contents(exported("healpix") / "spectra")


# --- HATS


def test_the_hats_package_finds_a_valid_catalog(exported: Callable[[str], Path]) -> None:
    from hats.io.validation import is_valid_catalog
    from hats.loaders import read_hats

    folder = exported("hats")
    assert is_valid_catalog(folder, strict=True)
    catalog = read_hats(folder)
    assert catalog.catalog_info.catalog_type == "source"
    assert catalog.catalog_info.total_rows == 62
    assert len(catalog.get_healpix_pixels()) == len(list(folder.rglob("Npix=*.parquet"))) <= 12


def test_a_hats_catalog_holds_the_same_rows_sorted_by_place(sample: Path, exported: Callable[[str], Path]) -> None:
    from hats.pixel_math.spatial_index import compute_spatial_index

    expected = {row["object_id"]: row for row in pq.read_table(sample / "data").to_pylist()}
    for path in exported("hats").rglob("Npix=*.parquet"):
        found = pq.ParquetFile(path).read().to_pylist()
        index = [row.pop("_healpix_29") for row in found]
        assert index == sorted(index)
        assert index == compute_spatial_index([row["ra"] for row in found], [row["dec"] for row in found]).tolist()
        assert {number >> 2 * 29 for number in index} == {int(path.stem.removeprefix("Npix="))}
        assert found == [expected.pop(row["object_id"]) for row in found]
    assert not expected


def test_crowded_places_are_divided_until_each_file_is_small(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hats.io.validation import is_valid_catalog

    monkeypatch.setattr(export_hats, "_ROWS", 3)
    export(sample, tmp_path / "hats", layout="hats")
    assert is_valid_catalog(tmp_path / "hats", strict=True)
    files = list((tmp_path / "hats").rglob("Npix=*.parquet"))
    assert len({path.parent.parent.name for path in files}) > 1
    ids = [
        number for path in files for number in pq.read_table(path, columns=["object_id", "ra"])["object_id"].to_pylist()
    ]
    assert len(set(ids)) == len(ids) == 62


def test_without_the_hats_package_it_says_what_to_install(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hats", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'chandra-spectra\[hats\]'"):
        export(sample, tmp_path / "hats", layout="hats")


# --- PHA, ARF and RMF files


@pytest.mark.parametrize("way", ["the recipe", "ignore_bad"])
@pytest.mark.parametrize("detection", GOLDENS)
def test_sherpa_gets_the_rows_spectrum_again(
    sample: Path, exported: Callable[[str], Path], detection: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    logging.getLogger("sherpa").setLevel(logging.ERROR)
    from sherpa.astro import ui

    monkeypatch.chdir(sample)  # the response files are found beside the PHA file
    ui.clean()
    ui.load_pha(str(exported("fits") / f"{STEMS[detection]}_src.pi"))
    ui.set_analysis("energy")
    ui.set_stat("chi2gehrels")
    if way == "the recipe":
        ui.ignore(None, 0.5)
        ui.ignore(8.0, None)
        ui.subtract()
        ui.group_counts(5)
    else:
        ui.ignore_bad()
        ui.subtract()
    plot = ui.get_data_plot()
    ui.clean()
    with h5py.File(sample / "chandra_spectra.hdf5") as file:
        row = list(file["detection_id"].asstr()).index(detection)
        for found, name in ((plot.xlo, "ene_lo"), (plot.xhi, "ene_hi"), (plot.y, "flux"), (plot.yerr, "flux_err")):
            assert np.array_equal(found, file[f"spectrum_{name}"][row]), name
    assert len(plot.y) == GOLDENS[detection]["n_bins"]


def test_the_response_matrix_is_named_as_ogip_asks_and_no_byte_of_a_table_is_changed(
    exported: Callable[[str], Path],
) -> None:
    """The files of release 1 name it RSP_MATRIX; jaxspec, for one, looks for MATRIX or SPECRESP MATRIX only.

    jaxspec itself is not run here: it brings JAX and other packages that nothing else needs. 0.4.1 was tried by hand,
    on the exports of both detections, and has as many groups as the rows have bins.
    """

    def raw(path: Path, hdu: fits.BinTableHDU) -> bytes:
        place = hdu.fileinfo()
        return path.read_bytes()[place["datLoc"] : place["datLoc"] + place["datSpan"]]

    for stem in STEMS.values():
        served, ours = (folder / f"{stem}_rmf3.fits" for folder in (REAL_FOLDER, exported("fits")))
        with fits.open(served) as before, fits.open(ours) as after:
            assert [hdu.name for hdu in before] == ["PRIMARY", "RSP_MATRIX", "EBOUNDS"]
            assert [hdu.name for hdu in after] == ["PRIMARY", "MATRIX", "EBOUNDS"]
            assert (after[1].verify_checksum(), after[1].verify_datasum()) == (1, 1)
            changed = {key for key in before[1].header if before[1].header[key] != after[1].header[key]}
            assert changed == {"EXTNAME", "HDUNAME", "CHECKSUM"}
            assert len(before[1].header.cards) == len(after[1].header.cards)
            assert str(before[2].header) == str(after[2].header)
            assert [raw(served, hdu) for hdu in before[1:]] == [raw(ours, hdu) for hdu in after[1:]]


@pytest.mark.parametrize("end", ["src", "bkg"])
def test_the_spectra_have_every_keyword_of_ogip_92_007(exported: Callable[[str], Path], end: str) -> None:
    folder = exported("fits")
    with fits.open(folder / f"{STEMS['4938.0.43']}_{end}.pi") as hdus:
        hdus.verify("exception")
        table = hdus["SPECTRUM"].copy()
    mandatory = (
        "TELESCOP",
        "INSTRUME",
        "FILTER",
        "EXPOSURE",
        "AREASCAL",
        "BACKSCAL",
        "CORRSCAL",
        "BACKFILE",
        "CORRFILE",
        "RESPFILE",
        "ANCRFILE",
        "CHANTYPE",
        "DETCHANS",
        "POISSERR",
        "HDUVERS",
    )
    assert [keyword for keyword in mandatory if keyword not in table.header] == []
    classes = [table.header[f"HDUCLAS{word}"] for word in ("S", "1", "2", "3")]
    assert classes == ["OGIP", "SPECTRUM", "TOTAL" if end == "src" else "BKG", "COUNT"]
    assert table.columns.names == ["CHANNEL", "COUNTS", "GROUPING", "QUALITY"]
    assert (len(table.data), table.header["DETCHANS"]) == (1024, 1024)
    named = {table.header[f"{kind}FILE"] for kind in ("BACK", "RESP", "ANCR")}
    assert named == {"none"} if end == "bkg" else all((folder / name).is_file() for name in named)


def test_one_cycle_of_an_interleaved_observation(sample: Path, tmp_path: Path) -> None:
    rows = pq.read_table(sample / "counts", filters=[("cycle", "!=", "")]).to_pylist()
    export(sample, tmp_path / "fits", layout="fits", detections=[rows[1]["detection_id"]], archive="embedded")
    (path,) = (tmp_path / "fits").glob("*_src.pi")
    assert "_e2_" in path.name
    assert fits.getdata(path, "SPECTRUM")["COUNTS"].tolist() == rows[1]["counts"]


def change_file(mirror: Path, kind: str, change: Callable[[bytes], bytes]) -> None:
    """Put another file in the place of one of 4938.0.43."""
    index = [json.loads(line) for line in (mirror / "packages.jsonl").read_text().splitlines()]
    (line,) = (line for line in index if "4938.0.43" in line["detections"])
    path = mirror / line["file"]
    files = {file.name: file.data for file in members(path)}
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            new = change(data) if "04938" in name and f"{kind}3" in name else data
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(new)
            tar.addfile(member, io.BytesIO(new))
    line["bytes"] = path.stat().st_size
    (mirror / "packages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in index))


def test_spectra_of_other_names_and_without_a_detector_are_exported_and_verified(mirror: Path, tmp_path: Path) -> None:
    """As the reduction finds them, by their class; what the header does not say is null, also when it is read again."""

    def renamed(data: bytes) -> bytes:
        with fits.open(io.BytesIO(gzip.decompress(data))) as hdus:
            for hdu in hdus:
                if hdu.name == "SPECTRUM":
                    hdu.name = f"SPECTRUM{hdu.ver}"
                    del hdu.header["DETNAM"]
            stream = io.BytesIO()
            hdus.writeto(stream, checksum=True)
        return gzip.compress(stream.getvalue())

    change_file(mirror, "pha", renamed)
    selection = Selection(cone=Cone(349.872, 0.599, 0.001))
    settings = Settings(str(mirror), catalog=str(mirror / "catalog.vot"), selection=selection)
    prepare(tmp_path / "out", settings, cache=tmp_path / "cache")
    (row,) = pq.read_table(tmp_path / "out/counts").to_pylist()
    assert (row["detection_id"], row["detnam"], row["grating"]) == ("4938.0.43", None, "NONE")
    assert verify(tmp_path / "out", load=False, recheck=1, archive=str(mirror)).failures == []
    export(tmp_path / "out", tmp_path / "fits", layout="fits", detections=["4938.0.43"], archive=str(mirror))
    for end, name in (("src", "counts"), ("bkg", "background_counts")):
        path = tmp_path / f"fits/{STEMS['4938.0.43']}_{end}.pi"
        assert fits.getdata(path, "SPECTRUM")["COUNTS"].tolist() == row[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda data: gzip.compress(gzip.decompress(data) + b" "),
            r"RMF file of 4938\.0\.43 is not acisf04938_.*_rmf3",
        ),
        (lambda data: data[:-9], r"not those of the row 4938\.0\.43: .*_rmf3\.fits.* is cut short"),
    ],
    ids=["other", "damaged"],
)
def test_other_files_than_the_rows_are_refused(
    sample: Path, mirror: Path, tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    change_file(mirror, "rmf", change)
    with pytest.raises(ArchiveError, match=words):
        export(sample, tmp_path / "fits", layout="fits", detections=["4938.0.43"], archive=str(mirror))
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "csv"}, "unknown layout 'csv': choose one of healpix, hats, fits"),
        ({"layout": "fits"}, "say which detections"),
        ({"layout": "fits", "detections": ["4938"]}, "'4938' is not a detection"),
        ({"layout": "fits", "detections": ["1.2.3"]}, r"has no row 1\.2\.3"),
        ({"layout": "healpix", "detections": ["4938.0.43"]}, "are for --layout fits"),
    ],
)
def test_wrong_options_are_refused_in_clear_words(
    sample: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        export(sample, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# --- all layouts


@pytest.mark.parametrize("layout", ["healpix", "hats", "fits"])
def test_the_same_rows_give_the_same_bytes(
    sample: Path, tmp_path: Path, exported: Callable[[str], Path], layout: str
) -> None:
    options: dict[str, Any] = {"detections": list(GOLDENS), "archive": "embedded"} if layout == "fits" else {}
    done = export(sample, tmp_path / "again", layout=layout, **options)
    first, second = contents(exported(layout)), contents(tmp_path / "again")
    assert first == second
    assert done == Exported(tmp_path / "again", len(second), sum(map(len, second.values())))


def test_what_is_there_is_replaced_only_if_it_is_an_export_and_with_force(sample: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export(sample, output, layout="hats")
    before = contents(output)
    with pytest.raises(OutputError, match="--force"):
        export(sample, output, layout="healpix")
    assert contents(output) == before
    export(sample, output, layout="healpix", force=True)
    assert sorted(path.name for path in output.iterdir()) == ["export.json", "spectra"]
    (output / "export.json").unlink()
    with pytest.raises(OutputError, match="something else than an export"):
        export(sample, output, layout="healpix", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_fails_leaves_the_old_one_whole(sample: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the same error path, another errno."""
    output = tmp_path / "out"
    export(sample, output, layout="healpix")
    before = contents(output)
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(map(len, before.values())) - 1, most))
    try:
        with pytest.raises(OutputError, match="File too large"):
            export(sample, output, layout="healpix", force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
    assert contents(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_places_inside_each_other_are_refused(sample: Path) -> None:
    for output in (sample, sample / "healpix", sample.parent):
        with pytest.raises(OutputError, match="lie in each other"):
            export(sample, output, layout="healpix", force=True)


@pytest.mark.parametrize("layout", ["healpix", "hats"])
def test_rows_without_a_place_and_folders_without_rows_are_refused(folder: Path, tmp_path: Path, layout: str) -> None:
    with h5py.File(folder / "chandra_spectra.hdf5", "r+") as file:
        file["healpix"][5] = -1
    rehash(folder)
    with pytest.raises(OutputError, match=r"row 5 of .* has no position on the sky"):
        export(folder, layout=layout)
    rehash(folder, lambda manifest: manifest["counts"].update(rows=0))
    with pytest.raises(OutputError, match="no rows to export"):
        export(folder, layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["chandra_spectra"]


def test_a_damaged_or_missing_hdf5_file_is_found_first(folder: Path, tmp_path: Path) -> None:
    path = folder / "chandra_spectra.hdf5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OutputError, match="not what the manifest says"):
        export(folder, layout="healpix")
    path.unlink()
    with pytest.raises(OutputError, match="cannot read"):
        export(folder, layout="healpix")
    with pytest.raises(OutputError, match="not a prepared folder"):
        export(tmp_path, layout="healpix")
    assert [path.name for path in tmp_path.iterdir()] == ["chandra_spectra"]


def test_the_command_exports_and_says_where(sample: Path, tmp_path: Path) -> None:
    words = (
        "export",
        sample,
        tmp_path / "fits",
        "--layout",
        "fits",
        "--detection",
        "7867.0.2",
        "--archive",
        "embedded",
    )
    result = command(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path / 'fits'}" in result.stdout
    again = command(*words)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "--force" in again.stderr
    assert "choose one of healpix, hats, fits" in command("export", sample).stderr
