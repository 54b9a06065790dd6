"""Files that are here already become a mirror: which, with which rows, and what is told of the rest."""

from __future__ import annotations

import functools
import gzip
import io
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from builder.archive.mirror import read_index
from builder.archive.products import members
from builder.dataset.catalog_file import read_catalog
from builder.dataset.layout import Manifest
from builder.model.errors import SettingError
from builder.model.records import File
from builder.model.settings import Settings
from builder.prepare import prepare
from builder.simulator.embedded import embedded_rows_and_files
from builder.use.index import index
from builder.use.verify import verify
from tests.runs import command
from tests.test_simulation import real

pytestmark = pytest.mark.usefixtures("without_pictures")

LATER = Path(__file__).parents[2] / "shared" / "real"
"""Files of release 2.0, where they are there."""


@functools.cache
def embedded() -> list[tuple[dict[str, object], list[File]]]:
    return embedded_rows_and_files()


def real_ones() -> list[tuple[dict[str, object], list[File]]]:
    return [(row, files) for row, files in embedded() if not str(row["name"]).startswith("SIM")]


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """The two real detections: one as plain files in a folder of its own, one gzipped, and a file of another kind."""
    folder = tmp_path / "loose"
    (folder / "4938").mkdir(parents=True)
    for path in real("pha").parent.glob("acisf04938*3.fits"):
        shutil.copy(path, folder / "4938")
    for path in real("pha").parent.glob("acisf07867*3.fits"):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    (folder / "notes.txt").write_text("mine\n")
    return folder


def content(mirror: Path) -> dict[str, bytes]:
    """Files of a mirror, inflated."""
    return {
        file.name.removesuffix(".gz"): gzip.decompress(file.data) if file.name.endswith(".gz") else file.data
        for line in read_index(mirror)
        for file in members(mirror / line["file"])
    }


def own(mirror: Path, **options: Any) -> Settings:
    return Settings(str(mirror), catalog=str(mirror / "catalog.vot"), **options)


def test_loose_files_become_a_mirror_that_gives_the_rows_of_the_embedded_sample(
    loose: Path, sample: Path, tmp_path: Path
) -> None:
    shown = command("index", loose, tmp_path / "mirror")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^detections +2$", shown.stdout, re.M) and re.search(r"^product files +6$", shown.stdout, re.M)
    assert re.search(r"^no products +1 ", shown.stdout, re.M)
    assert content(tmp_path / "mirror").keys() == {path.name for path in real("pha").parent.glob("acisf0*3.fits")}
    words = shown.stdout.rpartition("Next:  chandra-spectra ")[2].split()
    assert words[0] == "prepare"
    done = command(*words, tmp_path / "out", "--cache", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    expected = [row for row in pq.read_table(sample / "data").to_pylist() if row["detection_id"].startswith(("4", "7"))]
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [row["detection_id"] for row in found] == ["4938.0.43", "7867.0.2"]
    named = ("pha_file", "arf_file", "rmf_file")  # the one is gzipped there and not here
    for one, other in zip(found, expected, strict=True):
        assert {k: v for k, v in one.items() if k not in named} == {k: v for k, v in other.items() if k not in named}


def test_without_fluxes_the_default_cuts_say_what_to_give(loose: Path, tmp_path: Path) -> None:
    index(loose, tmp_path / "mirror")
    done = command("prepare", tmp_path / "out", "--archive", tmp_path / "mirror")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"give {tmp_path / 'mirror' / 'catalog.vot'} as --cat-file" in done.stderr


@pytest.mark.skipif(not LATER.is_dir(), reason="files of release 2 are not here")
def test_files_of_release_2_are_rows_without_a_name_and_a_place(tmp_path: Path) -> None:
    done = index(LATER, tmp_path / "mirror")
    assert (done.detections, done.files, done.others, done.damaged) == (1, 3, 1, [])
    (row,) = read_catalog(tmp_path / "mirror" / "catalog.vot").to_pylist()
    assert (row["name"], row["ra"], row["instrument"], row["obsid"]) == (None, None, "ACIS", 3243)
    assert row["livetime"] == pytest.approx(29514.959956465)
    manifest = prepare(tmp_path / "out", own(tmp_path / "mirror"), cache=tmp_path / "cache").manifest
    assert (manifest.counts.rows, manifest.counts.rejected) == (1, 0)
    assert len(pq.read_table(tmp_path / "out" / "data")["spectrum"][0]["flux"].as_py()) == 87
    assert not verify(tmp_path / "out").failed


# --- tars ---


def tar(files: Any, name: str = "package/{}") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for one in files:
            info = tarfile.TarInfo(name.format(one.name))
            info.size = len(one.data)
            file.addfile(info, io.BytesIO(one.data))
    return stream.getvalue()


@pytest.mark.parametrize("form", ["plain", "gzip", "no end", "three to a tar"])
def test_tars_as_scripts_leave_them_are_read_in_any_form(form: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    chosen = embedded()[:8]
    parts = [chosen[:5], chosen[5:]] if form != "three to a tar" else [[entry] for entry in chosen]
    for number, part in enumerate(parts, 1):
        data = tar([file for _, files in part for file in files])
        data = gzip.compress(data) if form == "gzip" else data
        data = data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512) if form == "no end" else data
        (tmp_path / "in" / "sub" / f"package.{number}.tar").write_bytes(data)
    done = index(tmp_path / "in", tmp_path / "mirror")
    assert (done.detections, done.files) == (8, sum(len(files) for _, files in chosen))
    assert content(tmp_path / "mirror") == {
        file.name.removesuffix(".gz"): gzip.decompress(file.data) for _, files in chosen for file in files
    }
    assert len(done.damaged) == (2 if form == "no end" else 0)
    assert all("without an end-of-archive mark" in words for words in done.damaged)


def test_of_a_tar_that_is_cut_short_the_whole_files_are_taken_and_it_is_told(tmp_path: Path) -> None:
    data = tar([file for _, files in real_ones() for file in files])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "package.1.tar").write_bytes(data[: len(data) - 200_000])
    done = index(tmp_path / "in", tmp_path / "mirror")
    assert (done.detections, done.files, done.lacking) == (2, 5, {"pha": 0, "arf": 0, "rmf": 1})
    assert len(done.damaged) == 1 and "package.1.tar is cut short" in done.damaged[0]
    manifest = prepare(tmp_path / "out", own(tmp_path / "mirror"), cache=tmp_path / "cache").manifest
    assert manifest.counts.reasons == {"missing_rmf": 1}


def test_a_damaged_file_is_told_and_becomes_a_rejection(loose: Path, tmp_path: Path) -> None:
    path = loose / "acisf07867_000N001_r0002_pha3.fits.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    shown = command("index", loose, tmp_path / "mirror")
    assert re.search(rf"^damaged: {path.name}: the gzip stream is cut short$", shown.stdout, re.M)
    rows = read_catalog(tmp_path / "mirror" / "catalog.vot").to_pylist()
    assert [(row["obsid"], row["ra"] is None) for row in rows] == [(4938, False), (7867, True)]
    manifest = prepare(tmp_path / "out", own(tmp_path / "mirror"), cache=tmp_path / "cache").manifest
    assert (manifest.counts.rows, manifest.counts.reasons) == (1, {"damaged_gzip": 1})


def test_the_later_version_of_a_file_is_taken_and_hrc_is_left_out(loose: Path, tmp_path: Path) -> None:
    arf = loose / "4938" / "acisf04938_000N002_r0043_arf3.fits"
    shutil.copy(arf, loose / arf.name.replace("N002", "N003"))
    shutil.copy(arf, loose / "4938" / arf.name.replace("acisf", "hrcf"))
    shutil.copy(arf, loose / arf.name)
    done = index(loose, tmp_path / "mirror")
    assert (done.files, done.copies, done.hrc) == (6, 2, 1)
    assert arf.name.replace("N002", "N003") in content(tmp_path / "mirror")
    assert arf.name not in content(tmp_path / "mirror")


# --- catalog files, and what is there already ---


def test_rows_of_a_catalog_file_are_joined_and_pass_the_cuts(loose: Path, tmp_path: Path) -> None:
    known = {"name": "2CXO J231929.4+003556", "obsid": 4938, "obi": 0, "region_id": 43, "flux_bb_aper_b": 1e-13}
    known |= {"src_cnts_aper_b": 500.0, "flux_significance_b": 30.0, "theta": 1.0}
    Table(
        {name.upper(): [value] * 2 for name, value in known.items()} | {"OBSID": [4938, 1], "Kind": ["AGN", "star"]}
    ).write(tmp_path / "cat.fits")
    shown = command("index", loose, tmp_path / "mirror", "--cat-file", tmp_path / "cat.fits")
    assert re.search(r"^  listed +1 +with a row of the catalog file$", shown.stdout, re.M)
    rows = read_catalog(tmp_path / "mirror" / "catalog.vot").to_pylist()
    assert [row["obsid"] for row in rows] == [4938, 7867]
    assert rows[0]["name"] == known["name"] and rows[0]["theta"] == 1.0  # the file's
    assert rows[0]["livetime"] == pytest.approx(real_ones()[0][0]["livetime"])  # the header's
    assert [row["kind"] for row in rows] == ["AGN", None]  # the user's own
    manifest = prepare(tmp_path / "out", Settings(str(tmp_path / "mirror")), cache=tmp_path / "cache").manifest
    assert manifest.counts.rows == 1


def test_what_a_mirror_has_is_not_copied_again_and_what_is_new_is_added(loose: Path, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in sorted(loose.glob("acisf07867*")):
        path.rename(aside / path.name)
    first = index(loose, loose / "mirror")  # within the folder: it is no file of its own
    lines = read_index(loose / "mirror")
    for path in aside.iterdir():
        path.rename(loose / path.name)
    second = index(loose, loose / "mirror")
    assert (first.detections, first.held, second.detections, second.held) == (1, 0, 2, 1)
    assert read_index(loose / "mirror")[:1] == lines and len(read_index(loose / "mirror")) == 2
    assert len(read_catalog(loose / "mirror" / "catalog.vot")) == 2
    third = index(loose, loose / "mirror")
    assert (third.detections, third.held, len(read_index(loose / "mirror"))) == (2, 2, 2)
    assert Manifest.read(_prepared(loose / "mirror", tmp_path)).counts.rows == 2


def _prepared(mirror: Path, tmp_path: Path) -> Path:
    prepare(tmp_path / "out", own(mirror), cache=tmp_path / "cache")
    return tmp_path / "out"


def test_a_folder_without_products_or_that_is_the_mirror_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "evt2.fits").write_bytes(b"SIMPLE  =")
    with pytest.raises(SettingError, match=r"has no product files of ACIS, such as .*, among its 1 files"):
        index(tmp_path / "in", tmp_path / "mirror")
    with pytest.raises(SettingError, match="no such folder"):
        index(tmp_path / "none", tmp_path / "mirror")
    with pytest.raises(SettingError, match="is the folder itself"):
        index(tmp_path / "in", tmp_path / "in")
    assert not (tmp_path / "mirror").exists()
