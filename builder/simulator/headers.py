"""FITS extensions put together card by card: headers, padding, checksums."""

from __future__ import annotations

import numpy as np

Cards = dict[str, object]


def padded(data: bytes, fill: bytes) -> bytes:
    """Fill data up to whole blocks."""
    return data + fill * (-len(data) % 2880)  # FITS Standard 4.0, section 3.1


def header(cards: Cards) -> bytes:
    """Write cards as a header."""
    lines = []
    for keyword, value in cards.items():
        if isinstance(value, bool):
            text = f"{'FT'[value]:>20}"
        elif isinstance(value, (int, np.integer)):
            text = f"{value:>20d}"
        elif isinstance(value, (float, np.floating)):
            text = f"{value:>20.13E}"
        else:
            text = f"'{value:<8}'"
        lines.append(f"{keyword:<8}= {text}".ljust(80))
    return padded("".join([*lines, "END".ljust(80)]).encode("ascii"), b" ")


def sum32(data: bytes) -> int:
    """Add up big-endian words, carries brought round (FITS Standard 4.0, appendix J)."""
    total = int(np.frombuffer(data, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def summed(cards: Cards) -> bytes:
    """Make a header whose CHECKSUM brings the sum of all of its extension to zero."""
    text = header(cards | {"CHECKSUM": "0" * 16})
    total = sum32(text) + int(str(cards["DATASUM"]))
    rest = ~((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF
    return text.replace(b"0" * 16, _encoded(rest), 1)


def _encoded(number: int) -> bytes:
    """Spell a checksum in 16 letters and digits (FITS Standard 4.0, appendix J)."""
    letters = [0] * 16
    for place in range(4):
        quarter, rest = divmod(number >> (24 - 8 * place) & 0xFF, 4)
        four = [quarter + 0x30 + rest, *[quarter + 0x30] * 3]
        while any(chr(letter) in ":;<=>?@[\\]^_`" for letter in four):
            for pair in (0, 2):  # the sum stays
                if any(chr(letter) in ":;<=>?@[\\]^_`" for letter in four[pair : pair + 2]):
                    four[pair], four[pair + 1] = four[pair] + 1, four[pair + 1] - 1
        for index, letter in enumerate(four):
            letters[4 * index + place] = letter
    return bytes(letters[-1:] + letters[:-1])
