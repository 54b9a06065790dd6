"""Builder of the dataset `chandra_spectra`: select, fetch, reduce, store and publish X-ray spectra.

The names of `__all__` are the public face. They are imported at first use, so that a program
loads only the part that it uses.

>>> from builder import Settings, prepare
>>> prepare("chandra_spectra", Settings("embedded"))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.dataset.read import find_detections, overview, read_rows
    from builder.model.errors import ChandraSpectraError
    from builder.model.ids import DetectionId
    from builder.model.selection import Selection
    from builder.model.settings import Recipe, Settings
    from builder.model.sky import Cone
    from builder.model.splits import Splits
    from builder.prepare import Prepared, prepare
    from builder.simulator.server import ArchiveServer
    from builder.use.export import export
    from builder.use.plot import plot, save_plot
    from builder.use.push import push
    from builder.use.report import write_report
    from builder.use.verify import verify
    from builder.use.views import regroup, thin

__all__ = [
    "ArchiveServer",
    "ChandraSpectraError",
    "Cone",
    "DetectionId",
    "Prepared",
    "Recipe",
    "Selection",
    "Settings",
    "Splits",
    "export",
    "find_detections",
    "overview",
    "plot",
    "prepare",
    "push",
    "read_rows",
    "regroup",
    "save_plot",
    "thin",
    "verify",
    "write_report",
]

__version__ = "0.1.0"

_HOMES = {
    "dataset.read": ("find_detections", "overview", "read_rows"),
    "model.errors": ("ChandraSpectraError",),
    "model.ids": ("DetectionId",),
    "model.selection": ("Selection",),
    "model.settings": ("Recipe", "Settings"),
    "model.sky": ("Cone",),
    "model.splits": ("Splits",),
    "prepare": ("Prepared", "prepare"),
    "simulator.server": ("ArchiveServer",),
    "use.export": ("export",),
    "use.plot": ("plot", "save_plot"),
    "use.push": ("push",),
    "use.report": ("write_report",),
    "use.verify": ("verify",),
    "use.views": ("regroup", "thin"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    """The package, in which the function `prepare` keeps its place when the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
