"""A short run of the harness that kills, starves and damages jobs; `make chaos` runs it for an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


def chaos(tmp_path: Path, *arguments: str) -> dict:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "chaos.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((tmp_path / "chaos.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and signals as on Linux")
def test_jobs_that_are_killed_and_damaged_lose_nothing(tmp_path):
    names = ["--jobs", "train", "--disturbances", "kill -9", "damage", "two jobs", "full disk"]
    found = chaos(tmp_path, "--cases=4", *names)
    assert found["cases"] == 4 and found["kills"] >= 2 and not found["findings"]
