"""Claims about simulated detections: their rows, their files, and that one tells of the other."""

from __future__ import annotations

import gzip
import io
import logging
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from builder.archive.products import ProductName, group_products
from builder.model.errors import ArchiveError
from builder.model.ids import DetectionId
from builder.model.records import BROAD, File
from builder.model.sky import source_name
from builder.simulator.products import CHANNELS, SimulatedArchive
from builder.simulator.sky import SERVED, absorption_cross_section, draw_detections, photon_spectrum
from tests.fits_files import detection, stable

NEVER_NULL = ("name", "ra", "dec", "src_cnts_aper_b", "flux_significance_b", "theta", "flux_bb_aper_b", "obsid", "obi")

Row = dict[str, Any]


def name_of(file: File) -> ProductName:
    name = ProductName.parse(file.name)
    assert name is not None
    return name


def hdus(file: File) -> fits.HDUList:
    with warnings.catch_warnings(action="error"):
        opened = fits.open(io.BytesIO(gzip.decompress(file.data)))
        opened.verify("exception")
    return opened


@pytest.fixture(scope="module")
def archive() -> SimulatedArchive:
    return SimulatedArchive(300, seed=1)


@pytest.fixture(scope="module")
def plain(archive: SimulatedArchive) -> list[tuple[Row, list[File]]]:
    """Detections with one spectrum, from all over the archive."""
    entries = [(row, archive.files(detection(row))) for row in archive.rows[::5]]
    return [(row, files) for row, files in entries if len(files) == 3]


@pytest.fixture(scope="module")
def pair() -> tuple[Row, list[File]]:
    archive = SimulatedArchive(1, interleaved=1.0)
    return archive.rows[0], archive.files(detection(archive.rows[0]))


@pytest.fixture
def ui():
    """Sherpa's session, the independent reader."""
    logging.getLogger("sherpa").setLevel(logging.ERROR)
    from sherpa.astro import ui

    ui.clean()
    yield ui
    ui.clean()


# rows


def test_a_row_has_the_catalogs_columns_with_python_values(archive):
    kinds = {"string": str, "int32": int, "int64": int, "bool": bool, "float32": float, "float64": float}
    for row in archive.rows:
        assert list(row) == [column.name for column in SERVED]
        for column in SERVED:
            assert row[column.name] is None or type(row[column.name]) is kinds[column.dtype], column.name


def test_nulls_occur_but_never_where_the_selection_looks():
    rows = SimulatedArchive(2000).rows
    null = {name for row in rows for name, value in row.items() if value is None}
    floats = {column.name for column in SERVED if column.dtype.startswith("float")}
    assert null == floats - {*NEVER_NULL, *(f"flux_aper_{band}" for band in "smh"), "nh_gal", "gal_l", "gal_b"} - {
        f"err_ellipse_{name}" for name in ("r0", "r1", "ang")
    }


def test_labels_are_what_a_row_was_simulated_with_where_there_are_counts_enough() -> None:
    """By the truth that the files are drawn from: the fitted flux by integrating the photon spectrum again."""
    truth = draw_detections(500, 7, 90000, 0.0)[:500]
    rows = SimulatedArchive(500, seed=7, interleaved=0.0).rows
    edges = np.linspace(0.5, 7.0, 66)
    photons, energy = photon_spectrum(truth, edges), (edges[:-1] + edges[1:]) / 2
    for one, row, spectrum in zip(truth, rows, photons, strict=True):
        fitted, plasma = one["counts"] >= 150, one["family"] == 1
        labels = {
            "powlaw_gamma": (one["photon_index"], fitted and not plasma),
            "powlaw_nh": (one["nh"] / 1e20, fitted and not plasma),
            "apec_kt": (one["temperature"], fitted and plasma),
            "brems_kt": (one["temperature"], fitted and plasma),
            "bb_kt": (0.0, False),
        }
        for name, (value, there) in labels.items():
            assert row[name] == (value if there else None), name
            if there:
                assert 0 <= row[f"{name}_lolim"] < value < row[f"{name}_hilim"]
            else:
                assert row[f"{name}_lolim"] is row[f"{name}_hilim"] is None
        if row["powlaw_ampl"] is not None:
            flux = row["powlaw_ampl"] * (spectrum * energy).sum() * 1.602176634e-9
            assert row["flux_powlaw"] == pytest.approx(flux, rel=1e-3)
            assert sum(row[f"flux_aper_{band}"] for band in "smh") == pytest.approx(flux, rel=1e-3)
    assert {row["powlaw_gamma"] is None for row in rows} == {row["apec_kt"] is None for row in rows} == {True, False}


def test_limits_enclose_their_values_and_are_null_with_them(archive):
    for row in archive.rows:
        for name in ("flux_aper_b", "hard_hm", "hard_hs", "hard_ms"):
            low, high = (
                row[f"{name.removesuffix('_b')}_{limit}{'_b' * name.endswith('_b')}"] for limit in ("lolim", "hilim")
            )
            assert low is high is None if row[name] is None else low <= row[name] <= high


def test_rows_rise_in_obsid_obi_region_and_no_detection_comes_twice():
    ids = [detection(row) for row in SimulatedArchive(5000, seed=3).rows]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("n", [0, 1, 4, 5, 6, 37])
def test_a_longer_archive_starts_with_the_shorter_one(n, archive):
    short = SimulatedArchive(n, seed=1)
    assert short.rows == archive.rows[:n]
    for row in short.rows[-1:]:
        assert short.files(detection(row)) == archive.files(detection(row))


def test_a_hundred_thousand_rows_fit_five_digits_of_obsid():
    rows = SimulatedArchive(100_000).rows
    assert len({(row["obsid"], row["obi"], row["region_id"]) for row in rows}) == len(rows) == 100_000
    assert {len(str(row["obsid"])) for row in rows} == {5}
    # one place, one name, and the other way round
    assert len({(row["ra"], row["dec"]) for row in rows}) == len({row["name"] for row in rows}) < 0.9 * len(rows)


def test_every_row_passes_the_default_cuts_and_counts_are_log_uniform():
    rows = SimulatedArchive(5000, seed=2).rows
    assert all(r["src_cnts_aper_b"] > 40 and r["flux_significance_b"] > 4 and r["theta"] < 10 for r in rows)
    logs = np.log([r["src_cnts_aper_b"] / 40 for r in rows]) / np.log(500)
    assert np.allclose(np.quantile(logs, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.05)


def test_a_field_has_5_to_30_detections_and_sources_are_seen_again():
    rows = SimulatedArchive(3000).rows
    _, detections = np.unique([row["obsid"] for row in rows], return_counts=True)
    assert detections[:-1].min() >= 5
    assert detections.max() <= 30
    _, visits = np.unique([row["name"] for row in rows], return_counts=True)
    assert set(visits) == {1, 2, 3}
    for row in rows:
        assert row["name"] == source_name("SIM", row["ra"], row["dec"])


def test_all_detections_of_a_source_tell_the_same_of_it():
    rows = SimulatedArchive(3000).rows
    of_source = [column.name for column in SERVED if column.query.startswith("m.")]
    sources = {tuple(row[name] for name in of_source) for row in rows}
    assert len(sources) == len({row["name"] for row in rows})
    assert {row["significance"] is None for row in rows} == {True, False}


def test_hardness_ratios_lie_within_one_and_agree_with_each_other(archive):
    for row in archive.rows:
        hm, hs, ms = (row[name] for name in ("hard_hm", "hard_hs", "hard_ms"))
        if None not in (hm, hs, ms):
            # with x = (1+h)/(1-h) the ratio of two bands' fluxes: (h/m) (m/s) = h/s
            ratio = [(1 + value) / (1 - value) for value in (hm, hs, ms)]
            assert max(map(abs, (hm, hs, ms))) < 1
            assert ratio[0] * ratio[2] == pytest.approx(ratio[1], rel=1e-6)


@given(ra=st.floats(0, 360, exclude_max=True), dec=st.floats(-90, 90))
def test_a_name_is_the_position_truncated(ra, dec):
    name = source_name("SIM", ra, dec)
    text = name.removeprefix("SIM J")
    hours = int(text[:2]) + int(text[2:4]) / 60 + float(text[4:8]) / 3600
    degrees = int(text[9:11]) + int(text[11:13]) / 60 + int(text[13:]) / 3600
    assert len(text) == 15
    assert text[8] == ("-" if dec < 0 else "+")
    assert -1e-9 <= ra / 15 - hours < 0.1 / 3600 + 1e-9
    assert -1e-9 <= abs(dec) - degrees < 1 / 3600 + 1e-9


def test_the_catalogs_own_example_gets_its_name():
    # M31's nucleus, 2CXO J004248.5+411521 in the catalog: 00 42 48.5x, +41 15 21.x
    assert source_name("2CXO", 15 * (42 / 60 + 48.59 / 3600), 41 + 15 / 60 + 21.9 / 3600) == "2CXO J004248.5+411521"


def test_the_cross_section_is_that_of_morrison_and_mccammon():
    # 1 keV: 120.6 + 169.3 - 47.7 in units of 1e-24 cm2 (their table 2), and a jump up at the iron K edge, 7.111 keV
    assert absorption_cross_section(np.array([1.0]))[0] == pytest.approx(242.2e-24)
    below, above = absorption_cross_section(np.array([7.11, 7.112]))
    assert above > 1.5 * below


# files


def test_the_same_detection_has_the_same_bytes_in_any_order(archive):
    ids = [detection(row) for row in archive.rows[100:112]]
    other = SimulatedArchive(300, seed=1)
    backwards = {i: other.files(i) for i in reversed(ids)}
    assert all(archive.files(i) == backwards[i] for i in ids)
    assert SimulatedArchive(300, seed=2).rows[0] != archive.rows[0]


@stable(20)
@given(seed=st.integers(0, 2**32), obsid=st.integers(10000, 99999), interleaved=st.sampled_from([0.0, 1.0]))
def test_names_and_headers_hold_the_ids_of_the_row(seed, obsid, interleaved):
    archive = SimulatedArchive(8, seed, obsid, interleaved)
    row = archive.rows[-1]
    files = archive.files(detection(row))
    products = group_products([detection(row)], files)
    assert [p.detection.cycle for p in products] == (["e1", "e2"] if interleaved else [""])
    for file in files:
        name = ProductName.parse(file.name)
        assert name is not None
        assert name.detection.catalog == detection(row)
        assert file.name.endswith(".fits.gz")
        header = hdus(file)[1].header
        assert (header["OBS_ID"], header["OBI_NUM"]) == (str(row["obsid"]), row["obi"])
        assert header["REGIONID"] == f"{row['region_id']:04d}"
        assert header["CYCLE"] == ("S" if name.detection.cycle == "e2" else "P")
        assert (header["OBJECT"], header["ORIGIN"]) == (row["name"], "SIMULATED")
        assert ("RA" in header, "RA_TARG" in header) == (False, True), "release 2 gives no position of the source"
        for null, value in (("livetime", header["LIVETIME"]), ("gti_mjd_obs", header["MJD_OBS"])):
            assert row[null] is None or interleaved or value == pytest.approx(row[null], rel=1e-12)


def test_the_pha_file_names_its_arf_rmf_and_itself(plain):
    versions = set()
    for _, (pha, arf, rmf) in plain:
        header = hdus(pha)[1].header
        named = [header[key] + ".gz" for key in ("BACKFILE", "ANCRFILE", "RESPFILE")]
        assert named == [pha.name, arf.name, rmf.name]
        versions.add(len({name_of(file).version for file in (pha, arf, rmf)}))
    assert versions == {1, 2}  # mostly one version for all three, now and then not


@pytest.mark.parametrize(
    ("release", "layout"), [(1, ["SPECTRUM", "GTI", "SPECTRUM"]), (2, ["SPECTRUM", "GTI", "MASK", "SPECTRUM", "MASK"])]
)
def test_a_spectrum_is_laid_out_as_the_catalogs(release, layout):
    archive = SimulatedArchive(1, interleaved=0, release=release)
    file = hdus(archive.files(detection(archive.rows[0]))[0])
    assert [hdu.name for hdu in file[1:]] == layout
    for hdu, kind in ((file[1], "TOTAL"), (file["SPECTRUM", 2], "BKG")):
        assert (hdu.header["HDUCLAS1"], hdu.header["HDUCLAS2"]) == ("SPECTRUM", kind)
        assert hdu.columns.names == ["CHANNEL", "PI", "COUNTS", "COUNT_RATE"]
        assert hdu.columns.formats == ["1J", "1D", "1J", "1D"]
        assert np.array_equal(hdu.data["CHANNEL"], np.arange(1, 1025))
        assert hdu.data["COUNTS"].sum() == hdu.header["TOTCTS"]
        assert np.allclose(hdu.data["COUNT_RATE"], hdu.data["COUNTS"] / hdu.header["EXPOSURE"], rtol=1e-12)
    assert 5 <= file["SPECTRUM", 2].header["BACKSCAL"] / file[1].header["BACKSCAL"] <= 50
    if release == 1:
        with fits.open(real("pha")) as model:
            ours, theirs = set(file[1].header), set(model[1].header)
            assert ours - theirs <= {"FILTER"}  # no words that the catalog does not use


@pytest.mark.parametrize(("release", "matrix"), [(1, "RSP_MATRIX"), (2, "MATRIX")])
def test_a_response_is_laid_out_as_the_catalogs_on_the_same_grid(release, matrix):
    archive = SimulatedArchive(60, interleaved=0, release=release)
    with fits.open(real("rmf")) as model, fits.open(real("arf")) as model_arf:
        for row in archive.rows[::20]:
            _, arf, rmf = archive.files(detection(row))
            file, area = hdus(rmf), hdus(arf)[1]
            assert [hdu.name for hdu in file] == ["PRIMARY", matrix, "EBOUNDS"]
            for hdu in (1, 2):
                assert [f.lstrip("1")[:2] for f in file[hdu].columns.formats] == [
                    f.lstrip("1")[:2] for f in model[hdu].columns.formats
                ]
            for name in ("ENERG_LO", "ENERG_HI"):
                assert np.array_equal(file[1].data[name], model[1].data[name])
                assert np.array_equal(area.data[name], model_arf[1].data[name])
            for name in ("CHANNEL", "E_MIN", "E_MAX"):
                assert np.array_equal(file[2].data[name], model[2].data[name])
            assert all(abs(row.sum(dtype=float) - 1) < 1e-6 for row in file[1].data["MATRIX"])
            assert file[1].header["NUMGRP"] == file[1].data["N_GRP"].sum()
            assert file[1].header["NUMELT"] == sum(map(len, file[1].data["MATRIX"]))
            size = len(gzip.decompress(rmf.data))
            assert 1.2e6 < size < 1.6e6
            assert len(rmf.data) < 0.5e6


def test_a_file_is_one_gzip_member_without_a_date(plain):
    for file in plain[0][1]:
        stream = zlib.decompressobj(wbits=31)
        assert stream.decompress(file.data)
        assert stream.eof
        assert not stream.unused_data
        assert file.data[4:8] == b"\0\0\0\0"


def real(kind: str) -> Path:
    import sherpa

    folder = Path(sherpa.__file__).parent / "astro/datastack/tests/data"
    return folder / f"acisf04938_000N002_r0043_{kind}3.fits"


def test_net_counts_scatter_around_the_row_as_poisson_numbers_do(plain):
    deviations = []
    for row, (pha, _, _) in plain:
        file = hdus(pha)
        source, background = file["SPECTRUM", 1], file["SPECTRUM", 2]
        scale = source.header["BACKSCAL"] / background.header["BACKSCAL"]
        total, other = (float(hdu.data["COUNTS"][BROAD].sum()) for hdu in (source, background))
        variance = row["src_cnts_aper_b"] + other * scale * (1 + scale)
        deviations.append((total - other * scale - row["src_cnts_aper_b"]) / np.sqrt(variance))
    n = len(deviations)
    assert n > 50
    assert abs(np.mean(deviations)) < 4 / np.sqrt(n)
    assert abs(np.var(deviations) - 1) < 4 * np.sqrt(2 / n)


def test_hard_rows_have_hard_spectra(plain):
    """The row's hardness ratio and the files' median energy rise together."""
    pairs = []
    for row, (pha, _, _) in plain:
        if row["hard_hs"] is not None:
            counts = hdus(pha)[1].data["COUNTS"][BROAD].cumsum()
            pairs.append((row["hard_hs"], CHANNELS[BROAD][np.searchsorted(counts, counts[-1] / 2)]))
    ranks = np.argsort(np.argsort(pairs, axis=0), axis=0)
    assert np.asarray(np.corrcoef(ranks.T))[0, 1] > 0.9


def test_either_cycle_of_an_interleaved_observation_has_its_share(pair):
    row, files = pair
    assert [name_of(file).detection.cycle for file in files] == ["e1"] * 3 + ["e2"] * 3
    first, second = (hdus(file)[1] for file in (files[0], files[3]))
    assert 2 * first.header["EXPOSURE"] == pytest.approx(second.header["EXPOSURE"])
    both = sum(hdu.data["COUNTS"][BROAD].sum() for hdu in (first, second))
    assert abs(both - row["src_cnts_aper_b"]) < 6 * np.sqrt(row["src_cnts_aper_b"]) + 0.5 * row["src_cnts_aper_b"]


def test_a_detection_that_is_not_there_is_an_error(archive):
    with pytest.raises(ArchiveError, match=r"1\.0\.1 is not in the simulated archive"):
        archive.files(DetectionId(1, 0, 1))


@pytest.mark.parametrize("inflate", [False, True])
def test_sherpa_loads_a_spectrum_with_background_and_responses(ui, archive, plain, pair, tmp_path, inflate):
    bright = max(plain, key=lambda entry: entry[0]["src_cnts_aper_b"])
    faint = min(plain, key=lambda entry: entry[0]["src_cnts_aper_b"])
    for _, files in (bright, faint, (None, pair[1][3:])):
        for file in files:
            data = gzip.decompress(file.data) if inflate else file.data
            (tmp_path / (file.name.removesuffix(".gz") if inflate else file.name)).write_bytes(data)
        ui.load_pha(str(tmp_path / files[0].name.removesuffix(".gz")))
        assert ui.get_arf().specresp.max() > 100
        assert ui.get_rmf().detchans == 1024
        file = hdus(files[0])
        source, background = file["SPECTRUM", 1], file["SPECTRUM", 2]
        assert np.array_equal(ui.get_data().counts, source.data["COUNTS"])
        assert np.array_equal(ui.get_bkg().counts, background.data["COUNTS"])
        ui.set_analysis("energy")
        ui.ignore(None, 0.5)
        ui.ignore(8.0, None)
        ui.subtract()
        ui.group_counts(5)
        plot = ui.get_data_plot()
        assert len(plot.x) > 3
        assert np.isfinite(plot.y).all()
        assert plot.y.max() > 0


def test_sherpas_fold_of_the_true_spectrum_predicts_the_counts(ui, tmp_path):
    """A bright power law, folded by Sherpa through the simulated ARF and RMF, gives the counts of the row."""

    archive = SimulatedArchive(300, seed=1, interleaved=0.0)
    truth = draw_detections(300, 1, 90000, 0.0)[:300]
    best = int(truth["counts"].argmax())
    files = archive.files(detection(archive.rows[best]))
    for file in files:
        (tmp_path / file.name).write_bytes(file.data)
    ui.load_pha(str(tmp_path / files[0].name))
    edges = np.append(ui.get_arf().energ_lo, ui.get_arf().energ_hi[-1])
    folded = ui.get_rmf().apply_rmf(photon_spectrum(truth[best : best + 1], edges)[0] * ui.get_arf().specresp)
    folded *= archive.rows[best]["src_cnts_aper_b"] / folded[BROAD].sum()
    scale = ui.get_data().backscal / ui.get_bkg().backscal
    expected = (folded + ui.get_bkg().counts * scale)[BROAD].reshape(12, -1).sum(axis=1)
    counts = ui.get_data().counts[BROAD].reshape(12, -1).sum(axis=1)
    chi2 = ((counts - expected) ** 2 / expected.clip(1)).sum()
    assert chi2 < 35  # 12 degrees of freedom: one in two thousand is above
