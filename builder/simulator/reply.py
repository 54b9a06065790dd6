"""An answer of the services, without the wire."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it is meant, before any fault.

    Attributes
    ----------
    service : str
        ``sync``, ``results``, ``retrieve``, ``browse``, ``retrieveFile``, or the path of anything else.
    location : str
        Path that the client is redirected to.
    detections : tuple of str
        What was asked for, where the service takes detections.
    slow : bool
        The service takes longer for it than anybody waits.
    """

    service: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = HTTPStatus.OK
    location: str = ""
    detections: tuple[str, ...] = ()
    slow: bool = False


def error_page(service: str, reason: str) -> Reply:
    """Make an error as web servers like to put it: an HTML page, with status 200."""
    page = (
        f"<!DOCTYPE html>\n<html><head><title>Error</title></head><body><h1>Error</h1><p>{reason}</p></body></html>\n"
    )
    return Reply(service, page.encode(), "text/html; charset=utf-8")


def error_text(service: str, reason: str, detections: tuple[str, ...] = ()) -> Reply:
    """Make an error as csccli puts it, with status 200."""
    return Reply(service, f"Error executing query: {reason}\n".encode(), detections=detections)
