"""Prepared folders: what is in them, and a manifest that fits what a test has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec

from builder.dataset.layout import manifest_digest, read_manifest

__all__ = ["contents", "rehash"]


def contents(folder: Path | str) -> dict[str, bytes]:
    """Every file of a folder or a URL, by its path below it."""
    fs, root = fsspec.url_to_fs(str(folder))
    fs.invalidate_cache()
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def rehash(folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Write the manifest anew, so that the checksums fit whatever the folder holds."""
    manifest = read_manifest(folder)
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    change(manifest)
    manifest["sha256"] = manifest_digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
