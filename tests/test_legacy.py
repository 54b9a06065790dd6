"""datasets 3.6, the last that runs loading scripts, gives the same rows, by the script and of a prepared folder.

`make test-legacy` makes its environment.
"""

from __future__ import annotations

import json
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


READ = """
import json, sys
from datasets import Features, load_dataset
from pyarrow import parquet

for config, shard in json.loads(sys.argv[3]).items():
    rows = load_dataset(sys.argv[1], config, split="train")
    assert Features.from_arrow_schema(parquet.read_schema(shard)) == rows.features
    rows.to_parquet(f"{sys.argv[2]}/{config}.parquet")
"""


def test_a_prepared_folder_is_read_with_the_features_that_its_shards_and_its_card_declare(
    full_sample: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(full_sample)
    shards = {config: str(full_sample / next(iter(manifest.shards(config, "train")))) for config in DATA_FILES}
    run_legacy(tmp_path, READ, str(full_sample), str(tmp_path), json.dumps(shards))
    for config, shard in shards.items():
        assert pq.read_table(tmp_path / f"{config}.parquet").to_pylist() == pq.read_table(shard).to_pylist()


def run_legacy(folder: Path, code: str, *words: str) -> None:
    command = [str(PYTHON), "-c", code, *words]
    env = os.environ | {"HF_HOME": str(folder)}
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr


def test_the_loading_script_gives_the_rows_of_the_prepared_folder(
    sample: Path, full_sample: Path, tmp_path: Path
) -> None:
    run_legacy(tmp_path, LOAD, str(CHECKOUT / "chandra_spectra.py"), str(tmp_path))
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
