"""A folder or a file that is written is there whole or not at all, whoever else writes it and whenever a run dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.files import recover_folder, staging_folder, workplace, write_whole
from builder.model.errors import OutputError


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    with workplace(output) as place, staging_folder(output, place) as folder:
        yield folder


class Death(BaseException):
    """After it nothing is done any more, as after a kill: no cleaning up either."""


def write(output: Path, text: str) -> None:
    recover_folder(output)
    with staging(output) as folder:
        for name in "ab":
            (folder / name).write_text(text)


def dies(output: Path, text: str, calls: int) -> bool:
    """Write, with no more than so many calls of the file system; whether they were too few."""
    left = iter(range(calls))

    def mortal(call: Callable[..., object]) -> Callable[..., object]:
        def mortal_call(*arguments: object, **options: object) -> object:
            if next(left, None) is None:
                raise Death
            return call(*arguments, **options)

        return mortal_call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        try:
            write(output, text)
        except Death:
            return True
    return False


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


def test_a_run_that_dies_at_any_call_leaves_the_old_folder_whole_or_the_new_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    seen = set()
    for calls in itertools.count():
        write(output, "old")
        died = dies(output, "new", calls)
        recover_folder(output)
        assert texts(output) in (["old"] * 2, ["new"] * 2), calls
        seen.add((died, texts(output)[0]))
        write(output, "newer")
        assert texts(output) == ["newer"] * 2
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if not died:
            break
    assert seen == {(True, "old"), (True, "new"), (False, "new")}


def test_who_is_refused_as_another_writes_takes_nothing_of_the_other_away(tmp_path: Path) -> None:
    """Within one process, where both have the same pid, as they may in two containers."""
    with staging(tmp_path / "out") as place:
        (place / "half").write_text("mine")
        with pytest.raises(OutputError, match="another run is writing"), staging(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "half").read_text() == "mine"


def test_two_runs_write_a_file_at_once_and_each_is_whole(tmp_path: Path) -> None:
    with write_whole(tmp_path / "out") as first:
        first.write_text("first")
        with write_whole(tmp_path / "out") as second:
            second.write_text("second")
        assert (tmp_path / "out").read_text() == "second"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "first")]


def test_where_nothing_can_be_locked_a_run_removes_no_other_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with workplace(tmp_path / "out") as place:
        (place / "half").touch()
        write(tmp_path / "out", "theirs")
        assert (place / "half").exists()
    assert texts(tmp_path / "out") == ["theirs"] * 2


def test_what_another_user_s_killed_run_left_is_in_nobody_s_way(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123abcd.incomplete"
    left.mkdir()
    (left / ".lock").symlink_to(tmp_path / "nowhere" / "lock")  # cannot be opened
    write(tmp_path / "out", "new")
    assert texts(tmp_path / "out") == ["new"] * 2


def test_folders_that_were_made_for_what_then_fails_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="no"), workplace(tmp_path / "there" / "a" / "b" / "out"):
        raise ValueError("no")
    assert list((tmp_path / "there").iterdir()) == []


def test_what_a_killed_run_left_of_a_file_is_removed_and_that_of_another_file_is_not(tmp_path: Path) -> None:
    for name in (".a.png.0123abcd.partial", ".b.png.0123abcd.partial"):
        (tmp_path / name).touch()
    with write_whole(tmp_path / "a.png") as partial:
        partial.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.png.0123abcd.partial", "a.png"]


def test_a_file_that_is_not_written_after_all_leaves_no_folder(tmp_path: Path) -> None:
    with contextlib.suppress(ValueError), write_whole(tmp_path / "a" / "b" / "file") as partial:
        partial.touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    replace = Path.replace

    def watch(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(os.fstat(descriptor).st_size))
    monkeypatch.setattr(Path, "replace", watch)
    with write_whole(tmp_path / "a") as partial:
        partial.write_text("four")
    assert steps == [4, "rename"]


def test_the_new_folder_is_on_disk_before_the_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, moved = tmp_path / "out", list[str]()
    flushed: set[int] = set()
    replace = Path.replace

    def watch(path: Path, target: Path) -> Path:
        moved.append(path.name)
        wanted = {tmp_path} if path.name == ".out.old" else {folder, *folder.rglob("*")}
        assert {one.stat().st_ino for one in wanted} <= flushed
        return replace(path, target)

    output.mkdir()
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "replace", watch)
    with staging(output) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "shard").write_text("new")
    assert moved == ["out", folder.name, ".out.old"]
