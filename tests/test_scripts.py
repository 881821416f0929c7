"""The scripts in benchmarks/ and examples/ can be imported, which names that moved would prevent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").glob("*.py")])

_IMPORT_ALL = """
import runpy, sys, traceback
failed = []
for path in sys.argv[1:]:
    try:
        runpy.run_path(path, run_name="imported")
    except Exception:
        failed.append(f"{path}: {traceback.format_exc().splitlines()[-1]}")
sys.exit("; ".join(failed) or 0)
"""


def test_there_are_scripts():
    assert len(SCRIPTS) > 15


@pytest.mark.timeout(600)
def test_scripts_can_be_imported():
    folders = [str(ROOT / "benchmarks"), str(ROOT / "examples")]
    code = f"import sys; sys.path[:0] = {folders!r}\n{_IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, SCRIPTS)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
