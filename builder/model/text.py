"""Numbers, names and progress as people read them."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""A function that is called with a step, the number of things that are done, and of all."""


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""


def is_url(text: str) -> bool:
    """Tell whether it begins like a URL; also with one slash, as a path is left of it."""
    return re.match(r"[\w+.-]+:/", text) is not None


def several(number: int, what: str) -> str:
    """Write a number of things, such as ``1 row`` or ``1,200 rows``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def one_line(name: str | None) -> str:
    """Write a name as one line of what can be printed: a catalog file may hold any text, or none (null)."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name or "").split())


def exposure_text(seconds: float) -> str:
    """Write an exposure for people, such as 50.5 ks or 1.902 Ms."""
    return f"{seconds / 1e6:,.3f} Ms" if seconds >= 1e6 else f"{seconds / 1e3:.1f} ks"


def size_text(size: float) -> str:
    """Write a number of bytes for people, such as 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def text_of(page: bytes, length: int = 200) -> str:
    """Give the first words of a page of text, HTML or XML, as one line."""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1\s*>|<[^>]*>", " ", page.decode("utf-8", "replace"))
    return one_line(html.unescape(text))[:length].strip()
