"""A signal before the first step ends a training with a line that says how to resume."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import TINY, write_images

# In a process of its own: a signal would hit the tests, and whoever started them may ignore SIGINT.
STOPPED = """
import os, signal, sys, time
from deitkit import cli
from deitkit.training import session

name, *command = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)

def stopped(*_, **__):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(10)  # another thread may get the signal first

session.open_dataset = stopped
try:
    cli.main(command)
finally:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_images_are_decoded(tmp_path, name):
    images = write_images(tmp_path / "images")
    command = ["train", str(images), "--out", str(tmp_path / "run"), *TINY]
    script = [sys.executable, "-c", STOPPED, name, *command]
    end = subprocess.run(script, stderr=subprocess.PIPE, text=True, timeout=250)
    assert end.returncode == 130
    last = end.stderr.splitlines()[-1]
    assert last.startswith("Interrupted; finished work is kept. To resume: deitkit train")
    assert last.endswith("--resume")
