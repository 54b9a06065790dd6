"""A folder on an object store is the same bytes as on disk, and one that has a manifest is whole."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest

from builder.archive.packages import Package
from builder.cli.terminal import show_uploaded
from builder.dataset.layout import UPLOADING_FILE
from builder.model.errors import OutputError, SettingError, StoreError
from builder.model.selection import Selection
from builder.model.settings import Settings
from builder.model.splits import Splits
from builder.prepare import prepare
from builder.store.packages import package_result
from builder.workspace import default_cache, make_plan, open_workspace
from tests import folders
from tests.runs import command

s3fs = pytest.importorskip("s3fs", reason="the extra [s3] is not installed")

# The first detections of the sample whose sources are in two splits.
SETTINGS = Settings("embedded", selection=Selection(limit=12), splits=Splits(divided=False))
DIVIDED = Settings("embedded", selection=Selection(limit=12))
WORDS = ("--archive", "embedded", "--limit", "12", "--splits", "none", "--workers", "1")


class S3:
    """An S3 service on loopback: moto's, behind a door that notes what is asked and may refuse to take more."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log_request(self, *_: Any) -> None:
                pass

        self.log: list[tuple[str, str]] = []
        self.puts_left = sys.maxsize
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        self.log.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if environ["REQUEST_METHOD"] == "PUT":
            self.puts_left -= 1
            if self.puts_left < 0:
                start("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        return self._app(environ, start)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def service() -> Iterator[S3]:
    running = S3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": running.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield running
        s3fs.S3FileSystem.clear_instance_cache()
    running.close()


@pytest.fixture
def s3(service: S3) -> Iterator[S3]:
    service.log.clear()
    yield service
    service.puts_left = sys.maxsize


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local(SETTINGS, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local(DIVIDED, tmp_path_factory.mktemp("divided"))


def local(settings: Settings, place: Path) -> Path:
    prepare(place / "chandra_spectra", settings)
    return place / "chandra_spectra"


def contents(folder: Path | str) -> dict[str, bytes]:
    """Every file of a folder or a URL, with a manifest that does not say when it was made and how fast."""
    files = folders.contents(folder)
    if "manifest.json" in files:
        manifest = json.loads(files["manifest.json"]) | {"created": "", "seconds": 0}
        files["manifest.json"] = json.dumps(manifest).encode()
    return files


def copied(folder: Path, url: str) -> str:
    """The URL, with a copy of the folder there."""
    fs, root = fsspec.url_to_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            fs.put_file(str(path), f"{root}/{path.relative_to(folder)}")
    return url


def loaded(words: str) -> Any:
    """What the last line of a summary prints when it is run."""
    names: dict[str, Any] = {}
    exec(words.partition("python -c '")[2].rstrip().removesuffix("'").replace("print(", "data = ("), names)
    return names["data"]


def test_store_and_output_on_s3_give_the_same_bytes_and_load_as_the_command_says(s3: S3, plain: Path) -> None:
    url, words = "s3://bucket/one/chandra_spectra", (*WORDS, "--store", "s3://bucket/store")
    result = command("prepare", url, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert contents(url) == contents(plain)
    assert any(path.endswith(".arrows") for _, path in s3.log)
    s3.log.clear()
    again = command("prepare", f"{url}/", *words)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert {method for method, _ in s3.log} <= {"GET", "HEAD"} and len(s3.log) <= 3
    data = loaded(result.stdout)
    assert data["train"].with_format("arrow")[:].to_pylist() == pq.read_table(plain / "data").to_pylist()


def test_a_divided_folder_at_a_url_loads_as_the_command_says(divided: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = copied(divided, "memory://divided/chandra_spectra")
    show_uploaded(url, *prepare(url, DIVIDED))
    text = capsys.readouterr().out
    assert "nothing to do" in text
    rows = {path.name.partition("-")[0]: pq.read_metadata(path).num_rows for path in (divided / "data").iterdir()}
    assert len(rows) > 1 and {split: len(data) for split, data in loaded(text).items()} == rows


def test_other_settings_are_refused_and_force_replaces_what_was_prepared_and_nothing_else(
    plain: Path, divided: Path
) -> None:
    url = copied(divided, "memory://replaced/chandra_spectra")
    fsspec.filesystem("memory").pipe_file("/replaced/chandra_spectra/data/notes.txt", b"mine")
    with pytest.raises(OutputError, match="was prepared with other settings"):
        prepare(url, SETTINGS)
    assert contents(url) == {**contents(divided), "data/notes.txt": b"mine"}
    manifest, done = prepare(url, SETTINGS, force=True)
    assert done and contents(url) == {**contents(plain), "data/notes.txt": b"mine"}
    assert contents(divided).keys() - contents(plain).keys()  # so some had to go
    assert prepare(url, SETTINGS) == (manifest, False)


def test_an_upload_that_is_cut_off_leaves_no_manifest_and_the_next_run_completes_it(
    s3: S3, plain: Path, divided: Path
) -> None:
    url = copied(divided, "s3://bucket/cut/chandra_spectra")
    s3.puts_left = 0
    with pytest.raises(OutputError, match=rf"cannot write {url}/{UPLOADING_FILE}: .*Access Denied"):
        prepare(url, SETTINGS, force=True)
    assert contents(url) == contents(divided)  # it could not even begin
    s3.puts_left = 4
    with pytest.raises(OutputError, match=rf"cannot write {url}/\S+: .*Access Denied; the same command") as caught:
        prepare(url, SETTINGS, force=True)
    assert "\n" not in str(caught.value)
    assert not [path for path in default_cache().glob("uploads/*") if path.is_dir()]
    assert "manifest.json" not in contents(url) and UPLOADING_FILE in contents(url)
    s3.puts_left = sys.maxsize
    prepare(url, SETTINGS)
    assert contents(url) == contents(plain)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_prepared_folder_is_left_alone(force: bool) -> None:
    files = {"thesis/data/a.txt": b"a", "file": b"b", "json/manifest.json": b'{"created": "", "seconds": 0}'}
    fsspec.filesystem("memory").pipe({f"/other/{path}": content for path, content in files.items()})
    for name, why in (("thesis", "something else"), ("file", "is a file"), ("json", "is not the manifest")):
        with pytest.raises(OutputError, match=why):
            prepare(f"memory://other/{name}", SETTINGS, force=force)
    assert contents("memory://other") == files


def test_a_damaged_file_is_named_and_force_mends_it(plain: Path) -> None:
    url = copied(plain, "memory://damaged/chandra_spectra")
    memory, root = fsspec.filesystem("memory"), "/damaged/chandra_spectra"
    for damage, named in (
        (lambda: memory.pipe_file(f"{root}/README.md", b"short"), "README.md is not what the manifest says: .*--force"),
        (lambda: memory.rm_file(f"{root}/README.md"), "README.md is not what the manifest says: .*--force"),
        (lambda: memory.pipe_file(f"{root}/manifest.json", b"{"), "manifest.json is damaged .*--force"),
    ):
        damage()
        with pytest.raises(OutputError, match=f"{url}/{named}"):
            prepare(url, SETTINGS)
    prepare(url, SETTINGS, force=True)
    assert contents(url) == contents(plain)


@pytest.mark.parametrize(
    ("url", "error", "why"),
    [
        ("nonsense://x/y", OutputError, "cannot use nonsense://x/y: Protocol not known"),
        ("gs://bucket/x", OutputError, "cannot use gs://bucket/x: Please install gcsfs"),
        ("s3://nowhere/x", OutputError, "cannot read s3://nowhere/x: The specified bucket does not exist"),
        ("s3://", SettingError, "names no folder"),
        ("memory://", SettingError, "names no folder"),
        ("file:///tmp/x", SettingError, "as a path"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_clear_line(s3: S3, url: str, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why) as caught:
        prepare(url, SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [("s3://bucket/x",), ("x", "--store", "s3://bucket/store")])
def test_without_s3fs_the_command_says_what_to_install(words: tuple[str, ...], tmp_path: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from builder.cli.run import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "prepare", *words, *WORDS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "pip install 'chandra-spectra[s3]'" in result.stderr and not list(tmp_path.iterdir())


def test_an_hdf5_file_beside_a_url_is_refused(tmp_path: Path) -> None:
    result = command("prepare", "memory://x/y", *WORDS, "--output-file", tmp_path / "all.hdf5")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert "--output-file" in result.stderr and not list(tmp_path.iterdir())


def test_a_store_on_s3_that_refuses_or_knows_nobody_is_one_clear_line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_workspace(SETTINGS, store="s3://bucket/refused")
    package = make_plan(source, SETTINGS).packages[0]
    s3.puts_left = 0
    with pytest.raises(StoreError, match=r"cannot write s3://bucket/refused/\S+: .*Access Denied; finished") as caught:
        source.store.write(package, package_result(package.detections, ()))
    assert "\n" not in str(caught.value)
    assert package not in source.store
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    for use in (lambda: source.store.read(package), lambda: package in source.store):
        with pytest.raises(StoreError, match=r"cannot read s3://bucket/refused\S+: Unable to locate credential"):
            use()
    with pytest.raises(OutputError, match="cannot read s3://bucket/x: Unable to locate credentials"):
        prepare("s3://bucket/x", SETTINGS)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_one_clear_line_and_is_not_made(s3: S3, tmp_path: Path) -> None:
    result = command("prepare", tmp_path / "out", *WORDS, "--store", "s3://slip/store")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "s3://slip/store" in result.stderr and "The specified bucket does not exist" in result.stderr
    source = open_workspace(SETTINGS, store="s3://slip/store")
    package = make_plan(source, SETTINGS).packages[0]
    with pytest.raises(StoreError, match=r"cannot write .*The specified bucket does not exist"):
        source.store.write(package, package_result(package.detections, ()))
    assert "PUT" not in {method for method, path in s3.log if path.strip("/") == "slip"}
    assert not fsspec.filesystem("s3").exists("slip")


def test_a_file_system_with_folders_has_them_made(tmp_path: Path) -> None:
    source = open_workspace(SETTINGS, store=f"file://{tmp_path}/deep/store")
    package = make_plan(source, SETTINGS).packages[0]
    assert source.store.finished([package]) == set()
    source.store.write(package, package_result(package.detections, ()))
    assert source.store.finished([package]) == {package} and package in source.store


def test_a_store_on_s3_takes_a_request_to_list_and_one_for_each_package_that_is_written_or_read(s3: S3) -> None:
    source = open_workspace(SETTINGS, store="s3://bucket/asked")
    detections = make_plan(source, SETTINGS).packages[0].detections
    packages = [Package(0, (one,)) for one in detections]
    for package in packages[1:]:
        source.store.write(package, package_result(package.detections, ()))
    assert [method for method, _ in s3.log] == ["PUT"] * len(packages[1:])
    s3.log.clear()
    assert source.store.finished(packages) == {*packages[1:]}
    assert [method for method, _ in s3.log] == ["GET"]
    s3.log.clear()
    for package in packages[1:]:
        source.store.read(package)
    assert [method for method, _ in s3.log] == ["GET"] * len(packages[1:])


def test_a_package_that_another_machine_finishes_after_a_listing_is_found(s3: S3) -> None:
    source = open_workspace(SETTINGS, store="s3://bucket/meanwhile")
    first, second = (Package(0, (one,)) for one in make_plan(source, SETTINGS).packages[0].detections[:2])
    source.store.write(first, package_result(first.detections, ()))
    assert source.store.finished([first, second]) == {first}
    code = "import pickle, sys; store, package, result = pickle.load(sys.stdin.buffer); store.write(package, result)"
    written = pickle.dumps((source.store, second, package_result(second.detections, ())))
    subprocess.run([sys.executable, "-c", code], input=written, check=True)
    assert second in source.store
    assert source.store.finished([first, second]) == {first, second}


def test_two_runs_do_not_write_to_one_url_at_once(plain: Path) -> None:
    url = "memory://busy/chandra_spectra"

    def again(step: str, *_: int) -> None:
        if step == "write":
            with pytest.raises(OutputError, match=f"^another run is writing {url}"):
                prepare(url, SETTINGS)

    prepare(url, SETTINGS, progress=again)
    assert contents(url).keys() == contents(plain).keys()


def test_what_a_run_left_that_was_killed_just_before_its_end_is_removed(plain: Path) -> None:
    url = copied(plain, "memory://left/chandra_spectra")
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/{UPLOADING_FILE}", b'{"dataset": "chandra_spectra", "files": []}')
    assert prepare(url, SETTINGS)[1] is False
    assert contents(url) == contents(plain)


def test_an_output_that_nothing_can_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    result = command("prepare", "http://127.0.0.1/out", "--archive", "embedded", cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "nothing can be written there" in result.stderr
    assert list(tmp_path.iterdir()) == []
