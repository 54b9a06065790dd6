"""A mirror loses nothing that it was given; what the disk has made of it since is told from what the archive had."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from builder.archive.mirror import Mirror, MirrorArchive, open_mirror, read_index
from builder.archive.packages import Package
from builder.archive.products import members
from builder.archive.values import SCHEMA
from builder.archive.votable import write_votable
from builder.dataset.catalog_file import read_catalog
from builder.dataset.layout import Manifest
from builder.model.errors import ArchiveError, CatalogError, OutputError, SettingError
from builder.model.ids import DetectionId
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.prepare import prepare
from builder.store.fill import download
from builder.use.export import export
from builder.use.verify import verify
from builder.workspace import make_plan, open_workspace
from tests.runs import command

pytestmark = pytest.mark.usefixtures("without_pictures")

CUTS = Selection(min_cnts=0, min_sig=0, max_theta=60)


def packages(mirror: Path) -> list[Package]:
    """What each tar of a mirror holds."""
    return [Package(0, tuple(map(DetectionId.parse, line["detections"]))) for line in read_index(mirror)]


def complete(mirror: Path, origin: Path) -> None:
    """What `download` does."""
    settings = Settings(str(origin), selection=CUTS)
    with open_mirror(mirror) as target:
        download(packages(origin), open_workspace(settings, mirror.parent / "c").archive, target)


def damage(path: Path) -> None:
    """Change one byte of a file in a tar."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def test_two_downloads_into_one_mirror_at_once_are_refused_and_no_row_is_lost(mirror: Path, tmp_path: Path) -> None:
    words = (
        "download",
        tmp_path / "new",
        "--archive",
        mirror,
        "--cache",
        tmp_path / "c",
        "--min-cnts",
        0,
        "--min-sig",
        0,
        "--max-theta",
        60,
    )
    first = Settings(str(mirror), selection=Selection(0, 0, 60, limit=5))
    with open_mirror(tmp_path / "new") as held:
        result = command(*words)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert f"another run is writing {tmp_path / 'new'}" in result.stderr
        with pytest.raises(OutputError, match="another run is writing"):
            prepare(tmp_path / "out", first, cache=tmp_path / "c", keep_downloads=tmp_path / "new")
        held.write_catalog(make_plan(open_workspace(first, tmp_path / "c"), first))
    assert command(*words).returncode == 0
    both = [Settings(str(folder), selection=CUTS) for folder in (mirror, tmp_path / "new")]
    rows = [len(make_plan(open_workspace(settings, tmp_path / "c"), settings).catalog) for settings in both]
    assert rows[0] == rows[1] > 5


def test_a_byte_that_the_disk_has_changed_is_no_rejection(mirror: Path, whole_mirror: Path, tmp_path: Path) -> None:
    settings = Settings(str(mirror), selection=CUTS)
    tar = mirror / read_index(mirror)[0]["file"]
    damage(tar)
    with pytest.raises(ArchiveError, match=r"\.tar is damaged: its checksum is wrong; remove it and download") as error:
        prepare(tmp_path / "out", settings, cache=tmp_path / "c")
    assert str(tar) in str(error.value)
    assert len(list((tmp_path / "c").rglob("*.arrows"))) < len(packages(whole_mirror))
    assert not (tmp_path / "out").exists()
    tar.unlink()
    complete(mirror, whole_mirror)
    manifest = prepare(tmp_path / "out", settings, cache=tmp_path / "c").manifest
    assert manifest.counts.reasons == {"damaged_gzip": 1, "missing_rmf": 1}  # those of the archive itself


def test_a_tar_that_was_cut_short_is_downloaded_again(mirror: Path, whole_mirror: Path) -> None:
    tar = mirror / read_index(mirror)[0]["file"]
    tar.write_bytes(tar.read_bytes()[:-5000])
    assert [package in Mirror(mirror) for package in packages(whole_mirror)] == [False, True]
    complete(mirror, whole_mirror)
    assert all(package in Mirror(mirror) for package in packages(whole_mirror))
    with MirrorArchive(mirror, "rel2.1").fetch(packages(whole_mirror)[0]) as fetched:
        fetched.check()
        with MirrorArchive(whole_mirror, "rel2.1").fetch(packages(whole_mirror)[0]) as original:
            both = (fetched, original)
            files = [[(file.name, file.data) for part in one.parts for file in members(part)] for one in both]
    assert files[0] == files[1]


def test_a_tar_is_on_disk_before_it_has_its_name(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, named = set(), []
    replace = Path.replace

    def watch(path: Path, target: Path) -> Path:
        named.append(target.suffix)
        assert path.stat().st_ino in flushed
        return replace(path, target)

    with open_mirror(tmp_path / "new") as new, MirrorArchive(mirror, "rel2.1").fetch(packages(mirror)[0]) as fetched:
        monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))
        monkeypatch.setattr(Path, "replace", watch)
        new.add(packages(mirror)[0], fetched)
        settings = Settings(str(mirror))
        new.write_catalog(make_plan(open_workspace(settings, tmp_path / "c"), settings))
    assert named == [".tar", ".vot"]


def test_a_package_is_held_only_once_its_line_in_the_index_is_on_disk(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, index = packages(mirror)[0], tmp_path / "new" / "packages.jsonl"
    flushed: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        if os.path.sameopenfile(descriptor, reader.fileno()):
            assert package not in new
            flushed.append(index.read_text())
        fsync(descriptor)

    with open_mirror(tmp_path / "new") as new, index.open() as reader:
        monkeypatch.setattr(os, "fsync", watch)
        with MirrorArchive(mirror, "rel2.1").fetch(package) as fetched:
            new.add(package, fetched)
        assert package in new
    assert flushed == [index.read_text()]
    assert [line["detections"] for line in read_index(tmp_path / "new")] == [list(map(str, package.detections))]


def test_a_catalog_that_the_service_cut_at_its_row_limit_is_refused(mirror: Path, tmp_path: Path) -> None:
    content = (mirror / "catalog.vot").read_bytes()
    assert content.count(b'"OK"') == 1
    (mirror / "catalog.vot").write_bytes(content.replace(b'"OK"', b'"OVERFLOW"'))
    with pytest.raises(CatalogError, match="row limit"):
        prepare(tmp_path / "out", Settings(str(mirror)), cache=tmp_path / "c")


def test_a_mirror_of_an_older_version_lacks_columns_and_those_of_the_cuts_it_must_have(
    mirror: Path, tmp_path: Path
) -> None:
    whole = read_catalog(mirror / "catalog.vot").to_pylist()

    def without(*names: str) -> None:
        kept = [name for name in SCHEMA.names if name not in names]
        content = write_votable(kept, [{name: row[name] for name in kept} for row in whole])
        (mirror / "catalog.vot").write_bytes(content)

    without("var_index_b", "phi")
    assert set(MirrorArchive(mirror, "rel2.1").catalog(CUTS).rows["phi"].to_pylist()) == {None}
    with open_mirror(mirror) as target:
        settings = Settings(str(mirror), selection=CUTS)
        target.write_catalog(make_plan(open_workspace(settings, tmp_path), settings))
    assert len(read_catalog(mirror / "catalog.vot")) == len(whole)
    without("theta")
    with pytest.raises(CatalogError, match="has no column theta"):
        MirrorArchive(mirror, "rel2.1").catalog(CUTS)


def test_two_mirrors_with_other_files_of_the_same_detections_share_no_finished_package(
    mirror: Path, tmp_path: Path
) -> None:
    prepare(tmp_path / "one", Settings(str(mirror), selection=CUTS), cache=tmp_path / "c")
    lines = read_index(mirror)
    damage(mirror / lines[0]["file"])
    lines[0]["sha256"] = hashlib.sha256((mirror / lines[0]["file"]).read_bytes()).hexdigest()
    (mirror / "packages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare(tmp_path / "two", Settings(str(mirror), selection=CUTS), cache=tmp_path / "c")
    rejected = [Manifest.read(tmp_path / name).counts.rejected for name in ("one", "two")]
    assert rejected[1] == rejected[0] + 1


def test_what_may_be_published_does_not_say_where_the_mirror_and_the_catalog_are(mirror: Path, tmp_path: Path) -> None:
    settings = Settings(str(mirror), catalog=str(mirror / "catalog.vot"))
    said = prepare(tmp_path / "out", settings, cache=tmp_path / "c").manifest.settings
    assert (said["archive"], said["catalog"]) == ("mirror", "catalog.vot")
    for path in (tmp_path / "out").rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    (tmp_path / "moved").mkdir()
    moved = mirror.rename(tmp_path / "moved" / "mirror")
    settings = Settings(str(moved), catalog=str(moved / "catalog.vot"))
    assert not prepare(tmp_path / "out", settings, cache=tmp_path / "c").fresh


def test_a_folder_that_was_made_from_a_mirror_is_told_where_it_is(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "out", Settings(str(mirror)), cache=tmp_path / "c")
    chosen = str(packages(mirror)[1].detections[0])
    for use in (
        lambda archive: verify(tmp_path / "out", load=False, recheck=1, archive=archive, cache=tmp_path / "c"),
        lambda archive: export(
            tmp_path / "out",
            tmp_path / "fits",
            layout="fits",
            detections=(chosen,),
            archive=archive,
            cache=tmp_path / "c",
        ),
    ):
        with pytest.raises(SettingError, match="made from a mirror named 'mirror', which is not here: give it as --ar"):
            use("")
        use(str(mirror))
    monkeypatch.chdir(tmp_path)
    assert not verify(tmp_path / "out", load=False, recheck=1, cache=tmp_path / "c").failed
