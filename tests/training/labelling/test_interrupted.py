"""Labelling that is killed, shared by processes or out of space: no shard is lost or made twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from deitkit import DeitkitError
from deitkit import io as files
from tests.training.labelling.conftest import EPOCHS, VIEWS, label, shards, teacher_settings

# Labels slowly, so that processes share the epochs; is killed at the write after a given number.
CHILD = """
import os, signal, sys, time, json
import deitkit
from deitkit.soft_labels.store import SoftLabelStore
write, left = SoftLabelStore.write, int(sys.argv[4])
def slow(*arguments):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    time.sleep(0.6)
    write(*arguments)
SoftLabelStore.write = slow
deitkit.label(sys.argv[1], sys.argv[2], epochs=3, **json.loads(sys.argv[3]))
"""


def start(stage: Path, out: Path, whole_writes: int) -> subprocess.Popen[bytes]:
    settings = json.dumps(VIEWS | teacher_settings(stage))
    command = [sys.executable, "-c", CHILD, str(stage / "images"), str(out), settings, str(whole_writes)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)


def test_killed_and_resumed(stage, tmp_path, soft):
    assert start(stage, tmp_path / "killed", whole_writes=1).wait() == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("epoch-*.safetensors")}
    assert len(kept) == 1
    label(stage, tmp_path / "killed")
    assert all(p.stat().st_mtime_ns == written for p, written in kept.items())
    assert shards(tmp_path / "killed") == shards(soft)


@pytest.mark.slow
def test_processes_share_the_work(stage, tmp_path, soft):
    children = [start(stage, tmp_path / "shared", EPOCHS) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert shards(tmp_path / "shared") == shards(soft)


def test_killed_before_the_manifest(stage, tmp_path, soft):
    """Without a manifest the teacher's settings are unknown, so it is fitted again."""
    out = tmp_path / "early"
    shutil.copytree(soft / "teacher", out / "teacher")
    (out / "teacher" / "teacher.json").write_text("{")
    label(stage, out)
    assert shards(out) == shards(soft)


def test_full_disk_halfway(stage, tmp_path, soft, monkeypatch):
    real, written = files.save_file, []

    def full(tensors, path, metadata):
        written.append(path)
        if sum("epoch-" in p.name for p in written) == 2:
            raise SafetensorError(f"Error: I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})")
        real(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(DeitkitError, match=r"the 1 finished epochs there are safe.*command again"):
            label(stage, tmp_path / "full")
    assert shards(tmp_path / "full").items() < shards(soft).items()
    label(stage, tmp_path / "full")
    assert shards(tmp_path / "full") == shards(soft)


def test_too_little_space_is_refused_first(stage, tmp_path, soft, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DeitkitError, match="are free"):
        label(stage, tmp_path / "small", epochs=1000)
    assert not shards(tmp_path / "small")
