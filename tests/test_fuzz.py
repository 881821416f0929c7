"""A short run of the harness that feeds damaged files to every reader; `make fuzz` runs it for an hour."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
# Images have a test of their own (tests/data/test_hostile.py).
TARGETS = [
    "run folder", "run as a teacher", "teacher folder", "soft labels", "checkpoint", "cache", "labels.csv",
    "weights", "onnx", "invented documents", "shards",
]  # fmt: skip
for _package, _targets in (("pyarrow", ["parquet", "arrow"]), ("openpyxl", ["workbook"])):
    if importlib.util.find_spec(_package) is not None:
        TARGETS += _targets


@pytest.mark.skipif(sys.platform != "linux", reason="measures processes as on Linux")
@pytest.mark.parametrize("targets", [TARGETS[::2], TARGETS[1::2]], ids=["even", "odd"])
def test_damaged_files_are_read_or_refused(tmp_path, targets):
    out = tmp_path / "fuzz.json"
    command = [sys.executable, str(SCRIPT), "--cases=15", "--out", str(out), "--targets", *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())["targets"]
    assert all(found[name]["cases"] >= 15 for name in targets)
