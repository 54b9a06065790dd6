"""Whatever is done to the bytes of product files: a row that comes of them is Sherpa's, and `verify` takes it.

Fifty are tried with the other tests, and as many as it says with
``MUTATED_FILES=10000 pytest tests/test_mutations.py --log-cli-level=INFO``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import gzip
import json
import logging
import os
import resource
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from builder.model.columns import COLUMNS
from builder.model.ids import DetectionId
from builder.model.records import REASONS, File
from builder.model.settings import Recipe, Settings
from builder.prepare import prepare
from builder.use.verify import verify
from tests import fits_files as ff
from tests.fits_files import KINDS, stable
from tests.runs import FORK

FILES = int(os.environ.get("MUTATED_FILES", "50"))
PER_RUN = min(FILES, 200)
REAL_20 = Path(__file__).parents[2] / "shared/real"
IDS = [DetectionId(5001 + number, 0, 7) for number in range(PER_RUN)]

logger = logging.getLogger(__name__)

# What may stand in a header, and what may stand in a table.
WORDS = """0 1 -1 0.0 -1.5 1E-40 1E300 1E999 NaN T F '' 'NONE' 'none' 1023 1025 1024.0 2147483648 1.0000001 1_0 5000
'HRC' 'PHA' 'TOTAL' 'BKG' 'NET' 'eV' 'COUNTS' '1E' '1D' '2J' '\x07' '\xe9'"""
VALUES = [0.0, -0.001, -0.0, np.nan, np.inf, -np.inf, 1e-40, 1e30, 3e38, 0.5, 8.0, 0.0146, 1e5, 100.0]


@functools.cache
def base(name: str) -> dict[str, tuple[bytes, list[tuple[int, int, int]]]]:
    """The files of a detection, unzipped, with where their extensions lie."""
    if name == "made":
        found = {kind: getattr(ff.products(), kind).data for kind in KINDS}
    elif name == "3243":
        found = {kind: gzip.decompress(next(REAL_20.glob(f"*_{kind}3.fits.gz")).read_bytes()) for kind in KINDS}
    else:
        detection = next(detection for detection in ff.REAL if str(detection.obsid) == name)
        found = {kind: getattr(ff.real_products(detection), kind).data for kind in KINDS}
    return {kind: (data, ff.spans(data)) for kind, data in found.items()}


@functools.lru_cache(maxsize=400)
def named(name: str, kind: str, detection: DetectionId) -> bytes:
    """The file as if it were of another detection: its ids changed, and its checksums to fit."""
    data, layout = base(name)[kind]
    changed = bytearray(data)
    for begin, middle, _ in layout:
        ids = {"OBS_ID": str(detection.obsid), "OBI_NUM": detection.obi, "REGIONID": f"{detection.region_id:04d}"}
        ff.set_cards(changed, begin, middle, **ids)
    ff.set_sums(changed, layout)
    return bytes(changed)


FEW = b"""EXPOSURE BACKSCAL AREASCAL NAXIS1 NAXIS2 PCOUNT TFIELDS CHANTYPE HDUCLAS1 HDUCLAS2 HDUCLAS3 EXTNAME GROUPING
QUALITY POISSERR TFORM2 TFORM3 TTYPE3 TUNIT2 TSCAL3 TZERO3 TLMIN1 INSTRUME TELESCOP BACKFILE DETNAM CYCLE""".split()
BASES = ["made", "4938", "7867", *(["3243"] if REAL_20.exists() else [])]
CHANGES = (
    "byte",
    "byte in a header",
    "card",
    "card of a few",
    "card of a few",
    "value",
    "cut",
    "swap",
    "drop",
    "repeat",
)


def drawn(random: Random) -> dict[str, Any]:
    """A case: which file of which detection is changed, how, and when."""
    return {
        "base": random.choice(BASES),
        "kind": random.choice(["pha", "pha", "pha", "arf", "rmf"]),
        "changes": [
            (random.choice(CHANGES), random.random(), random.random()) for _ in range(random.choice([1, 1, 1, 2, 3]))
        ],
        "sums": random.choice(["kept", "made right", "made right"]),
        "packed": random.choice(["plain", "before gzip", "before gzip", "before gzip", "after gzip"]),
    }


def mutated(case: dict[str, Any], data: bytes, layout: list[tuple[int, int, int]]) -> bytes:
    """The file with the changes of a case."""
    changed = bytearray(data)
    headers = [position for begin, middle, _ in layout for position in range(begin, middle, 80)]
    headers = [position for position in headers if data[position : position + 80].strip()]
    few = [position for position in headers if data[position : position + 8].strip() in FEW] or headers
    bodies = [position for _, middle, end in layout for position in range(middle, end, 4)]
    blocks = len(data) // 2880
    for what, place, value in case["changes"]:
        if what == "byte":
            changed[int(place * len(changed))] ^= 1 + int(value * 255)
        elif what == "byte in a header":
            inside = headers[int(place * len(headers))] + int(place * 1e6) % 40
            changed[min(inside, len(changed) - 1)] ^= 1 << int(value * 8)
        elif what in ("card", "card of a few"):
            some = few if what == "card of a few" else headers
            position = some[int(place * len(some))]
            word = WORDS.split()[int(value * len(WORDS.split()))]
            changed[position + 10 : position + 80] = word.encode("latin-1").ljust(70)
        elif what == "value":
            position = bodies[int(place * len(bodies))]
            changed[position : position + 4] = np.array(VALUES[int(value * len(VALUES))], ">f4").tobytes()
        elif what == "cut":
            del changed[int(place * len(changed)) :]
        else:
            one, other = int(place * blocks) * 2880, int(value * blocks) * 2880
            block, another = changed[one : one + 2880], changed[other : other + 2880]
            if what == "swap":
                changed[one : one + 2880], changed[other : other + 2880] = another, block
            elif what == "drop":
                del changed[one : one + 2880]
            else:
                changed[one:one] = block
        if not changed:
            return b""
    if case["sums"] == "made right" and len(changed) == len(data):
        ff.set_sums(changed, layout)
    return bytes(changed)


def served(case: dict[str, Any], detection: DetectionId) -> dict[str, File]:
    """The three files as the archive sends them."""
    files = {}
    for kind in KINDS:
        data = named(case["base"], kind, detection)
        hit = kind == case["kind"]
        if hit and case["packed"] != "after gzip":
            data = mutated(case, data, base(case["base"])[kind][1])
        if case["packed"] != "plain":
            data = gzip.compress(data, 1, mtime=0)
        if hit and case["packed"] == "after gzip":
            data = mutated({**case, "sums": "kept"}, data, [(0, len(data) // 2, len(data))])
        files[kind] = File(ff.product_name(detection, kind) + ".gz" * (case["packed"] != "plain"), data)
    return files


PATIENCE = 20
"""Seconds for an answer of the oracle."""

MEMORY = 8 * 2**30
"""Bytes of address space that it may take."""


class Oracle:
    """Sherpa's session in a process of its own, which can be ended.

    Of an extension whose size is below zero astropy, which it reads with, goes back, round and round, or takes all
    memory.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = FORK.Pipe()
        self._process = FORK.Process(target=answer, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def ask(self, files: dict[str, Path], recipe: Recipe) -> dict[str, np.ndarray] | str:
        """What Sherpa makes of the files, or why it makes nothing of them."""
        self._pipe.send((files, recipe))
        if self._pipe.poll(PATIENCE):
            with contextlib.suppress(EOFError):
                return self._pipe.recv()  # type: ignore[no-any-return]
        self.end()
        self._start()
        return "comes to no end"


def answer(pipe: Connection) -> None:
    """Answer what is asked, until nobody asks any more."""
    import sherpa.astro.ui as ui

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.getLogger("sherpa").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"), contextlib.suppress(EOFError):
        while True:
            pipe.send(by_sherpa(ui, *pipe.recv()))
            ui.clean()
            gc.collect()  # Sherpa's data refer to each other in circles


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    found = Oracle()
    yield found
    found.end()


def by_sherpa(ui: Any, files: dict[str, Path], recipe: Recipe) -> dict[str, np.ndarray] | str:
    try:
        ui.load_pha(str(files["pha"]))
        if ui.list_bkg_ids() != [1]:  # BACKFILE names another file
            ui.load_bkg(str(files["pha"]))
        ui.load_rmf(str(files["rmf"]))
        ui.load_arf(str(files["arf"]))
        data, background, area = ui.get_data(), ui.get_bkg(), ui.get_arf()
        if (data.header.get("HDUCLAS2"), background.header.get("HDUCLAS2")) != ("TOTAL", "BKG"):
            return "takes another extension"  # it looks for an EXTNAME, and does not mind which it finds
        background.set_response(*data.get_response())
        ui.set_analysis("energy")
        found = {
            "counts": data.counts.copy(),
            "background_counts": background.counts.copy(),
            "arf_specresp": area.specresp,
        }
        found |= {"arf_energy_lo": area.energ_lo, "arf_energy_hi": area.energ_hi, "exposure": data.exposure}
        ui.ignore(None, recipe.energy_min)
        ui.ignore(recipe.energy_max, None)
        if recipe.subtract:
            ui.subtract()
        if recipe.group:
            ui.group_counts(recipe.min_counts)
        plot = ui.get_data_plot()
    except Exception as error:  # noqa: BLE001  it raises whatever astropy does
        return f"raises {type(error).__name__}"
    arrays = {"spectrum_ene": plot.x, "spectrum_ene_lo": plot.xlo, "spectrum_ene_hi": plot.xhi}
    return found | arrays | {"spectrum_flux": plot.y, "spectrum_flux_err": plot.yerr}


def test_a_row_of_changed_files_is_sherpas_and_verify_takes_it(oracle: Oracle, tmp_path: Path) -> None:
    """And every detection is a row or a rejection with a reason, whatever was done; none is both or neither."""
    tally: Counter[str] = Counter()

    @settings(parent=stable(-(-FILES // PER_RUN)), phases=[Phase.generate])  # a seed of other cases is no simpler
    @given(
        seed=st.integers(0, 2**32 - 1),
        recipe=st.sampled_from([Recipe(), Recipe(), Recipe(subtract=False), Recipe(0.3, 11.0, 1, group=False)]),
        responses=st.booleans(),
    )
    def check(seed: int, recipe: Recipe, responses: bool) -> None:
        random = Random(seed)
        some = [drawn(random) for _ in IDS]
        root = tmp_path / str(tally["runs"])
        tally["runs"] += 1
        files = {detection: served(case, detection) for detection, case in zip(IDS, some, strict=True)}
        archive = ff.mirror(root / "mirror", {detection: list(of.values()) for detection, of in files.items()})
        wanted = Settings(str(archive), recipe=recipe, responses=responses)
        prepare(root / "out", wanted, cache=root / "cache")
        assert verify(root / "out", load=False).failures == []
        rejections = pq.read_table(root / "out/rejections.parquet").to_pylist()
        assert all(row["message"].isprintable() and len(row["message"]) < 1000 for row in rejections)
        tally.update(row["reason"] for row in rejections)
        with h5py.File(root / "out/chandra_spectra.hdf5") as file:
            rows = {str(DetectionId.from_object_id(number)): row for row, number in enumerate(file["object_id"][:])}
            assert sorted([*rows, *(row["detection_id"] for row in rejections)]) == sorted(map(str, IDS))
            for column in COLUMNS:
                if not column.query and column.dtype.startswith("float"):
                    assert all(np.isfinite(value).all() for value in file[column.hdf5_name][:]), column.name
            for detection, case in zip(IDS, some, strict=True):
                if (row := rows.get(str(detection))) is None:
                    continue
                tally["rows"] += 1
                expected = oracle.ask(written(root, files[detection]), recipe)
                if isinstance(expected, str):
                    tally[f"rows, of which Sherpa {expected}"] += 1
                    continue
                tally["rows equal to Sherpa's"] += 1
                for name, value in expected.items():
                    assert np.array_equal(file[name][row], value), (str(detection), case, name)
        shutil.rmtree(root)

    check()
    logger.info(json.dumps(dict(tally.most_common()), indent=2))
    # A comparison that always gave up would prove nothing.
    assert tally["rows"] > FILES / 10
    assert tally["rows equal to Sherpa's"] > 0.8 * tally["rows"]
    assert len(set(tally) & set(REASONS)) > 5


def written(folder: Path, files: dict[str, File]) -> dict[str, Path]:
    for file in files.values():
        (folder / file.name).write_bytes(file.data)
    return {kind: folder / file.name for kind, file in files.items()}
