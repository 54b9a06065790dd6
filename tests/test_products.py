"""Names of product files, the files of a package, and which detection they belong to."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.archive import products
from builder.archive.products import KINDS, ProductName, group_products, members
from builder.model.errors import ArchiveError
from builder.model.ids import DetectionId
from builder.model.records import File
from tests.fits_files import product_name, stable
from tests.tars import tar_bytes

detections = st.builds(
    DetectionId, st.integers(0, 999_999), st.integers(0, 999), st.integers(0, 9999), st.sampled_from(["", "e1", "e2"])
)


# --- names ---


@pytest.mark.parametrize(
    ("name", "detection", "kind", "instrument", "version"),
    [
        ("acisf04938_000N002_r0043_pha3.fits", DetectionId(4938, 0, 43), "pha", "acis", 2),
        ("acisf07867_000N001_r0002_arf3.fits.gz", DetectionId(7867, 0, 2), "arf", "acis", 1),
        ("acisf01575_001N003_e2_r0085_rmf3.fits.gz", DetectionId(1575, 1, 85, "e2"), "rmf", "acis", 3),
        ("acisf123456_001N003_e1_r0085_rmf3.fits", DetectionId(123456, 1, 85, "e1"), "rmf", "acis", 3),
        ("hrcf00041_000N001_r0001_pha3.fits.gz", DetectionId(41, 0, 1), "pha", "hrc", 1),
        ("package/acisf04938_000N002_r0043_pha3.fits", DetectionId(4938, 0, 43), "pha", "acis", 2),
        ("C:\\x\\acisf04938_000N002_r0043_pha3.fits", DetectionId(4938, 0, 43), "pha", "acis", 2),
        ("../../acisf04938_000N002_r0043_pha3.fits", DetectionId(4938, 0, 43), "pha", "acis", 2),
    ],
)
def test_names_of_the_catalogs_convention(
    name: str, detection: DetectionId, kind: str, instrument: str, version: int
) -> None:
    """The first two are real names, those of the files inside the installed Sherpa."""
    assert ProductName.parse(name) == ProductName(detection, kind, instrument, version)


@stable(200)
@given(
    detection=detections,
    kind=st.sampled_from(KINDS),
    version=st.integers(0, 999),
    gz=st.booleans(),
    folder=st.sampled_from(["", "package/", "/a/b/", "../"]),
)
def test_a_name_says_what_it_was_made_of(
    detection: DetectionId, kind: str, version: int, gz: bool, folder: str
) -> None:
    name = folder + product_name(detection, kind, version) + ".gz" * gz
    assert ProductName.parse(name) == ProductName(detection, kind, "acis", version)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../x",
        "acisf04938_000N002_r0043_pha3.fits/",
        "acisf04938_000N002_r0043_pha3.fits.gz.part",
        "acisf04938_000N002_r0043_pha3.fits\n",
        "acisf04938_000N002_r0043_pha3.fit",
        "acisf04938_000N002_r0043_pha3.fits.bz2",
        "acisf04938_000N002_r0043_pha2.fits",
        "acisf04938_000N002_r0043_evt3.fits",
        "acisf04938_000N002_r0043b_pha3.fits",
        "acisf04938_000N002_e3_r0043_pha3.fits",
        "acisf04938_000N002_r043_pha3.fits",
        "acisf4938_000N002_r0043_pha3.fits",
        "acisf1234567_000N002_r0043_pha3.fits",
        "acisf04938_00N002_r0043_pha3.fits",
        "acisf04938_000N02_r0043_pha3.fits",
        "ACISf04938_000N002_r0043_pha3.fits",
        "acis04938_000N002_r0043_pha3.fits",
        " acisf04938_000N002_r0043_pha3.fits",
        "acisf04938_000n002_r0043_pha3.fits",
        "acisf\u0664\u0669\u0663\u0668\u0660_000N002_r0043_pha3.fits",
    ],
)
def test_near_misses_are_no_product_names(name: str) -> None:
    assert ProductName.parse(name) is None


@stable(200)
@given(detection=detections, place=st.floats(0, 1, exclude_max=True), character=st.characters(codec="utf-8"))
def test_a_changed_character_never_gives_another_kind_of_answer(
    detection: DetectionId, place: float, character: str
) -> None:
    name = product_name(detection, "pha")
    at = int(place * len(name))
    changed = name[:at] + character + name[at + 1 :]
    found = ProductName.parse(changed)
    if found is not None:
        base = changed.replace("\\", "/").rpartition("/")[2]
        assert base == product_name(found.detection, found.kind, found.version).replace("acis", found.instrument)


# --- the files of a package ---


def listed(folder: Path, content: bytes, name: str = "part.tar") -> list[File]:
    path = folder / name
    path.write_bytes(content)
    return list(members(path))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_of_a_tar_in_their_order_without_their_folders(tmp_path: Path, format: int) -> None:
    long = "d" * 120 + "/acisf04938_000N002_r0043_rmf3.fits.gz"
    content = tar_bytes(
        ("package", None),
        ("package/b", b"2" * 600),
        ("a", b""),
        ("./x/y/c", b"3"),
        *([(long, b"4")] if format != tarfile.USTAR_FORMAT else []),
        format=format,
    )
    expected = [File("b", b"2" * 600), File("a", b""), File("c", b"3")]
    if format != tarfile.USTAR_FORMAT:
        expected.append(File("acisf04938_000N002_r0043_rmf3.fits.gz", b"4"))
    assert listed(tmp_path, content) == expected


def test_a_tar_of_nothing_has_no_files(tmp_path: Path) -> None:
    assert listed(tmp_path, tar_bytes()) == []


def test_names_that_climb_out_are_only_names(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    content = tar_bytes(("/etc/absolute", b"1"), ("../../outside", b"2"), ("..", b"3"))
    assert [file.name for file in listed(folder, content)] == ["absolute", "outside", ".."]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inner", "part.tar"]


def test_links_devices_and_folders_are_passed_over(tmp_path: Path) -> None:
    stream = io.BytesIO()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(fileobj=stream, mode="w") as tar:
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE)
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"acisf04938_00{number}N002_r0043_pha3.fits")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        info = tarfile.TarInfo("real")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    assert listed(tmp_path, stream.getvalue()) == [File("real", b"data")]


def test_a_single_product_file_is_a_part_too(tmp_path: Path) -> None:
    name = "acisf04938_000N002_r0043_pha3.fits.gz"
    assert listed(tmp_path, b"anything", name) == [File(name, b"anything")]


PLAIN = [(f"package/file{number}", bytes([number]) * size) for number, size in enumerate((10, 512, 1500, 0, 700), 1)]
TAR = tar_bytes(*PLAIN)
_CONTENT = len(TAR.rstrip(b"\0"))
END = _CONTENT + -_CONTENT % 512  # where the end-of-archive mark begins


@stable(150)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_tar_cut_short_anywhere_is_an_error(tmp_path_factory: pytest.TempPathFactory, place: float) -> None:
    cut(tmp_path_factory.mktemp("cut"), int(place * END))


@pytest.mark.parametrize("length", [*range(0, END + 512, 512), *range(256, END, 512), END + 511])
def test_a_tar_cut_between_members_or_within_a_header_is_an_error(tmp_path: Path, length: int) -> None:
    """Where tarfile itself sees nothing but the end of the archive."""
    cut(tmp_path, length)


def cut(folder: Path, length: int) -> None:
    (folder / "cut.tar").write_bytes(TAR[:length])
    found: list[File] = []
    with pytest.raises(ArchiveError, match=r"cut\.tar"):
        found.extend(members(folder / "cut.tar"))


def test_a_tar_with_its_padding_cut_is_whole(tmp_path: Path) -> None:
    """Two blocks of zeros end an archive (POSIX 1003.1, pax); tar fills up the record, others do not."""
    whole = listed(tmp_path, TAR)
    assert [file.data for file in whole] == [data for _, data in PLAIN]
    assert listed(tmp_path, TAR[: END + 1024]) == whole


@stable(300)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_in_a_tar_is_an_archive_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: float, value: int
) -> None:
    """Never another exception; a damaged header never hides the files behind it."""
    content = bytearray(TAR[: END + 1024])
    content[int(place * len(content))] = value
    try:
        found = listed(tmp_path_factory.mktemp("flip"), bytes(content))
    except ArchiveError:
        return
    assert len(found) == len(PLAIN)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>Error</html>",
        b"Error executing query: none\n" * 50,
        b"SIMPLE  =".ljust(2880),
        b"\x1f\x8b" + bytes(90),
    ],
    ids=["empty", "html", "text", "fits", "gzip"],
)
def test_something_else_than_a_tar_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"part\.tar"):
        listed(tmp_path, content)


def test_a_member_too_large_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "MAX_MEMBER_BYTES", 1000)
    assert len(listed(tmp_path, tar_bytes(("fits", bytes(1000))))) == 1
    with pytest.raises(ArchiveError, match="claims 1001 bytes"):
        listed(tmp_path, tar_bytes(("large", bytes(1001))))
    info = tarfile.TarInfo("lies")
    info.size = 8 * 2**30
    with pytest.raises(ArchiveError, match="claims 8589934592 bytes"):
        listed(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


# --- files to detections ---


FIRST, SECOND = DetectionId(4938, 0, 43), DetectionId(7867, 0, 2)


def files(detection: DetectionId, versions: tuple[int, int, int] = (1, 1, 1)) -> list[File]:
    return [
        File(product_name(detection, kind, version), f"{detection} {kind} {version}".encode())
        for kind, version in zip(KINDS, versions, strict=True)
    ]


def test_the_three_files_may_be_of_different_versions() -> None:
    pha, arf, rmf = files(FIRST, (2, 1, 14))
    (found,) = group_products([FIRST], [rmf, pha, arf])
    assert (found.detection, found.pha, found.arf, found.rmf) == (FIRST, pha, arf, rmf)


@given(order=st.permutations(range(6)))
@stable(40)
def test_the_later_version_wins_in_any_order(order: list[int]) -> None:
    every = [*files(FIRST, (1, 2, 9)), *files(FIRST, (3, 1, 10))]
    (found,) = group_products([FIRST], [every[number] for number in order])
    assert [getattr(found, kind).data for kind in KINDS] == [
        b"4938.0.43 pha 3",
        b"4938.0.43 arf 2",
        b"4938.0.43 rmf 10",
    ]


@given(order=st.permutations(range(9)))
@stable(40)
def test_an_interleaved_observation_gives_one_of_each_cycle(order: list[int]) -> None:
    """Next to its detection, e1 first, whatever the order of the files."""
    every = [*files(FIRST.with_cycle("e2")), *files(SECOND), *files(FIRST.with_cycle("e1"))]
    found = group_products([FIRST, SECOND], [every[number] for number in order])
    assert [str(one.detection) for one in found] == ["4938.0.43.e1", "4938.0.43.e2", "7867.0.2"]
    for one in found:
        for kind in KINDS:
            assert getattr(one, kind).data == f"{one.detection} {kind} 1".encode()


@given(
    own=st.sets(st.sampled_from([(cycle, kind) for cycle in ("e1", "e2") for kind in KINDS]), min_size=1),
    shared=st.sets(st.sampled_from(KINDS)),
)
@stable(100)
def test_a_cycle_takes_the_response_of_no_cycle_where_it_has_none(own: set[tuple[str, str]], shared: set[str]) -> None:
    """Never the spectrum: where that is of no cycle, it is one of its own."""
    every = [
        *(file for kind, file in zip(KINDS, files(FIRST), strict=True) if kind in shared),
        *(
            file
            for cycle in ("e1", "e2")
            for kind, file in zip(KINDS, files(FIRST.with_cycle(cycle)), strict=True)
            if (cycle, kind) in own
        ),
    ]
    found = {one.detection.cycle: one for one in group_products([FIRST], every)}
    assert set(found) == {cycle for cycle, _ in own} | ({""} if "pha" in shared else set())
    for cycle, one in found.items():
        for kind in KINDS:
            source = FIRST.with_cycle(cycle) if (cycle, kind) in own else FIRST
            there = (cycle, kind) in own or (kind in shared and (kind != "pha" or not cycle))
            assert getattr(one, kind) == (files(source)[KINDS.index(kind)] if there else None)


def test_detections_come_in_the_order_asked_for() -> None:
    every = [*files(FIRST), *files(SECOND)]
    for wanted in ([FIRST, SECOND], [SECOND, FIRST]):
        assert [one.detection for one in group_products(wanted, every)] == wanted


def test_files_of_others_are_passed_over() -> None:
    others = [
        *files(DetectionId(4938, 0, 44)),
        *files(DetectionId(4938, 1, 43)),
        *files(DetectionId(4939, 0, 43)),
        File("README", b""),
        File("4938.0.43", b""),
    ]
    (found,) = group_products([FIRST], [*others, *files(FIRST), *others])
    assert [getattr(found, kind) for kind in KINDS] == files(FIRST)
    (found,) = group_products([FIRST], others)
    assert (found.pha, found.arf, found.rmf) == (None, None, None)


@pytest.mark.parametrize("missing", KINDS)
def test_what_is_missing_is_none(missing: str) -> None:
    given = [file for file in files(FIRST) if missing not in file.name]
    (found,) = group_products([FIRST], given)
    assert [kind for kind in KINDS if getattr(found, kind) is None] == [missing]


def test_nothing_at_all_gives_one_without_files() -> None:
    assert [(one.detection, one.pha, one.arf, one.rmf) for one in group_products([SECOND, FIRST], [])] == [
        (SECOND, None, None, None),
        (FIRST, None, None, None),
    ]


def test_a_detection_asked_for_twice_or_by_its_cycle_comes_once() -> None:
    every = files(FIRST.with_cycle("e1"))
    assert len(group_products([FIRST, FIRST], every)) == 1
    assert [str(one.detection) for one in group_products([FIRST.with_cycle("e1")], every)] == ["4938.0.43.e1"]
