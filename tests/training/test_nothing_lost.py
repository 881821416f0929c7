"""Damaged checkpoints, and two jobs on one run folder: the same weights in the end, or one sentence."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from deitkit import train
from deitkit.config import OptimConfig
from deitkit.errors import Interrupted, RunFolderError, TrainingError
from deitkit.io import digest, write_tensors
from deitkit.training.optim import OPTIMIZERS, parameter_groups
from deitkit.training.state import EMA, TrainingState, load_checkpoint, save_checkpoint
from deitkit.training.trainer import Trainer
from tests.conftest import write_images

SETTINGS = {
    "teacher.spec": "none",
    "student.image_size": 16,
    "student.patch_size": 8,
    "train.batch_size": 8,
    "train.epochs": 1,
    "train.device": "cpu",
    "student.initial_weights": "none",
}


def new_state(value: float = 0.0) -> TrainingState:
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, value)
    return TrainingState(
        model, None, EMA(model, 0.9), OPTIMIZERS["adamw"](parameter_groups([model], 0.05), OptimConfig())
    )


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two of them: the weights are 1, then 2."""
    for step in (1, 2):
        state = new_state(float(step))
        state.step = step
        save_checkpoint(tmp_path, state, {"epochs": 3})
    return tmp_path


@pytest.mark.parametrize("seed", range(40))
def test_no_changed_byte_of_a_checkpoint_is_taken_for_training(checkpoints, seed):
    """The checkpoint before is used, which safetensors alone would do for a few bytes; or the byte was one of
    the checksum's name, and weights and step are whole."""
    newest, rng = checkpoints / "step-00000002.safetensors", random.Random(seed)
    content = bytearray(newest.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    newest.write_bytes(content)
    state = new_state()
    used = load_checkpoint(checkpoints, state, {"epochs": 3})
    assert used in (checkpoints / "step-00000001.safetensors", newest)
    assert state.step == int(used is not None and used == newest) + 1
    assert state.model.weight.eq(state.step).all()


@pytest.mark.parametrize("name", [b"step", b"seconds"])
def test_a_checkpoint_that_lost_its_checksum_is_not_used(checkpoints, name):
    newest = checkpoints / "step-00000002.safetensors"
    content = newest.read_bytes().replace(b"sha256", b"sha257", 1)
    newest.write_bytes(content.replace(name, name[:-1] + b"x", 1))
    assert (
        load_checkpoint(checkpoints, new_state(), {"epochs": 3}) == checkpoints / "step-00000001.safetensors"
    )


def test_a_whole_checkpoint_is_used(checkpoints):
    state = new_state()
    assert load_checkpoint(checkpoints, state, {"epochs": 3}) == checkpoints / "step-00000002.safetensors"
    assert state.step == 2 and state.model.weight.eq(2).all()


def test_a_damaged_checkpoint_is_named(checkpoints, capsys):
    newest = checkpoints / "step-00000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    load_checkpoint(checkpoints, new_state(), {"epochs": 3})
    assert "step-00000002.safetensors cannot be read" in capsys.readouterr().err


HOLD = """
import sys
from pathlib import Path
from deitkit.locks import Claims
with Claims(Path(sys.argv[1])) as claims:
    assert claims.take(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_belongs_to_one_process(tmp_path):
    """The lock ends with its process, however that ends."""
    images, out = write_images(tmp_path / "images"), tmp_path / "run"
    out.mkdir()
    command = [sys.executable, "-c", HOLD, str(out / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(RunFolderError, match=r"another process works in .*run"):
        train(images, out, **SETTINGS)
    assert not (out / "settings.json").exists()
    holder.kill()
    holder.communicate()
    train(images, out, **SETTINGS)
    assert (out / "results.json").exists()


def test_a_checkpoint_of_nothing_but_nan_ends_a_training(tmp_path, monkeypatch):
    """Its checksum is right, as a stranger would make it."""
    images, out, end = write_images(tmp_path / "images"), tmp_path / "run", Trainer._end_epoch

    def stop(self: Trainer, *arguments: object) -> None:
        end(self, *arguments)
        raise Interrupted

    settings = SETTINGS | {"train.epochs": 3, "train.patience": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop)
        with pytest.raises(Interrupted):
            train(images, out, **settings)
    [path] = (out / "checkpoints").iterdir()
    with safe_open(path, "pt") as opened:
        facts = opened.metadata()["facts"]
        flat = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 - not a dict
    flat = {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in flat.items()}
    write_tensors(path, flat, {"facts": facts, "sha256": digest(flat, facts)})
    with pytest.raises(TrainingError, match="the loss is not a finite number"):
        train(images, out, resume=True, **settings)
