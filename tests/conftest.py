"""Every test is offline: caches in a temporary folder, no tokens, no sockets beyond loopback."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.runs import command

_CACHE = tempfile.mkdtemp(prefix="chandra-spectra-tests-")
_SHARED = Path(os.environ.setdefault("CHANDRA_SPECTRA_TESTS", _CACHE))
"""Of the process that started this one, if any did: what is made there once serves all."""

# Before anything imports datasets or huggingface_hub, which read these once.
os.environ.update(
    HF_HOME=_CACHE + "/hf",
    CHANDRA_SPECTRA_CACHE=_CACHE + "/chandra",
    HF_HUB_OFFLINE="0",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    COLUMNS="120",
    # Threads that spin as they wait for each other take the cores from other tests.
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
)
# What a user or a CI service may have set: tokens, how rich and typer print, and proxies, which loopback has none of.
_UNSET = {
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_ENDPOINT",
    "FORCE_COLOR",
    "NO_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "TERMINAL_WIDTH",
    "LINES",
}
for name in [name for name in os.environ if name in _UNSET or name.lower().endswith("_proxy")]:
    del os.environ[name]

_connect = socket.socket.connect


def _connect_on_loopback(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = address[0]  # type: ignore[index]
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise OSError(f"a test tried to reach {host}")
    _connect(self, address)  # type: ignore[arg-type]


socket.socket.connect = _connect_on_loopback  # type: ignore[method-assign,assignment]


def pytest_xdist_auto_num_workers() -> int:
    """Run one more test at a time than there are cores: many wait, for a timeout or for a process."""
    return (os.cpu_count() or 1) + 1


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Let the first process that asks for a folder make it, for all of them."""
    folder, made = _SHARED / name, _SHARED / f"{name}.made"
    with FileLock(_SHARED / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def sample() -> Path:
    """The embedded sample in one split, prepared by the command into a folder named chandra_spectra."""

    def make(place: Path) -> None:
        folder = place / "chandra_spectra"
        result = command("prepare", folder, "--archive", "embedded", "--splits", "none", "--workers", 1)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""

    return once("sample", make) / "chandra_spectra"


@pytest.fixture(scope="session")
def full_sample() -> Path:
    """The embedded sample as `make sample` prepares it: in splits, with all configs, 64 bins and labels."""
    from builder.model.settings import Settings
    from builder.prepare import prepare

    labels = str(Path(__file__).parents[1] / "examples" / "sample_classes.csv")
    settings = Settings(archive="embedded", responses=True, bins=64, sources=True, labels=labels)
    return once("full", lambda place: prepare(place / "chandra_spectra", settings)) / "chandra_spectra"


@pytest.fixture
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw none but in tests marked so: of what others do many times over they take most."""
    import builder.dataset.card

    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr(builder.dataset.card, "draw_pictures", lambda folder, scalars: [])


@pytest.fixture(scope="session")
def whole_mirror() -> Path:
    """The embedded archive as a mirror."""
    from builder.simulator.embedded import make_embedded_mirror

    return once("mirror", make_embedded_mirror)


@pytest.fixture
def folder(sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample that a test may damage."""
    return Path(shutil.copytree(sample, tmp_path / "chandra_spectra"))


@pytest.fixture
def mirror(whole_mirror: Path, tmp_path: Path) -> Path:
    """A mirror that a test may damage."""
    return Path(shutil.copytree(whole_mirror, tmp_path / "mirror"))
