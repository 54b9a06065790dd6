"""datasets 3.6, the last that runs loading scripts, gives the same rows; `make test-legacy` makes its environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from builder.dataset.layout import DATA_FILES, Manifest

CHECKOUT = Path(__file__).parent.parent
PYTHON = CHECKOUT / ".venv-legacy" / "bin" / "python"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-legacy: `make test-legacy` makes it and runs this"
)

LOAD = """
import sys
from pathlib import Path
from datasets import load_dataset

options = {"archive": "embedded", "splits": "none", "trust_remote_code": True}
for config in ("spectra", "counts", "binned", "sources", "ebounds", "responses"):
    rows = load_dataset(sys.argv[1], config, **options)["train"]
    rows.to_parquet(Path(sys.argv[2]) / f"{config}.parquet")
    lazy = load_dataset(sys.argv[1], config, **options, streaming=True)["train"]
    assert next(iter(lazy)) == rows[0]
"""


def test_the_loading_script_gives_the_rows_of_the_prepared_folder(
    sample: Path, full_sample: Path, tmp_path: Path
) -> None:
    words = [str(PYTHON), "-c", LOAD, str(CHECKOUT / "chandra_spectra.py"), str(tmp_path)]
    run = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"HF_HOME": str(tmp_path)}
    )
    assert run.returncode == 0, run.stderr
    for config, name in DATA_FILES.items():
        found = pq.read_table(tmp_path / f"{config}.parquet")
        full = config in ("binned", "sources", "responses")
        expected = pq.read_table((full_sample if full else sample) / name)
        if full:  # of three splits, and with labels of a file
            key = next(key for key in ("object_id", "name", "rmf_sha256") if key in expected.column_names)
            own = [column.name for column in Manifest.read(full_sample).own]
            expected = expected.drop([column for column in own if column in expected.column_names]).sort_by(key)
            found = found.sort_by(key)
        assert found.column_names == expected.column_names
        assert found.to_pylist() == expected.to_pylist()
