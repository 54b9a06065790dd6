"""Faults for the local archive server: which ones happen when, and the damage they do to files.

Nothing here has a state: the same seed gives the same faults in every run, whatever the order of the requests.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from builder.archive.products import KINDS, ProductName
from builder.model.errors import SettingError
from builder.model.ids import DetectionId
from builder.model.records import File

TRANSIENT = {
    "429": "too many requests, Retry-After in seconds or, in half of them, as a date",
    "503": "unavailable; half of them with Retry-After",
    "reset": "the connection is reset before the answer or amid its body",
    "stall": "the answer stops half way for a while, then goes on",
    "truncate": "the connection is closed before the announced length was sent",
    "truncate_silent": "a tar is cut short and announced as that short; other services truncate",
    "html": "an HTML error page with status 200",
    "empty": "an empty body with status 200",
    "error_text": "a text that starts 'Error executing query:' with status 200",
    "drip": "the body comes a byte at a time",
    "drip_headers": "the headers come a byte at a time",
    "continue": "'100 Continue' comes without end",
}
"""Faults of one request, gone when it is repeated."""

PERMANENT = {
    "gone": "no service has any file of the detection",
    "missing_pha": "no service has the PHA file",
    "missing_arf": "no service has the ARF file",
    "missing_rmf": "no service has the RMF file",
    "omitted": "retrieve leaves one file out; retrieveFile has it",
    "corrupt_fits": "one file is garbled FITS in sound gzip",
    "bad_gzip": "one file's gzip is cut short or has a wrong CRC",
    "wrong_ids": "the PHA file's headers name another detection",
}
"""Faults of one detection, there in every run."""

_BLOCK = 2880  # bytes, the unit of every FITS file
_IDS = re.compile(rb"(OBS_ID  = ' *\d*|REGIONID= +'? *\d*)(\d)")
_CHECKSUM = re.compile(rb"(?<=CHECKSUM= ')[^']{16}")


def _nothing() -> Mapping[str, float]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of the server, and how often each happens.

    Attributes
    ----------
    transient : mapping of str to float
        For each kind of `TRANSIENT` the probability that a request meets it. Of three attempts at the same request
        the third is always spared, so that a client with a few retries gets through.
    permanent : mapping of str to float
        For each kind of `PERMANENT` the fraction of the detections that have it.
    stall_seconds, slow_seconds : float
        Seconds that ``Retry-After`` says, that a stall, a drip or ``continue`` lasts, and that a service takes that is
        too slow.

    Raises
    ------
    SettingError
        If a kind is unknown, or the rates are not probabilities.
    """

    seed: int = 0
    transient: Mapping[str, float] = field(default_factory=_nothing)
    permanent: Mapping[str, float] = field(default_factory=_nothing)
    retry_after: int = 0
    stall_seconds: float = 5
    slow_seconds: float = 3600

    def __post_init__(self) -> None:
        for name, kinds in (("transient", TRANSIENT), ("permanent", PERMANENT)):
            rates = getattr(self, name)
            if unknown := rates.keys() - kinds.keys():
                raise SettingError(f"unknown {name} fault {min(unknown)!r}: choose from {', '.join(kinds)}")
            if any(rate < 0 for rate in rates.values()) or sum(rates.values()) > 1 + 1e-9:
                raise SettingError(f"the rates of {name} faults must be from 0 to 1, and so must their sum")

    def transient_of(self, request: str, attempt: int) -> str | None:
        """Return the fault that an attempt (0, 1, 2, …) at a request meets, None if it is answered properly."""
        if attempt % 3 == 2:
            return None
        return _pick(self.transient, self.uniform("transient", request, attempt))

    def permanent_of(self, detection: DetectionId) -> str | None:
        """Return the fault that a detection has; every cycle of it has the same."""
        return _pick(self.permanent, self.uniform("permanent", detection.catalog))

    def kind_of(self, detection: DetectionId) -> str:
        """Return the kind of file (pha, arf, rmf) that the detection's permanent fault, if it has one, is in."""
        fault = self.permanent_of(detection) or ""
        if fault.startswith("missing_"):
            return fault.removeprefix("missing_")
        if fault == "wrong_ids":  # an ARF or RMF need not have the cards
            return "pha"
        return KINDS[int(self.uniform("kind", detection.catalog) * len(KINDS))]

    def damaged(self, detection: DetectionId, files: Iterable[File], *, package: bool) -> list[File]:
        """Return the files of a detection as the server has them.

        Parameters
        ----------
        files : iterable of File
            Sound, gzipped files.
        package : bool
            For ``retrieve``, which alone leaves out what is ``omitted``.
        """
        fault, kind = self.permanent_of(detection), self.kind_of(detection)
        kept = []
        for file in files if fault != "gone" else ():
            name = ProductName.parse(file.name)
            if fault is None or name is None or name.kind != kind:
                kept.append(file)
            elif fault in ("corrupt_fits", "bad_gzip", "wrong_ids"):
                kept.append(File(file.name, self._damage(fault, file, kind)))
            elif fault == "omitted" and not package:
                kept.append(file)
        return kept

    def uniform(self, *what: object) -> float:
        """Return a number in [0, 1) that depends on the seed and on what is asked, and on nothing else."""
        text = "\0".join(map(str, (self.seed, *what)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64

    def _damage(self, fault: str, file: File, kind: str) -> bytes:
        chance = self.uniform(fault, file.name)
        if fault == "bad_gzip":
            if chance < 0.5:
                return file.data[: int(len(file.data) * (0.2 + chance))]
            return file.data[:-8] + bytes([file.data[-8] ^ 0xFF]) + file.data[-7:]  # the CRC comes before the length
        fits = gzip.decompress(file.data)
        if fault == "wrong_ids":
            fits = _IDS.sub(lambda match: match[1] + b"%d" % ((int(match[2]) + 1) % 10), fits)
            fits = _CHECKSUM.sub(b" " * 16, fits)  # of the headers as they were: blank means unknown
        else:
            # The header that matters: the source spectrum's, the effective area's, and EBOUNDS, the last of the RMF.
            starts = [at for at in range(0, len(fits), _BLOCK) if fits.startswith(b"XTENSION", at)] or [0]
            at = starts[-1 if kind == "rmf" else 0]
            noise = random.Random(f"{self.seed} {file.name}").randbytes(len(fits[at : at + _BLOCK]))
            fits = fits[:at] + noise + fits[at + _BLOCK :]
        return gzip.compress(fits, compresslevel=1, mtime=0)


def _pick(rates: Mapping[str, float], chance: float) -> str | None:
    for kind, rate in rates.items():
        if chance < rate:
            return kind
        chance -= rate
    return None


def parse_faults(words: Iterable[str], seed: int = 0) -> Faults | None:
    """Read ``KIND=RATE`` words; None where there are none. SettingError if one is not understood."""
    rates: dict[str, float] = {}
    for word in words:
        kind, _, rate = word.partition("=")
        try:
            rates[kind] = float(rate)
        except ValueError:
            raise SettingError(f"fault {word!r} is not KIND=RATE, such as 503=0.1") from None
        if kind not in {**TRANSIENT, **PERMANENT}:
            raise SettingError(f"unknown fault {kind!r}: choose from {', '.join((*TRANSIENT, *PERMANENT))}")
    if not rates:
        return None
    transient = {kind: rate for kind, rate in rates.items() if kind in TRANSIENT}
    return Faults(seed, transient, {kind: rate for kind, rate in rates.items() if kind in PERMANENT})
