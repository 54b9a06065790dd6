"""Finished packages come back as they were written, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.archive.packages import Package
from builder.model.errors import StoreError
from builder.model.ids import DetectionId
from builder.model.records import REASONS, Rejection, Spectrum
from builder.model.settings import Recipe
from builder.reduce.spectrum import reduce_products
from builder.store.packages import (
    EBOUNDS_SCHEMA,
    REJECTIONS_SCHEMA,
    SPECTRA_SCHEMA,
    PackageResult,
    Store,
    package_result,
)
from tests import fits_files as ff
from tests.fits_files import REAL, stable

INTERLEAVED = DetectionId(123, 1, 7)
DETECTIONS = (*REAL, INTERLEAVED, DetectionId(9000, 0, 1))
PACKAGE = Package(0, DETECTIONS)


def _outcomes() -> list[Spectrum | Rejection]:
    """Two real spectra of two grids, both cycles of a third detection, and a rejection with an awkward message."""
    files = [
        *map(ff.real_products, REAL),
        ff.products(INTERLEAVED.with_cycle("e1")),
        ff.products(INTERLEAVED.with_cycle("e2")),
    ]
    outcomes = [reduce_products(one, Recipe()) for one in files]
    return [
        *outcomes,
        Rejection(DETECTIONS[3], "reduce", "no_counts", 'a "message" – with, everything', "https://x/?a=b"),
    ]


OUTCOMES = _outcomes()
SPECTRA = [one for one in OUTCOMES if isinstance(one, Spectrum)]
RESULT = package_result(DETECTIONS, OUTCOMES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", "rel2.1", Recipe())


def path_of(store: Store, package: Package = PACKAGE) -> Path:
    return Path(store.folder.place) / store.name(package)


def assert_same(one: PackageResult, other: PackageResult) -> None:
    for name in PackageResult.__dataclass_fields__:
        assert getattr(one, name).equals(getattr(other, name))
        assert getattr(one, name).schema.equals(getattr(other, name).schema)


# --- records to tables ---


def test_the_records_are_all_there_and_nothing_is_rounded() -> None:
    assert len(SPECTRA) == 4
    rows = RESULT.spectra.to_pylist()
    assert [row["row"] for row in rows] == [0, 1, 2, 2]
    for row, spectrum in zip(rows, SPECTRA, strict=True):
        assert DetectionId.from_object_id(row["object_id"]) == spectrum.detection
        assert row["cycle"] == spectrum.detection.cycle
        for field, name in {
            "energy": "ene_center_bin",
            "energy_lo": "ene_low_bin",
            "energy_hi": "ene_high_bin",
            "rate": "flux",
            "rate_error": "flux_error",
        }.items():
            assert row[f"spectrum.{name}"] == getattr(spectrum, field).tolist()
        for field, name in {"energy_lo": "arf_energy_lo", "energy_hi": "arf_energy_hi", "specresp": "specresp"}.items():
            assert row[f"arf.{field}"] == getattr(spectrum, name).tolist()
        for field in ("counts", "background_counts"):
            assert row[field] == getattr(spectrum, field).tolist()
        for field in (
            "detnam",
            "grating",
            "exposure",
            "background_scale",
            "source_counts",
            "background_counts_total",
            "n_bins",
            "ebounds_id",
        ):
            assert row[field] == getattr(spectrum, field)
        assert (row["pha_file"], row["arf_file"], row["rmf_file"]) == spectrum.files
        assert (row["pha_sha256"], row["arf_sha256"], row["rmf_sha256"]) == spectrum.sha256
    assert RESULT.rejections.to_pylist() == [
        {
            "detection_id": "9000.0.1",
            "stage": "reduce",
            "reason": "no_counts",
            "message": 'a "message" – with, everything',
            "url": "https://x/?a=b",
        }
    ]


def test_each_grid_is_kept_once() -> None:
    grids = {row["ebounds_id"]: row for row in RESULT.ebounds.to_pylist()}
    assert len(grids) == len(RESULT.ebounds) == len({one.ebounds_id for one in SPECTRA})
    for spectrum in SPECTRA:
        assert grids[spectrum.ebounds_id]["energy_lo"] == spectrum.ebounds_lo.tolist()
        assert grids[spectrum.ebounds_id]["energy_hi"] == spectrum.ebounds_hi.tolist()


def test_a_package_of_nothing_has_the_same_schemas() -> None:
    empty = package_result(DETECTIONS, [])
    assert empty.spectra.schema.equals(SPECTRA_SCHEMA)
    assert empty.rejections.schema.equals(REJECTIONS_SCHEMA)
    assert empty.ebounds.schema.equals(EBOUNDS_SCHEMA)
    assert RESULT.spectra.schema.equals(SPECTRA_SCHEMA)
    assert {len(empty.spectra), len(empty.rejections), len(empty.ebounds)} == {0}


# --- keeping ---


def test_a_package_is_read_as_it_was_written(store: Store) -> None:
    assert PACKAGE not in store
    store.write(PACKAGE, RESULT)
    assert PACKAGE in store
    assert_same(store.read(PACKAGE), RESULT)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == [path_of(store)]


@stable(25)
@given(
    chosen=st.lists(st.sampled_from(range(len(OUTCOMES))), unique=True),
    text=st.text(max_size=50),
    reason=st.sampled_from(sorted(REASONS)),
)
def test_any_part_of_a_package_round_trips(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[int], text: str, reason: str
) -> None:
    text = text.encode("utf-8", "replace").decode()
    outcomes = [*(OUTCOMES[number] for number in chosen), Rejection(DETECTIONS[0], "fetch", reason, text)]
    store = Store(tmp_path_factory.mktemp("store"), "cur", Recipe())
    result = package_result(DETECTIONS, outcomes)
    store.write(PACKAGE, result)
    assert_same(store.read(PACKAGE), result)


def test_the_same_package_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    other = replace(store, root=tmp_path / "other")
    store.write(PACKAGE, RESULT)
    other.write(PACKAGE, package_result(DETECTIONS, _outcomes()))
    assert path_of(store).read_bytes() == path_of(other).read_bytes()


def test_a_package_can_be_written_again(store: Store) -> None:
    store.write(PACKAGE, RESULT)
    empty = package_result(DETECTIONS, [])
    store.write(PACKAGE, empty)
    assert_same(store.read(PACKAGE), empty)


def test_release_recipe_and_detections_are_kept_apart(store: Store) -> None:
    store.write(PACKAGE, RESULT)
    others = [
        (replace(store, release="rel2.0"), PACKAGE),
        (replace(store, recipe=Recipe(min_counts=6)), PACKAGE),
        (store, Package(0, DETECTIONS[:-1])),
        (store, Package(0, DETECTIONS[::-1])),
        (store, Package(0, (*DETECTIONS[:-1], DetectionId(9000, 0, 2)))),
    ]
    paths = {path_of(store)}
    for other, package in others:
        assert package not in other
        paths.add(path_of(other, package))
        with pytest.raises(StoreError, match="cannot read"):
            other.read(package)
    assert len(paths) == 6
    assert Package(400, DETECTIONS) in store  # where it stands in the catalog is no matter


def test_a_changed_version_of_the_recipe_is_another_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(PACKAGE, RESULT)
    monkeypatch.setattr(Recipe, "VERSION", Recipe.VERSION + 1)
    assert PACKAGE not in store


def test_a_file_of_another_format_is_missing_and_not_damaged(store: Store) -> None:
    store.write(PACKAGE, RESULT)
    folder = path_of(store).parent
    folder.rename(folder.with_name(folder.name.removesuffix("-6") + "-5"))  # where an older version kept its own
    assert PACKAGE not in store and not store.finished([PACKAGE])


def test_the_finished_are_those_that_are_there(store: Store) -> None:
    other = Package(0, DETECTIONS[:1])
    assert store.finished([PACKAGE, other]) == set()
    store.write(PACKAGE, RESULT)
    assert store.finished([PACKAGE, other]) == {PACKAGE}
    assert replace(store, responses=True).finished([PACKAGE]) == set()


# --- damage ---


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, bytes]:
    store = Store(tmp_path_factory.mktemp("store"), "rel2.1", Recipe())
    store.write(PACKAGE, RESULT)
    return store, path_of(store).read_bytes()


def refuse(store: Store, content: bytes) -> None:
    path_of(store).write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: its checksum is wrong") as caught:
        store.read(PACKAGE)
    assert str(path_of(store)) in str(caught.value)


@stable(150)
@given(place=st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.001)), mask=st.integers(1, 255))
def test_any_changed_byte_is_noticed(written: tuple[Store, bytes], place: float, mask: int) -> None:
    store, content = written
    damaged = bytearray(content)
    damaged[int(place * len(damaged))] ^= mask
    refuse(store, bytes(damaged))


def test_every_changed_byte_of_the_first_line_is_noticed(written: tuple[Store, bytes]) -> None:
    store, content = written
    for position in range(content.index(b"\n") + 1):
        for mask in (0x01, 0x20):  # 0x20 is the letter case
            refuse(store, content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :])


@stable(60)
@given(st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_noticed(written: tuple[Store, bytes], place: float) -> None:
    store, content = written
    refuse(store, content[: int(place * len(content))])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: b"",
        lambda c: c[:-1],
        lambda c: c + b"\0",
        lambda c: c + c,
        lambda c: bytes(len(c)),
        lambda c: c.partition(b"\n")[2],
    ],
    ids=["empty", "short", "long", "twice", "zeros", "headless"],
)
def test_other_damage_is_noticed(written: tuple[Store, bytes], change: Callable[[bytes], bytes]) -> None:
    store, content = written
    refuse(store, change(content))


def test_what_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*No such file") as caught:
        store.read(PACKAGE)
    assert isinstance(caught.value.__cause__, OSError)


# --- a file system that refuses ---

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*arguments: object) -> None:
    raise FULL


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("again", [False, True], ids=["new", "over an old one"])
def test_a_failed_write_leaves_things_as_they_were(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str, again: bool
) -> None:
    if again:
        store.write(PACKAGE, RESULT)
    with monkeypatch.context() as broken:
        if step == "fsync":
            broken.setattr(os, "fsync", fail)
        else:
            broken.setattr(Path, "replace", fail)
        with pytest.raises(StoreError, match=r"cannot write .*No space left") as caught:
            store.write(PACKAGE, package_result(DETECTIONS, []))
    assert caught.value.__cause__ is FULL
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == ([path_of(store)] if again else [])
    if again:
        assert_same(store.read(PACKAGE), RESULT)


def test_the_bytes_are_flushed_before_the_file_gets_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def flush(number: int) -> None:
        steps.append(f"fsync {os.fstat(number).st_size}")
        fsync(number)

    def move(path: Path, target: Path) -> Path:
        steps.append("replace")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", move)
    store.write(PACKAGE, RESULT)
    assert steps == [f"fsync {path_of(store).stat().st_size}", "replace"]


def test_a_store_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.write_text("not a folder")
    store = Store(root, "rel2.1", Recipe())
    assert PACKAGE not in store
    with pytest.raises(StoreError, match="cannot write"):
        store.write(PACKAGE, RESULT)
    with pytest.raises(StoreError, match="cannot read"):
        store.read(PACKAGE)
    assert root.read_text() == "not a folder"


def test_a_killed_write_is_no_finished_package(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves behind has another name, and the next write goes through."""

    def kill(number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", kill)
        with pytest.raises(KeyboardInterrupt):
            store.write(PACKAGE, RESULT)
    assert PACKAGE not in store
    store.write(PACKAGE, RESULT)
    assert_same(store.read(PACKAGE), RESULT)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == [path_of(store)]


def test_two_runs_that_make_a_package_at_once_do_no_harm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def meanwhile(number: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        store.write(PACKAGE, RESULT)
        fsync(number)

    monkeypatch.setattr(os, "fsync", meanwhile)
    store.write(PACKAGE, RESULT)
    assert_same(store.read(PACKAGE), RESULT)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == [path_of(store)]


def test_the_payload_is_plain_arrow(store: Store) -> None:
    """Four streams behind the first line: other programs can read them."""
    store.write(PACKAGE, RESULT)
    line, _, payload = path_of(store).read_bytes().partition(b"\n")
    assert line.startswith(b"chandra-spectra package 6 ")
    source = pa.BufferReader(payload)
    tables = [pa.ipc.open_stream(source).read_all() for _ in range(4)]
    assert [len(table) for table in tables] == [4, 1, len(RESULT.ebounds), 0]
    assert source.read() == b""
