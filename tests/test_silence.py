"""A person who waits sees something move: no silence while a command works."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import TINY, write_images

if os.name != "posix":
    pytest.skip("terminals of this kind are POSIX's", allow_module_level=True)

import pty

LONGEST_S = 2.0  # on an idle machine
SLACK = 3  # how much slower another machine may be


def silences(command: list[str], **environment: str) -> tuple[int, list[tuple[float, str]]]:
    """Exit status of a command in a terminal; seconds of each silence, and what was shown before it."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, stdout=slave, stderr=slave, env=os.environ | environment)
    os.close(slave)
    found, last, shown = [], time.monotonic(), b""
    while True:
        if not select.select([master], [], [], 0.05)[0]:
            continue
        try:
            text = os.read(master, 65536)
        except OSError:  # the end, on Linux
            break
        if not text:
            break
        now = time.monotonic()
        found.append((now - last, shown.decode(errors="replace")[-200:]))
        last, shown = now, text
    os.close(master)
    return process.wait(), found


def busy_factor() -> float:
    """How many times as long the machine takes for work as an idle core would."""
    wall, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.3:
        pass
    return max(1.0, (time.monotonic() - wall) / 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [[], ["--budget=8s"]], ids=["epochs", "budget"])
def test_training_is_never_silent(tmp_path: Path, budget: list[str]):
    data = write_images(tmp_path / "images", count=60)
    options = [option for option in TINY if not (budget and option.startswith("--epochs"))]
    before = busy_factor()
    status, found = silences(
        [
            sys.executable,
            "-m",
            "deitkit",
            "train",
            str(data),
            "--out",
            str(tmp_path / "run"),
            *options,
            *budget,
        ],
        TERM="xterm",
    )
    assert status == 0 and (tmp_path / "run" / "report.html").exists()
    slack = SLACK * max(before, busy_factor())
    assert max(found)[0] < LONGEST_S * slack, max(found)
