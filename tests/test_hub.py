"""Push against a hub on loopback, with the real client, and load_dataset from it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import close_session, constants, snapshot_download

from builder.model.errors import HubError, OutputError, SettingError
from builder.use.push import Pushed, push
from builder.use.verify import verify
from tests.folders import contents, rehash
from tests.hub_server import DROP, TOKEN, Hub
from tests.runs import python

NAME = "org/chandra_spectra"
COMMIT = rf"POST /api/datasets/{NAME}/commit/"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub() as server:
        yield server
    close_session()


def upload(folder: Path, hub: Hub, name: str = NAME, **options: object) -> Pushed:
    return push(folder, name, endpoint=hub.url, quick=True, **options)  # type: ignore[arg-type]


def on_hub(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    repo = hub.repos[NAME]
    commit = repo.find(revision)
    assert commit is not None
    return {path: data for path, data in repo.commits[commit].items() if path != ".gitattributes"}


def away(cwd: Path, **environment: str) -> dict[str, str]:
    """Name the environment of a process with an empty cache, for which only loopback is within reach."""
    wall = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    loopback = dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
    return {**wall, **loopback, "HF_HOME": str(cwd / "hf"), "HF_HUB_DISABLE_XET": "1", **environment}


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a bare process with that environment."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env={**os.environ, **away(cwd, **environment)},
    )


def main(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command `chandra-spectra`, as `run` runs it."""
    words = ["chandra-spectra", *map(str, arguments)]
    return run(
        f"import sys; sys.argv = {words!r}; from builder.cli.run import main; main()",
        cwd,
        PYTHONPATH=str(Path(__file__).parents[1]),
        **environment,
    )


def test_what_is_pushed_is_the_folder_in_one_commit(sample: Path, hub: Hub) -> None:
    pushed = upload(sample, hub)
    assert on_hub(hub) == contents(sample)
    assert dict(pushed.files) == {path: len(data) for path, data in contents(sample).items()}
    assert len(hub.repos[NAME].commits) == 2
    assert pushed.commit == hub.repos[NAME].branches["main"]
    assert not hub.repos[NAME].private


LOAD = """
import gc, json
from datasets import load_dataset
from torch.utils.data import DataLoader
from chandra_spectra import Stream, collate
found = {}
for config, rows in (("spectra", 62), ("counts", 62), ("ebounds", 1)):
    for streaming in (False, True):
        data = load_dataset("org/chandra_spectra", config, split="train", streaming=streaming)
        ids = [row.get("detection_id") for row in data]
        assert len(ids) == rows, (config, streaming)
        found[f"{config} {streaming}"] = ids
default = load_dataset("org/chandra_spectra", split="train", revision=REVISION)
lazy = load_dataset("org/chandra_spectra", split="train", streaming=True, columns=["name", "theta"],
                    filters=[("theta", "<", 2)])
found["columns"], found["theta"] = sorted(default.column_names), [row["theta"] for row in lazy]
stream = Stream("org/chandra_spectra@" + REVISION, columns=["object_id"], batch_size=40, shuffle=True)
for workers in (0, 1):
    loader = DataLoader(stream, batch_size=None, collate_fn=collate, num_workers=workers)
    assert len({number for batch in loader for number in batch["object_id"].tolist()}) == 62
assert len(next(iter(stream))) == 40  # and leaves off
print(json.dumps(found))
del data, lazy  # as the card says of streams
gc.collect()
"""


def test_prepare_verify_push_and_load_from_the_hub_with_a_fresh_cache(hub: Hub, tmp_path: Path) -> None:
    sample = tmp_path / "chandra_spectra_new"
    for step in (("prepare", sample, "--archive", "embedded", "--splits", "none"), ("verify", sample, "--recheck", 3)):
        result = main(*step, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    result = main("push", sample, NAME, "--tag", "v1", cwd=tmp_path, HF_ENDPOINT=hub.url)
    assert result.returncode == 0, result.stderr
    assert f'load_dataset("{NAME}", revision="v1")' in result.stdout
    assert TOKEN not in result.stdout + result.stderr
    again = main("push", sample, NAME, "--tag", "v1", "--quick", cwd=tmp_path, HF_ENDPOINT=hub.url)
    assert (again.returncode, again.stderr) == (0, "")
    assert "all of it was there before" in again.stdout
    assert on_hub(hub, "v1") == on_hub(hub) == contents(sample)
    found = python(LOAD.replace("REVISION", "'v1'"), cwd=tmp_path, **away(tmp_path, HF_ENDPOINT=hub.url))
    table = pq.read_table(sample / "data")
    ids = table["detection_id"].to_pylist()
    for config in ("spectra", "counts"):
        assert found[f"{config} False"] == found[f"{config} True"] == ids
    assert found["columns"] == sorted(table.column_names)
    assert found["theta"] == [theta for theta in table["theta"].to_pylist() if theta is not None and theta < 2]


def test_a_dry_run_lists_files_and_sizes_and_asks_the_hub_nothing(sample: Path, hub: Hub, tmp_path: Path) -> None:
    result = main("push", sample, NAME, "--dry-run", cwd=tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN="")
    assert result.returncode == 0, result.stderr
    assert hub.requests == []
    for path in contents(sample):
        assert path in result.stdout
    assert "kB" in result.stdout


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_pushing_again_changes_nothing(mode: str, sample: Path, hub: Hub) -> None:
    hub.mode = mode
    first, second = upload(sample, hub), upload(sample, hub)
    assert first.changed and not second.changed
    assert first.commit == second.commit
    assert on_hub(hub) == contents(sample)


@pytest.mark.parametrize(
    "fault",
    [(COMMIT, DROP, {}), (COMMIT, 500, {}), (r"PUT /blobs/", 403, {}), (r"POST /api/datasets/.*preupload", 400, {})],
)
def test_a_push_that_is_cut_off_is_resumed_and_sends_nothing_twice(
    fault: tuple[str, int, dict[str, str]], sample: Path, hub: Hub
) -> None:
    hub.mode = "lfs"
    hub.faults = [fault]
    with pytest.raises(HubError) as caught:
        upload(sample, hub)
    assert "\n" not in str(caught.value)
    assert on_hub(hub) == {}
    kept = dict(hub.blobs)
    hub.requests.clear()
    upload(sample, hub)
    assert on_hub(hub) == contents(sample)
    sent = [request.rpartition("/")[2] for request in hub.requests if request.startswith("PUT ")]
    assert not set(sent) & set(kept)
    assert len(sent) + len(kept) == len(contents(sample)) - 1  # all but the card


def test_a_killed_push_leaves_the_hub_as_it_was_and_is_resumed(sample: Path, hub: Hub, tmp_path: Path) -> None:
    die = "import os, huggingface_hub.hf_api as h; h.HfApi.create_commit = lambda *_, **__: os._exit(9); "
    code = (
        f"import sys; sys.argv = ['chandra-spectra', 'push', {str(sample)!r}, {NAME!r}, '--quick']; {die}"
        "from builder.cli.run import main; main()"
    )
    killed = run(code, tmp_path, HF_ENDPOINT=hub.url, PYTHONPATH=str(Path(__file__).parents[1]))
    assert killed.returncode == 9, killed.stderr
    assert on_hub(hub) == {}
    upload(sample, hub)
    assert on_hub(hub) == contents(sample)


def test_shards_that_are_no_more_go_in_the_same_commit_and_nothing_else_does(sample: Path, hub: Hub) -> None:
    upload(sample, hub)
    repo = hub.repos[NAME]
    stale = (
        "data/train-00001-of-00002.parquet",
        "counts/test-00000-of-00001.parquet",
        "responses/train-00000-of-00001.parquet",
    )
    old = on_hub(hub) | dict.fromkeys(stale, b"old") | {"notes.md": b"mine", "data/notes.md": b"mine"}
    repo.commit("main", old)
    upload(sample, hub)
    assert on_hub(hub) == contents(sample) | {"notes.md": b"mine", "data/notes.md": b"mine"}
    assert len(repo.commits) == 4


def test_a_branch_and_a_private_repository_are_made(sample: Path, hub: Hub) -> None:
    upload(sample, hub, revision="next", private=True)
    assert hub.repos[NAME].private
    assert on_hub(hub, "next") == contents(sample)
    assert on_hub(hub) == {}


def test_nothing_private_goes_into_a_public_repository(sample: Path, hub: Hub) -> None:
    upload(sample, hub)
    with pytest.raises(HubError, match="is there and public"):
        upload(sample, hub, private=True)


def test_a_tag_of_another_commit_is_not_moved(sample: Path, folder: Path, hub: Hub) -> None:
    upload(sample, hub, tag="v1")
    upload(sample, hub, tag="v1")
    rehash(folder, lambda manifest: manifest.update(seconds=1.0))
    with pytest.raises(HubError, match="the tag v1 names another commit"):
        upload(folder, hub, tag="v1")
    assert on_hub(hub, "v1") == contents(sample)


@pytest.mark.parametrize("damage", ["flip", "script", "extra"])
def test_a_folder_that_is_not_what_its_manifest_says_is_not_pushed(damage: str, folder: Path, hub: Hub) -> None:
    if damage == "flip":
        (folder / "README.md").write_text("mine")
    elif damage == "script":
        (folder / "chandra_spectra.py").write_text("import os")
    else:
        (folder / "data" / "train-00001-of-00002.parquet").write_text("mine")
    with pytest.raises(OutputError, match=r"is not pushed \(failures: 1\), the first: "):
        upload(folder, hub)
    assert NAME not in hub.repos


def test_an_edited_card_is_pushed_and_the_manifest_follows_it(folder: Path, hub: Hub) -> None:
    (folder / "README.md").write_text((folder / "README.md").read_text() + "mine\n")
    upload(folder, hub, keep_card=True)
    assert on_hub(hub) == contents(folder)
    assert verify(folder, content=False, load=False).failures == []


@pytest.mark.parametrize("local", [True, False])
def test_what_a_hub_gives_back_verifies_and_is_pushed_again(
    local: bool, sample: Path, hub: Hub, tmp_path: Path
) -> None:
    upload(sample, hub)
    folder, cache = (tmp_path / "chandra_spectra", None) if local else (None, tmp_path)
    back = Path(snapshot_download(NAME, repo_type="dataset", endpoint=hub.url, local_dir=folder, cache_dir=cache))
    assert (back / ".gitattributes").exists() and (back / ".cache").exists() == local
    assert verify(back, content=False, load=False).failures == []
    assert not upload(back, hub).changed


def test_a_script_is_not_pushed_even_if_the_manifest_names_it(folder: Path, hub: Hub) -> None:
    (folder / "chandra_spectra.py").write_bytes(b"")
    entry = {"path": "chandra_spectra.py", "rows": None, "bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    rehash(folder, lambda manifest: manifest["files"].append(entry))
    with pytest.raises(OutputError, match="refuses a repository with a script"):
        upload(folder, hub)
    assert NAME not in hub.repos


def test_a_repository_with_a_script_of_its_name_is_refused(sample: Path, hub: Hub) -> None:
    upload(sample, hub)
    hub.repos[NAME].commit("main", on_hub(hub) | {"chandra_spectra.py": b"import os"})
    with pytest.raises(HubError, match=r"holds chandra_spectra\.py"):
        upload(sample, hub)


@pytest.mark.parametrize("name", ["chandra_spectra", "org/a/b", "org/", "org/a b"])
def test_a_wrong_name_is_refused_before_anything_is_done(name: str, sample: Path, hub: Hub) -> None:
    with pytest.raises(SettingError, match="is not organisation/name"):
        upload(sample, hub, name)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((r"GET /api/whoami", 429, {"Retry-After": "42"}), "too many requests: wait 42 s"),
        ((r"POST /api/repos/create", 429, {}), "too many requests: wait some minutes"),
        ((r"POST /api/repos/create", 402, {}), "answered 402 to POST /api/repos/create"),
        ((COMMIT, 412, {}), "answered 412"),
        ((COMMIT, 404, {"X-Error-Code": "RepoNotFound"}), "there is no org/chandra_spectra"),
        (
            (COMMIT, 403, {"X-Error-Message": "read-only token"}),
            r"may not write to org/chandra_spectra .*read-only token",
        ),
        ((COMMIT, DROP, {}), "was cut off: .*run the same command again to go on"),
    ],
)
def test_what_a_hub_refuses_is_one_clear_line(
    fault: tuple[str, int, dict[str, str]], words: str, sample: Path, hub: Hub
) -> None:
    hub.faults = [fault]
    with pytest.raises(HubError, match=words) as caught:
        upload(sample, hub)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        ("hf_wrong", NAME, "refuses the token"),
        ("", NAME, "no token: log in with `hf auth login`"),
        (TOKEN, "stranger/chandra_spectra", 'the rights to create a dataset under the namespace "stranger"'),
        (None, NAME, "was cut off"),
    ],
    ids=["wrong token", "no token", "foreign namespace", "no network"],
)
def test_the_command_says_one_clear_line_and_exits_with_1(
    token: str | None, name: str, words: str, sample: Path, hub: Hub, tmp_path: Path
) -> None:
    endpoint, token = (hub.url, token) if token is not None else ("http://127.0.0.1:9", TOKEN)
    result = main("push", sample, name, "--quick", cwd=tmp_path, HF_ENDPOINT=endpoint, HF_TOKEN=token)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("chandra-spectra: ") and words in result.stderr
    assert "hf_" not in result.stderr + result.stdout
