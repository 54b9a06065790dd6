"""Tars, as packages are and as they should not be."""

from __future__ import annotations

import io
import tarfile


def tar_bytes(*entries: tuple[str, bytes | None], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of files, or of folders where there is no content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()
