"""Several processes train as one does: the same losses, step by step, and the same weights in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .processes import CASES

ROOT = Path(__file__).parents[2]


def torchrun(*arguments: str, processes: int, more: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Ends within minutes, whatever happens. arguments: what each process runs, such as -m MODULE."""
    pytest.importorskip("torch.distributed.run")
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    return subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280
    )


def compared(folder: Path, processes: int, steps: int, *names: str) -> dict[str, dict[str, float]]:
    module = ("-m", "tests.training.processes", str(folder), str(steps), *names)
    done = torchrun(*module, processes=processes)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, float]] = json.loads((folder / "found.json").read_text())
    return found


def check(found: dict[str, dict[str, float]], steps: int) -> None:
    for name, of in found.items():
        assert of["steps"] >= steps, name
        assert of["loss"] < 1e-5, f"{name}: {of}"
        assert of["weights"] < 5e-3, f"{name}: {of}"
        assert of["processes"] == 1.0, f"{name}: the processes have come to different weights"


def test_two_processes_train_as_one(tmp_path):
    found = compared(tmp_path, 2, 8)
    assert set(found) == set(CASES)
    check(found, 8)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_train_as_one_over_a_hundred_steps(tmp_path, processes):
    found = compared(tmp_path, processes, 100)
    assert set(found) == set(CASES)
    check(found, 100)
