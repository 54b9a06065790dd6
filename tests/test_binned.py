"""Config `binned`: channels in fixed bins, and responses that make a likelihood one matrix product."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from hypothesis import given
from hypothesis import strategies as st

from builder.dataset.layout import Manifest
from builder.model.errors import SettingError
from builder.model.folding import Bins, Matrix, bin_edges, photon_edges
from builder.model.records import File, Products
from builder.model.schema import features
from builder.model.selection import Selection
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare
from builder.simulator.sky import absorption_cross_section
from builder.store.packages import Store
from builder.use.calibration import Calibration
from builder.use.verify import verify
from chandra_spectra import ChandraSpectra, collate
from tests import fits_files as ff
from tests.folders import contents, rehash

pytestmark = pytest.mark.usefixtures("without_pictures")

BINS = 64
REAL = Selection(detections=frozenset(ff.REAL))
RECIPE = Path(__file__).parents[1] / "docs" / "recipe.md"


@pytest.fixture(scope="module")
def loaded(full_sample: Path) -> dict[str, Dataset]:
    """Both configs, all rows, in the same order."""
    return {
        config: concatenate_datasets(list(load_dataset(str(full_sample), config).values()))
        for config in ("counts", "binned")
    }


@pytest.fixture(scope="module")
def calibration(full_sample: Path) -> Calibration:
    return Calibration.load(str(full_sample))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two real detections in 8 bins."""
    folder = tmp_path_factory.mktemp("real") / "chandra_spectra"
    prepare(folder, Settings("embedded", selection=REAL, bins=8))
    return folder


# --- the bins


def test_the_bins_hold_what_rebin_gives(loaded: dict[str, Dataset], calibration: Calibration) -> None:
    binned = loaded["binned"].with_format("numpy")[:]
    again = calibration.rebin(loaded["counts"].with_format("arrow")[:], np.geomspace(0.5, 8, BINS + 1))
    for name, expected in again.items():
        assert np.array_equal(binned[name], expected.astype(binned[name].dtype)), name
        assert binned[name].shape == (62, BINS)
    edges = np.geomspace(0.3, 9.3, 2 * BINS + 1).astype(np.float32)
    assert (binned["photon_energy_lo"] == edges[:-1]).all() and (binned["photon_energy_hi"] == edges[1:]).all()
    assert loaded["binned"]["response_fault"] == [None] * 62


@given(st.floats(0.02, 5), st.floats(0.5, 15), st.integers(0, 300))
@ff.stable(200)
def test_a_bin_holds_a_channel_or_the_settings_are_refused(energy_min: float, width: float, bins: int) -> None:
    recipe = Recipe(energy_min, min(energy_min + width, 14.9))
    edges: Any = 0.0146 * np.arange(1025)
    try:
        bins = Settings("embedded", recipe=recipe, bins=bins).bins
    except SettingError:
        bins = 0
    if bins:
        found = Bins.of(edges[:-1], edges[1:], bin_edges(recipe, bins))
        assert not found.hollow.size
        assert (found.high > found.low).all() and np.allclose(found.low[1:], found.high[:-1])


@pytest.mark.parametrize(
    ("bins", "recipe", "words"),
    [
        (97, {}, r"the narrowest of 97 bins of 0\.5-8 keV has 14\.5 eV, less than a channel .*: give at most 96 bins"),
        (9, {"energy_min": 0.0}, "cannot begin at 0 keV"),
        (-1, {}, "whole number"),
        (True, {}, "whole number"),
    ],
)
def test_bins_that_cannot_be_are_refused_in_one_line(bins: Any, recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words) as raised:
        Settings("embedded", recipe=Recipe(**recipe), bins=bins)
    assert "\n" not in str(raised.value)


def test_a_bin_without_a_channel_has_no_width_no_counts_and_no_area() -> None:
    low, high = np.arange(1.0, 5.0), np.arange(2.0, 6.0)
    bins = Bins.of(low, high, np.array([0.1, 0.9, 1.1, 3.0, 3.1, 7.0, 9.0]))
    assert np.diff(bins.begin).tolist() == [0, 0, 2, 0, 2, 0]
    assert bins.hollow.tolist() == [0, 1, 3, 5]
    assert ((bins.high > bins.low) == (np.diff(bins.begin) > 0)).all()
    assert bins.total(np.ones((1, 4), int)).tolist() == [[0, 0, 2, 0, 2, 0]]
    assert bins.mean_area(low, high, np.full((1, 4), 9.0)).tolist() == [[0, 0, 9, 0, 9, 0]]


# --- the compact response

EDGES = st.lists(st.floats(0.2, 12), min_size=2, max_size=9, unique_by=lambda e: round(e, 1)).map(sorted).map(np.array)


@given(EDGES, st.integers(0, 2**32 - 1))
@ff.stable(60)
def test_a_compact_response_is_the_mean_over_the_logarithm_of_energy(edges: Any, seed: int) -> None:
    """By summing a dense matrix over many points within each coarse energy."""
    random = np.random.default_rng(seed)
    fine = np.append(0.3, 0.3 + np.cumsum(random.uniform(0.5, 2, 6)))
    dense = random.random((6, 1024)) * (random.random((6, 1024)) < 0.2)
    energy, channel = np.nonzero(dense)
    ones = np.ones(energy.size, int)
    matrix = Matrix(fine[:-1], fine[1:], energy, channel, ones, dense[energy, channel].astype(np.float32))
    bins = Bins(np.sort(random.choice(1025, 5, replace=False)), np.zeros(4), np.ones(4))
    area = random.uniform(0, 600, 6)
    points = np.geomspace(edges[0], edges[-1], 200_001)
    middle, step = np.sqrt(points[1:] * points[:-1]), np.diff(np.log(points))
    number = np.searchsorted(fine, middle, side="right") - 1
    weight = np.where((number >= 0) & (number < 6), area[np.clip(number, 0, 5)], 0) * step
    coarse = np.searchsorted(edges, middle, side="right") - 1
    mean = np.zeros((edges.size - 1, 6))
    np.add.at(mean, (coarse, np.clip(number, 0, 5)), weight)
    summed = np.stack([dense[:, a:b].sum(axis=1) for a, b in zip(bins.begin, bins.begin[1:], strict=False)], axis=1)
    expected = mean / np.diff(np.log(edges))[:, None] @ summed
    found = matrix.compact(area, bins, edges)
    assert found.dtype == np.float32 and (found >= 0).all()
    narrowest = np.diff(np.log(edges)).min()
    assert np.allclose(found, expected, rtol=1e-3, atol=1e5 * np.log(60) / 200_000 / narrowest)


def test_the_responses_of_the_rows_are_those_of_area_and_matrix(
    loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    for number in (0, 1, 40):
        row = loaded["counts"].with_format("numpy")[number]
        full = calibration._response(row["rmf_sha256"])
        bins = Bins.of(*calibration.energies(row["ebounds_id"]), bin_edges(Recipe(), BINS))
        expected = full.compact(row["arf"]["specresp"].astype(float), bins, photon_edges(BINS))
        assert np.array_equal(loaded["binned"].with_format("numpy")[number]["response"], expected)


def within(low: Any, high: Any) -> Any:
    """Twenty energies in each bin."""
    return np.asarray(low)[:, None] + np.subtract(high, low)[:, None] * (np.arange(20) + 0.5) / 20


def power_law(index: float, nh: float = 0) -> Any:
    def photons(low: Any, high: Any) -> Any:
        energy = within(low, high)
        absorption = np.exp(-nh * absorption_cross_section(energy.ravel())).reshape(energy.shape)
        return (energy**-index * absorption).mean(axis=1) * np.subtract(high, low)

    return photons


def thermal(temperature: float, line: float = 0) -> Any:
    """Bremsstrahlung, and a narrow line of an equivalent width of 0.1 keV."""

    def continuum(energy: Any) -> Any:
        return np.exp(-energy / temperature) / energy

    def photons(low: Any, high: Any) -> Any:
        smooth = continuum(within(low, high)).mean(axis=1) * np.subtract(high, low)
        return smooth + (0.1 * continuum(line) * ((low <= line) & (line < high)) if line else 0)

    return photons


SHAPES = {
    "power law, Γ = 1": power_law(1),
    "power law, Γ = 2": power_law(2),
    "power law, Γ = 3": power_law(3),
    "Γ = 1.7, absorbed by 10²¹ cm⁻²": power_law(1.7, 1e21),
    "Γ = 1.7, absorbed by 10²² cm⁻²": power_law(1.7, 1e22),
    "Γ = 1.7, absorbed by 10²³ cm⁻²": power_law(1.7, 1e23),
    "bremsstrahlung, 0.5 keV": thermal(0.5),
    "bremsstrahlung, 1 keV": thermal(1),
    "bremsstrahlung, 5 keV": thermal(5),
    "the same, with a narrow line at 6.7 keV": thermal(5, 6.7),
}


def test_the_docs_say_how_far_a_compact_response_is_from_the_full_fold(
    loaded: dict[str, Dataset], calibration: Calibration
) -> None:
    """In the worst bin, of those with a thousandth of the counts of the fullest, of the first twenty rows."""
    table = re.findall(r"^\| (.+) \| ([\d.]+) % \| ([\d.]+) % \|$", RECIPE.read_text(encoding="utf-8"), re.M)
    assert [name for name, *_ in table] == list(SHAPES)
    rows = list(loaded["counts"].with_format("numpy").select(range(20)))
    for name, *said in table:
        for bins, most in zip((64, 32), map(float, said), strict=True):
            worst = 0.0
            for row in rows:
                area, edges = row["arf"]["specresp"].astype(float), photon_edges(bins)
                own = Bins.of(*calibration.energies(row["ebounds_id"]), bin_edges(Recipe(), bins))
                compact = calibration._response(row["rmf_sha256"]).compact(area, own, edges)
                expected = row["exposure"] * SHAPES[name](edges[:-1], edges[1:]) @ compact
                full = np.add.reduceat(calibration.fold(SHAPES[name], row), own.begin)[:-1]
                off = np.abs(expected / full - 1)[full > full.max() / 1000]
                worst = max(worst, 100 * off.max())
            assert 0.7 * most <= max(worst, 0.01) <= most, (name, bins, worst)


def test_a_likelihood_is_one_matrix_product_that_torch_differentiates(loaded: dict[str, Dataset]) -> None:
    batch = collate(loaded["binned"].with_format("arrow")[:16])
    assert batch["response"].shape == (16, 2 * BINS, BINS) and batch["response"].dtype == torch.float32
    low, high = batch["photon_energy_lo"], batch["photon_energy_hi"]
    index = torch.full((16, 1), 1.7, requires_grad=True)

    def loss(index: torch.Tensor) -> torch.Tensor:
        photons = 1e-4 * ((low + high) / 2) ** -index * (high - low)
        expected = batch["exposure"][:, None] * torch.einsum("re,reb->rb", photons, batch["response"])
        expected = expected + (batch["background_scale"][:, None] * batch["background_counts"]).clamp(min=1e-3)
        return torch.nn.functional.poisson_nll_loss(expected, batch["counts"].float(), log_input=False)

    loss(index).backward()
    assert index.grad is not None
    step = 1e-2
    with torch.no_grad():
        slope = (loss(index + step) - loss(index - step)) / (2 * step)
    assert index.grad.sum().item() == pytest.approx(slope.item(), rel=0.02)


# --- what cannot be


def other_energies() -> Products:
    """A real detection whose ARF has energies of its own."""
    detection = next(iter(ff.REAL))
    products = ff.real_products(detection)
    assert products.arf is not None
    return ff.with_file(products, "arf", File(products.arf.name, ff.arf(detection)))


@pytest.mark.parametrize(
    ("products", "words"),
    [
        (lambda: ff.damaged_matrix(summed=True), "F_CHAN is cut short"),
        (other_energies, "the energies of ARF and RMF differ"),
    ],
)
def test_a_row_whose_response_cannot_be_made_says_why_and_has_its_counts(
    products: Any, words: str, tmp_path: Path
) -> None:
    files = products()
    archive = ff.mirror(tmp_path / "mirror", {files.detection: [files.pha, files.arf, files.rmf]})
    prepare(tmp_path / "out", Settings(str(archive), bins=8), cache=tmp_path / "cache")
    assert verify(tmp_path / "out", recheck=1, archive=str(archive), cache=tmp_path / "a").failures == []
    data = load_dataset(str(tmp_path / "out"), "binned", split="train", cache_dir=str(tmp_path / "hf"))
    assert data[0]["response"] is None and words in data[0]["response_fault"]
    assert sum(data[0]["counts"]) > 1000
    batch = collate(data.with_format("arrow")[:])
    assert batch["response"].shape == (1, 16, 8) and batch["response"].isnan().all()


# --- the folder


def test_the_builder_gives_the_rows_of_the_folder(real: Path, tmp_path: Path) -> None:
    builder = ChandraSpectra(config_name="binned", archive="embedded", bins=8, cache_dir=str(tmp_path))
    builder.download_and_prepare()
    own = concatenate_datasets(list(builder.as_dataset().values()))
    assert own.features == features("binned", 8)
    names = [str(detection) for detection in ff.REAL]
    prepared = concatenate_datasets(list(load_dataset(str(real), "binned").values()))
    assert sorted(prepared["detection_id"]) == names
    chosen = own.select([list(own["detection_id"]).index(name) for name in prepared["detection_id"]])
    assert chosen.to_dict() == prepared.to_dict()


@pytest.mark.pictures
def test_the_other_files_are_those_of_a_folder_without_bins(real: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "chandra_spectra", Settings("embedded", selection=REAL))
    plain, binned = contents(tmp_path / "chandra_spectra"), contents(real)
    ours = {path for path in binned if path.startswith("binned/")}
    assert ours and binned.keys() - plain.keys() == ours
    differ = {path for path in plain if plain[path] != binned[path]}
    assert differ == {"README.md", "manifest.json", "chandra_spectra.hdf5"}  # they say how it was made


def test_the_store_keeps_other_bins_apart(tmp_path: Path) -> None:
    stores = [Store(tmp_path, "rel2.1", Recipe(), responses, bins) for responses in (False, True) for bins in (0, 8, 9)]
    assert len({store.folder.place for store in stores}) == 6


def test_the_manifest_gives_the_settings_back(real: Path) -> None:
    manifest = Manifest.read(real)
    assert manifest.bins == manifest.read_settings(real).bins == 8
    assert "--bins 8" in (real / "README.md").read_text()


def _change(name: str, change: Any) -> Any:
    def changed(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0][name] = change(rows[0][name])
        return pa.Table.from_pylist(rows, table.schema)

    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change("counts", lambda value: [value[0] + 1, *value[1:]]), r"counts\[0\] is .*, the channels give"),
        (_change("effective_area", lambda value: [*value[:-1], 1]), r"effective_area\[7\] is 1"),
        (_change("photon_energy_lo", lambda value: [*value[:-1], 1]), r"photon_energy_lo\[15\] is 1"),
        (_change("response", lambda value: [[-1.0] * 8, *value[1:]]), r"response has -1.0, not 0 to 10000 cm2"),
        (_change("response", lambda value: [None, *value[1:]]), "response holds a null"),
        (_change("response", lambda value: [[None] * 8, *value[1:]]), "response holds a null"),
        (_change("response", lambda value: None), "response is null, without a fault"),
        (_change("response_fault", lambda value: "a fault"), "response is not null, though it has a fault"),
        (_change("exposure", lambda value: value + 1), "exposure is .*, in config spectra"),
        (lambda table: table.slice(1), "number of rows"),
    ],
)
def test_verify_finds_what_is_wrong_in_the_bins(change: Any, words: str, real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "chandra_spectra"))
    path = next((folder / "binned").glob("*.parquet"))
    pq.write_table(change(pq.read_table(path)), path)
    rehash(folder)
    failures = verify(folder, load=False).failures
    assert any(line.startswith(f"binned/{path.name}") and re.search(words, line) for line in failures), failures


def test_verify_finds_a_response_that_is_another_than_that_of_the_archive(real: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(real, tmp_path / "chandra_spectra"))
    path = next((folder / "binned").glob("*.parquet"))
    change = _change("response", lambda value: [*value[:-1], [5.0] * 8])
    pq.write_table(change(pq.read_table(path)), path)
    rehash(folder)
    assert verify(folder, load=False).failures == []  # it is as good a response as any
    failures = verify(folder, load=False, recheck=2).failures
    assert any(line.startswith(f"binned/{path.name}") and "response[" in line for line in failures), failures
