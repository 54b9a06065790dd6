"""Requests and answers kept in one file, in the format of browsers (HAR 1.2), to be looked at and served again.

What may be secret is left out: of the headers only those are kept that say how to read the answer.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests
import urllib3

from builder import __version__
from builder.archive.connections import mount
from builder.files import write_whole
from builder.model.errors import ArchiveError

_KEPT = frozenset(
    {"content-type", "content-encoding", "content-length", "location", "retry-after", "transfer-encoding"}
)
_MOST = 64 * 2**20
"""Bytes of an answer that are kept."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answer, with what it was the answer to.

    Attributes
    ----------
    parameters : tuple of (str, str)
        Sorted, of query and form alike.
    status : int
        0 where none came.
    """

    verb: str
    path: str
    parameters: tuple[tuple[str, str], ...]
    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class RecordedSession(requests.Session):
    """A session that keeps every request and its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Recorded] = []

    def request(self, method: str, url: str, data: Any = None, **options: Any) -> requests.Response:  # type: ignore[override]
        """Send a request as `requests.Session.request`, and read all of its answer."""
        begun, body = time.monotonic(), b""
        response = None
        try:
            response = super().request(method, url, data=data, **options)
            body = response.raw.read(_MOST)
        finally:
            address = urlsplit(url)
            self.entries.append(
                Recorded(
                    method,
                    address.path,
                    tuple(sorted([*parse_qsl(address.query, keep_blank_values=True), *(data or [])])),
                    0 if response is None else response.status_code,
                    {} if response is None else _headers(response),
                    body,
                    round(time.monotonic() - begun, 3),
                )
            )
            if response is not None:
                response.close()
        response.raw = urllib3.HTTPResponse(io.BytesIO(body), headers=response.headers, preload_content=False)
        return response


def _headers(response: requests.Response) -> dict[str, str]:
    kept = {name: value for name, value in response.headers.items() if name.lower() in _KEPT}
    if "Location" in kept:  # the host is that of the archive, and a replay has another
        with contextlib.suppress(ValueError):
            kept["Location"] = urlsplit(kept["Location"])._replace(scheme="", netloc="").geturl()
    return kept


@contextlib.contextmanager
def recorded_session() -> Iterator[RecordedSession]:
    """Give a session as `builder.archive.connections.one_session`, that keeps what is asked and answered."""
    with RecordedSession() as session, mount(session):
        yield session


def write_recording(path: Path, base: str, entries: list[Recorded]) -> None:
    """Write a file; OutputError if it cannot be written."""
    log = {
        "version": "1.2",
        "creator": {"name": "chandra-spectra", "version": __version__},
        "entries": [_entry(base, entry) for entry in entries],
    }
    with write_whole(path) as partial:
        partial.write_text(json.dumps({"log": log}, indent=1) + "\n", encoding="utf-8")


def _entry(base: str, entry: Recorded) -> dict[str, Any]:
    return {
        "time": round(1000 * entry.seconds),
        "request": {"method": entry.verb, "url": f"{base}{entry.path}?{urlencode(entry.parameters)}"},
        "response": {
            "status": entry.status,
            "headers": [{"name": name, "value": value} for name, value in entry.headers.items()],
            "content": {
                "size": len(entry.body),
                "mimeType": entry.headers.get("Content-Type", ""),
                "encoding": "base64",
                "text": base64.b64encode(entry.body).decode("ascii"),
            },
        },
    }


def read_recording(path: Path) -> list[Recorded]:
    """Read a file that `write_recording` wrote; ArchiveError if it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["log"]["entries"]
        found = []
        for entry in entries:
            address = urlsplit(entry["request"]["url"])
            answer = entry["response"]
            found.append(
                Recorded(
                    str(entry["request"]["method"]),
                    address.path,
                    tuple(sorted(parse_qsl(address.query, keep_blank_values=True))),
                    int(answer["status"]),
                    {str(header["name"]): str(header["value"]) for header in answer["headers"]},
                    base64.b64decode(answer["content"]["text"]),
                    float(entry["time"]) / 1000,
                )
            )
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{path} is no recording of `chandra-spectra check --save`: {error}") from error
    return found
