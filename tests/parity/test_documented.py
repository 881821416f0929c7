"""Every command that docs/fidelity.md gives selects tests, so that no row outlives its check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"


def commands() -> list[str]:
    """Whole commands, those whose table names the file above, and the tests of the surprises."""
    found, of_table = [], None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            of_table = None
        spans = re.findall(r"`((?:pytest|-k|tests/)[^`]*)`", line)
        if "command: `pytest" in line:
            [of_table] = spans
            continue
        found += [f"{of_table} {span}" if span.startswith("-k") else span for span in spans]
    return [c if c.startswith("pytest") else f"pytest {c}" for c in found]


def test_the_page_gives_commands():
    assert len(commands()) > 40 and not any("None" in c for c in commands())


_COLLECT = """
import json, pytest, shlex, sys
for command in json.loads(sys.argv[1]):
    # 5 where no test is selected, 4 where a file is missing
    code = pytest.main([*shlex.split(command)[1:], "--collect-only", "-q", "-p", "no:cacheprovider"])
    if code:
        print("nothing selected by:", command, file=sys.stderr)
"""


@pytest.mark.slow
def test_each_command_selects_tests():
    # In one process of its own, which imports everything once.
    done = subprocess.run(
        [sys.executable, "-c", _COLLECT, json.dumps(commands())], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "nothing selected" not in done.stderr, done.stderr
