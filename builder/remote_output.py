"""A prepared folder on any file system of fsspec, such as an object store.

None of these puts a whole folder in place at once, so the manifest tells: it is removed before anything else is
touched, and written last. A folder that has a manifest is whole; one that has a list of files being uploaded in its
place was cut off half way, and the same command completes it. Only files that a manifest or such a list names are
ever removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.dataset.layout import HDF5_FILE, MANIFEST_FILE, check_settings
from builder.files import hold, open_url, reported
from builder.model.errors import OutputError, SettingError
from builder.model.settings import Settings
from builder.model.text import Progress, silent
from builder.prepare import Prepared, prepare
from builder.workspace import default_cache, describe

__all__ = ["UPLOADING_FILE", "prepare_remote"]

UPLOADING_FILE = "uploading.json"
"""There while files are uploaded: names all that may be there, of the old folder and the new one."""


def prepare_remote(
    url: str,
    settings: Settings,
    *,
    cache: Path | None = None,
    force: bool = False,
    retry_rejected: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> Prepared:
    """`builder.prepare.prepare`, and upload what it makes.

    Parameters
    ----------
    url : str
        The folder, such as ``s3://bucket/chandra_spectra``. Credentials are those that the back-end finds.
    settings, cache, force, retry_rejected, progress, options
        As for `prepare`. The folder is prepared below the cache, and removed from there in any case.

    Returns
    -------
    Prepared

    Raises
    ------
    ChandraSpectraError
        As `prepare`, and OutputError if the file system refuses. A folder that is cut off has no manifest.
    """
    there = _look(url)
    finished = _finished(there, settings, force)
    if finished is not None and not retry_rejected:
        if UPLOADING_FILE in there.sizes:  # of a run that was killed just before its end
            with _upload_place(cache or default_cache(), url):
                there.remove(UPLOADING_FILE)
        return Prepared(finished, False)
    with _upload_place(cache or default_cache(), url) as folder:
        prepared = prepare(folder, settings, cache=cache, retry_rejected=retry_rejected, progress=progress, **options)
        _upload(folder, prepared.manifest, there, progress)
    return prepared


@dataclass(frozen=True, slots=True)
class _Folder:
    """What there is: bytes of each file by its path below the folder, and the manifest as far as it can be read."""

    url: str
    fs: Any
    root: str
    sizes: dict[str, int]

    def read(self, path: str) -> Any:
        """The content of a JSON file; None where it is not there, or is not what this module and `prepare` write."""
        if path not in self.sizes:
            return None
        with reported(OutputError, f"cannot read {self.url}/{path}"):
            content = self.fs.cat_file(f"{self.root}/{path}")
        try:
            value = json.loads(content)
        except ValueError:
            return None
        return value if isinstance(value, dict) and value.get("dataset") == "chandra_spectra" else None

    def put(self, folder: Path, path: str) -> None:
        """Upload a file of a local folder."""
        with reported(OutputError, f"cannot write {self.url}/{path}", "; the same command goes on from here"):
            self.fs.put_file(str(folder / path), f"{self.root}/{path}")

    def remove(self, path: str) -> None:
        with reported(OutputError, f"cannot remove {self.url}/{path}"):
            self.fs.rm_file(f"{self.root}/{path}")


def _look(url: str) -> _Folder:
    if url.startswith(("file:", "local:")):
        raise SettingError(f"{url}: give a folder of this machine as a path")
    if url.startswith(("http:", "https:")):
        raise SettingError(f"{url}: nothing can be written there: give a folder, or a URL such as s3://bucket/folder")
    fs, root = open_url(url, OutputError)
    if not root.strip("/"):
        raise SettingError(f"{url} names no folder: give one such as s3://bucket/chandra_spectra")
    with reported(OutputError, f"cannot read {url}"):
        fs.invalidate_cache()  # another process may have written since this one looked
        found = fs.find(root, detail=True)
    if root in found:
        raise OutputError(f"{url} is a file: give the name of a folder")
    # Consoles of object stores stand for an empty folder with an empty object whose name ends in a slash.
    sizes = {path.removeprefix(f"{root}/"): info["size"] for path, info in found.items() if not path.endswith("/")}
    return _Folder(url.rstrip("/"), fs, root, sizes)


def _finished(there: _Folder, settings: Settings, force: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is what is asked for, None where there is work to do."""
    if not there.sizes or (MANIFEST_FILE not in there.sizes and there.read(UPLOADING_FILE)):
        return None
    if MANIFEST_FILE not in there.sizes:
        raise OutputError(f"{there.url} holds something else than a prepared folder: choose another name")
    manifest: dict[str, Any] | None = there.read(MANIFEST_FILE)
    if force and (manifest or HDF5_FILE in there.sizes):  # the second: damaged, but plainly one of ours
        return None
    if manifest is None:
        raise OutputError(
            f"{there.url}/{MANIFEST_FILE} is not the manifest of a prepared folder: choose another name, "
            "or --force if it is damaged"
        )
    check_settings(manifest, describe(settings), there.url)
    for file in manifest["files"]:
        if there.sizes.get(file["path"]) != file["bytes"]:
            path = f"{there.url}/{file['path']}"
            raise OutputError(f"{path} is not what the manifest says: prepare the folder again with --force")
    return manifest


@contextlib.contextmanager
def _upload_place(cache: Path, url: str) -> Iterator[Path]:
    """A folder in the cache to prepare in, for as long as it is needed; what a killed run left of it is removed."""
    place = cache / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        with reported(OutputError, f"cannot use {place}"):
            place.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(place.with_suffix(".lock"), url))
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        yield place / "chandra_spectra"


def _upload(folder: Path, manifest: dict[str, Any], there: _Folder, progress: Progress) -> None:
    new = [file["path"] for file in manifest["files"]]
    old = [
        file["path"]
        for said in (there.read(MANIFEST_FILE), there.read(UPLOADING_FILE))
        if said
        for file in said["files"]
    ]
    uploading = {"dataset": "chandra_spectra", "files": [{"path": path} for path in sorted({*old, *new})]}
    with reported(OutputError, f"cannot write {folder / UPLOADING_FILE}"):
        (folder / UPLOADING_FILE).write_text(json.dumps(uploading, indent=2) + "\n", encoding="utf-8")
    there.put(folder, UPLOADING_FILE)
    if MANIFEST_FILE in there.sizes:
        there.remove(MANIFEST_FILE)
    for number, path in enumerate(new):
        progress("upload", number, len(new))
        there.put(folder, path)
    for path in sorted(({*old} - {*new}) & there.sizes.keys()):
        there.remove(path)
    there.put(folder, MANIFEST_FILE)
    there.remove(UPLOADING_FILE)
    progress("upload", len(new), len(new))
