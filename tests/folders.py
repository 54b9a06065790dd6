"""Prepared folders: what is in them, and a manifest that fits what a test has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec

from builder.dataset.layout import Manifest


def contents(folder: Path | str) -> dict[str, bytes]:
    """Every file of a folder or a URL, by its path below it."""
    fs, root = fsspec.url_to_fs(str(folder))
    fs.invalidate_cache()
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def rehash(folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Write the manifest anew, so that the checksums fit whatever the folder holds."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    changed = Manifest.read(folder)
    replace(changed, sha256=changed.digest).write(folder)
