"""Claims about the archive that the project carries with it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import math
import os
import shutil
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits

from builder.archive.catalog import read_votable
from builder.archive.products import group_products, members
from builder.model.columns import ASKED
from builder.model.errors import ArchiveError, OutputError
from builder.model.ids import DetectionId
from builder.simulator import embedded
from builder.simulator.embedded import embedded_rows_and_files, make_embedded_mirror
from tests.fits_files import REAL_FOLDER, detection


@pytest.fixture(scope="module")
def entries():
    return embedded_rows_and_files()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "embedded"
    make_embedded_mirror(folder)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_63_rows_hold_64_spectra_62_good(entries):
    ids = [detection(row) for row, _ in entries]
    assert len(ids) == 63
    assert ids == sorted(set(ids))
    products = group_products(ids, [file for _, files in entries for file in files])
    assert len(products) == 64
    good = 0
    for product in products:
        try:
            good += all(gzip.decompress(file.data) for file in (product.pha, product.arf, product.rmf) if file)
        except EOFError:
            assert product.pha is not None
        good -= None in (product.pha, product.arf, product.rmf)
    assert good == 62


def test_two_are_broken_on_purpose_a_short_pha_and_a_missing_rmf(entries):
    def cut_short(data: bytes) -> bool:
        stream = zlib.decompressobj(wbits=31)
        stream.decompress(data)
        return not stream.eof

    damaged = [file.name for _, files in entries for file in files if cut_short(file.data)]
    assert len(damaged) == 1
    assert "_pha3" in damaged[0]
    incomplete = [files for _, files in entries if len(files) % 3]
    assert [[file.name[-12:-8] for file in files] for files in incomplete] == [["pha3", "arf3"]]


def test_the_simulated_rows_span_counts_and_repeat_sources_and_one_has_two_cycles(entries):
    rows = [row for row, _ in entries if row["name"].startswith("SIM J")]
    assert len(rows) == 61
    counts = sorted(row["src_cnts_aper_b"] for row in rows)
    assert 40 < counts[0] < 45
    assert 15000 < counts[-1] < 20000
    assert len({row["name"] for row in rows}) < 50
    assert [len(files) for _, files in entries].count(6) == 1
    # the recommended cuts of the short test still leave something
    assert any(r["src_cnts_aper_b"] > 4000 and r["flux_significance_b"] > 80 and r["theta"] < 1 for r in rows)


@pytest.mark.parametrize(
    ("stem", "name"),
    [("acisf04938_000N002_r0043", "2CXO J231929.3+003557"), ("acisf07867_000N001_r0002", "2CXO J233200.4+001608")],
)
def test_a_real_row_tells_what_its_files_tell_and_nothing_else(entries, stem, name):
    (row,) = [row for row, files in entries if files[0].name.startswith(stem)]
    with fits.open(REAL_FOLDER / f"{stem}_pha3.fits") as pha:
        header = pha[1].header
    source, axis = (SkyCoord(header["RA" + w], header["DEC" + w], unit="deg") for w in ("", "_PNT"))
    assert row["name"] == name
    hms, dms = source.ra.hms, source.dec.dms
    assert name[6:12] == f"{hms.h:02.0f}{hms.m:02.0f}{math.floor(hms.s):02d}"
    assert name[14:] == f"+{dms.d:02.0f}{dms.m:02.0f}{math.floor(dms.s):02d}"
    assert (row["ra"], row["dec"]) == (header["RA"], header["DEC"])
    assert row["theta"] == pytest.approx(source.separation(axis).arcmin, rel=1e-9)
    assert (row["gti_mjd_obs"], row["livetime"]) == (header["MJD_OBS"], header["LIVETIME"])
    assert (str(row["obsid"]), row["obi"], f"{row['region_id']:04d}") == tuple(
        header[key] for key in ("OBS_ID", "OBI_NUM", "REGIONID")
    )
    told = ("name", "obsid", "obi", "region_id", "instrument", "ra", "dec", "theta", "gti_mjd_obs")
    assert {column for column, value in row.items() if value is not None} == {*told, "livetime"}
    assert list(row) == [column.name for column in ASKED]


def test_the_real_numbers_are_those_read_from_the_installed_files(entries):
    """Read with astropy 8.0.2 from the files of sherpa 4.19.0."""
    real = {str(detection(row)): row for row, _ in entries if row["name"].startswith("2CXO")}
    assert list(real) == ["4938.0.43", "7867.0.2"]
    assert real["4938.0.43"]["theta"] == pytest.approx(15.13, abs=0.01)
    assert real["7867.0.2"]["theta"] == pytest.approx(0.896, abs=0.001)
    assert real["7867.0.2"]["livetime"] == 21860.439777374


def test_the_real_files_are_the_installed_ones_gzipped(entries):
    for row, files in entries:
        if row["name"].startswith("2CXO"):
            for file in files:
                assert gzip.decompress(file.data) == (REAL_FOLDER / file.name.removesuffix(".gz")).read_bytes()
                assert file.data[4:8] == b"\0\0\0\0"


def test_the_mirror_is_small_and_its_index_tells_what_its_tars_hold(mirror, entries):
    assert sum(path.stat().st_size for path in mirror.rglob("*") if path.is_file()) < 40e6
    index = [json.loads(line) for line in (mirror / "packages.jsonl").read_text().splitlines()]
    assert [line["file"] for line in index] == ["packages/00000.tar", "packages/00001.tar"]
    listed = []
    for line in index:
        data = (mirror / line["file"]).read_bytes()
        assert (line["bytes"], line["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert len(line["detections"]) <= 50
        found = group_products(map(DetectionId.parse, line["detections"]), members(mirror / line["file"]))
        assert all(product.pha for product in found)
        listed += line["detections"]
    assert listed == [str(detection(row)) for row, _ in entries]
    files = [file for line in index for file in members(mirror / line["file"])]
    assert [(file.name, file.data) for file in files] == [
        (file.name, file.data) for _, files in entries for file in files
    ]


def test_the_tars_are_one_folder_deep_and_say_nothing_of_who_made_them(mirror):
    with tarfile.open(mirror / "packages/00001.tar") as tar:
        for member in tar:
            assert member.name.startswith("package/acisf")
            assert member.name.count("/") == 1
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_the_mirrors_catalog_reads_back_as_the_rows(mirror, entries):
    table, overflow = read_votable((mirror / "catalog.vot").read_bytes(), "catalog.vot")
    assert not overflow
    for got, (row, _) in zip(table.to_pylist(), entries, strict=True):
        for name, value in row.items():
            if name in got:  # further columns of the simulated catalog are given where they are asked for
                assert got[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


def test_the_same_mirror_is_made_byte_for_byte_and_a_finished_one_is_kept(mirror, tmp_path):
    other = tmp_path / "deep" / "other"
    make_embedded_mirror(other)
    assert digests(other) == digests(mirror)
    before = (other / "catalog.vot").stat().st_mtime_ns
    make_embedded_mirror(other)
    assert (other / "catalog.vot").stat().st_mtime_ns == before
    assert [path.name for path in other.parent.iterdir()] == ["other"]


def test_of_two_that_make_it_at_once_both_succeed_and_nothing_is_left_over(mirror, tmp_path, monkeypatch):
    barrier = threading.Barrier(2, timeout=30)

    def write(folder: Path) -> None:
        shutil.copytree(mirror, folder, dirs_exist_ok=True)
        barrier.wait()

    monkeypatch.setattr(embedded, "_write", write)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(make_embedded_mirror, [tmp_path / "mirror"] * 2)) == [None, None]
    assert [path.name for path in tmp_path.iterdir()] == ["mirror"]


def test_what_it_has_lost_is_made_again(mirror, tmp_path, monkeypatch):
    def damage(path: Path, length: int | None) -> None:
        if length is not None:
            os.truncate(path, length)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    monkeypatch.setattr(embedded, "_write", lambda folder: shutil.copytree(mirror, folder, dirs_exist_ok=True))
    folder = tmp_path / "embedded"
    shutil.copytree(mirror, folder)
    for name, length in (
        ("packages/00001.tar", None),
        ("packages/00000.tar", 1000),
        ("packages", None),
        ("packages.jsonl", None),
        ("packages.jsonl", 0),
        ("catalog.vot", None),
    ):
        damage(folder / name, length)
        make_embedded_mirror(folder)
        assert digests(folder) == digests(mirror)
    assert [path.name for path in tmp_path.iterdir()] == ["embedded"]


def test_a_failure_leaves_nothing_and_what_is_not_a_mirror_is_not_touched(tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        raise ArchiveError("no Sherpa")

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_write", lambda folder: None)
        with pytest.raises(OutputError, match="taken: the embedded archive cannot be written"):
            make_embedded_mirror(tmp_path / "taken")
    monkeypatch.setattr(embedded, "_write", fail)
    with pytest.raises(ArchiveError, match="no Sherpa"):
        make_embedded_mirror(tmp_path / "mirror")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"


def test_a_sherpa_without_the_files_is_named_as_the_cause(monkeypatch, tmp_path):
    class Spec:
        origin = str(tmp_path / "sherpa" / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(ArchiveError, match="does not carry acisf04938"):
        embedded_rows_and_files()
