"""A signal before the first step ends a training with a line that says how to resume."""

from __future__ import annotations

import os
import signal
import time

import pytest

from deitkit import cli
from deitkit.training import session
from tests.conftest import TINY, write_images


@pytest.fixture(autouse=True)
def heard():
    """A shell starts background jobs with SIGINT ignored, and pytest may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_images_are_decoded(tmp_path, monkeypatch, capsys, name):
    images = write_images(tmp_path / "images")

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(10)  # another thread may get the signal first

    monkeypatch.setattr(session, "open_dataset", stopped)
    command = ["train", str(images), "--out", str(tmp_path / "run"), *TINY]
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Interrupted; finished work is kept. To resume: deitkit train")
    assert last.endswith("--resume")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
