"""Files of release 2.0, as the archive serves them: the command's numbers are Sherpa's.

They lie beside the checkout where they are at hand, and are no part of it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from builder.archive.catalog import from_rows
from builder.archive.interface import Fetched
from builder.archive.mirror import Mirror
from builder.archive.packages import plan
from tests.runs import command

REAL = Path(__file__).parents[2] / "shared" / "real"
STEMS = {"pha": "N023_r0087_pha3", "arf": "N022_r0087_arf3", "rmf": "N022_r0087_rmf3"}
FILES = {kind: REAL / f"acisf03243_000{stem}.fits.gz" for kind, stem in STEMS.items()}

pytestmark = pytest.mark.skipif(not all(path.is_file() for path in FILES.values()), reason="the files are not at hand")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command makes of a mirror with this one detection."""
    folder = tmp_path_factory.mktemp("real")
    row = {"name": "2CXO J000000.0+000000", "obsid": 3243, "obi": 0, "region_id": 87, "instrument": "ACIS"}
    cuts = {"src_cnts_aper_b": 1e4, "flux_significance_b": 99.0, "theta": 1.0, "flux_bb_aper_b": 1e-13}
    planned = plan(from_rows([row | cuts]))
    (package,) = planned.packages
    mirror = Mirror(folder / "mirror")
    mirror.write_catalog(planned)
    mirror.add(package, Fetched(tuple(FILES.values()), {}))
    result = command(
        "prepare", folder / "out", "--archive", folder / "mirror", "--cache", folder / "cache", "--workers", 1
    )
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_the_spectrum_equals_that_of_sherpas_session_bit_for_bit(prepared: Path) -> None:
    logger = logging.getLogger("sherpa")
    logger.setLevel(logging.CRITICAL)
    from sherpa.astro import ui

    ui.clean()
    ui.load_pha(str(FILES["pha"]))
    ui.load_arf(str(FILES["arf"]))
    ui.load_rmf(str(FILES["rmf"]))
    ui.set_analysis("energy")
    ui.set_stat("chi2gehrels")
    ui.ignore(None, 0.5)
    ui.ignore(8.0, None)
    ui.subtract()
    ui.group_counts(5)
    plot = ui.get_data_plot()
    ui.clean()
    assert len(plot.y) == 87
    with h5py.File(prepared / "chandra_spectra.hdf5") as file:
        for name, expected in (
            ("spectrum_ene_lo", plot.xlo),
            ("spectrum_ene_hi", plot.xhi),
            ("spectrum_flux", plot.y),
            ("spectrum_flux_err", plot.yerr),
        ):
            np.testing.assert_array_equal(file[name][0], expected, err_msg=name)


def test_versions_that_differ_and_headers_without_a_position_are_no_reason_to_reject(prepared: Path) -> None:
    with h5py.File(prepared / "chandra_spectra.hdf5") as file:
        assert [file[f"{kind}_file"].asstr()[0] for kind in STEMS] == [path.name for path in FILES.values()]
        assert file["exposure"][0] > 0


def test_chips_are_those_of_the_good_times_and_what_release_2_leaves_out_is_null(prepared: Path) -> None:
    """As astropy reads CCD_ID of the GTI extensions; the ARF has no PSF_FRAC, and no file CALDBVER."""
    scalars = pq.read_table(prepared / "data")
    assert scalars["ccds"].to_pylist() == ["2,3,5,6,7"]
    assert scalars["caldb_version"].to_pylist() == [None]
    assert pq.read_table(prepared / "counts")["arf"].to_pylist()[0]["psf_frac"] is None
    with h5py.File(prepared / "chandra_spectra.hdf5") as file:
        assert file["arf_psf_frac"][0].size == 0
