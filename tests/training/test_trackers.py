"""Curves in the trackers' own local stores; packages that are missing; nothing twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deitkit
from deitkit.errors import DependencyError, SettingError
from deitkit.training import trackers as module
from deitkit.training.trackers import TRACKERS, trackers

SMALL = {
    "teacher__spec": "none",
    "student__image_size": 16,
    "student__patch_size": 8,
    "student__initial_weights": "none",
    "train__batch_size": 8,
    "train__epochs": 2,
    "train__device": "cpu",
}
LINES = [
    {"epoch": 1, "step": 3, "train": {"loss": 2.0}, "val": {"top1": 50.0, "top1_distill": None}, "lr": 0.1},
    {"epoch": 2, "step": 6, "train": {"loss": 1.0}},
]


class Kept:
    """A tracker that keeps what it is given."""

    opened: list[Kept]

    def __init__(self, folder, settings):
        self.folder, self.settings, self.lines, self.closed = folder, settings, [], False
        Kept.opened.append(self)

    def on_step(self, step, images): ...

    def on_epoch(self, line):
        self.lines.append(line)

    def close(self):
        self.closed = True


def test_training_opens_the_trackers_that_it_is_asked_for(image_folder, tmp_path, monkeypatch):
    Kept.opened = []
    kept = module.TrackerKind(Kept, "json", "json")
    monkeypatch.setattr(module, "TRACKERS", {"kept": kept, "tensorboard": kept})
    deitkit.train(image_folder, tmp_path / "run", train__log="kept", train__baseline=True, **SMALL)
    first, baseline = Kept.opened
    assert (first.folder, baseline.folder) == (tmp_path / "run", tmp_path / "run" / "baseline")
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in first.lines] == [line["epoch"] for line in written] == [1, 2]
    assert first.settings["train.batch_size"] == 8 and first.closed and baseline.closed


def test_a_tracker_is_closed_when_training_fails():
    Kept.opened = []
    module_kinds = {"kept": module.TrackerKind(Kept, "json", "json")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRACKERS", module_kinds)
        with pytest.raises(ZeroDivisionError), trackers(["kept"], Path("run"), {}):
            raise ZeroDivisionError
    assert Kept.opened[0].closed


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_told_before_training(image_folder, tmp_path, name, monkeypatch):
    monkeypatch.setattr(module, "_installed", lambda kind: False)
    with pytest.raises(DependencyError, match=rf"deitkit\[{name}\]"):
        deitkit.train(image_folder, tmp_path / "run", train__log=name, **SMALL)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_told(image_folder, tmp_path):
    with pytest.raises(SettingError, match="cannot be 'clearml'; choose one of tensorboard, mlflow, wandb"):
        deitkit.train(image_folder, tmp_path / "run", train__log="tensorboard,clearml", **SMALL)


def test_tensorboard_is_left_out_where_it_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_installed", lambda kind: False)
    with trackers(["tensorboard"], tmp_path, {}) as found:
        assert found == []


def log_twice(name: str, folder: Path) -> None:
    """An epoch, a stop, and an epoch after a resume."""
    for line in LINES:
        with trackers([name], folder, {"train": {"seed": 7}}) as [tracker]:
            tracker.on_epoch(line)


def test_mlflow_has_the_curves(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "deitkit[mlflow]"')
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("deitkit").experiment_id])
    assert run.info.run_name == tmp_path.name and run.info.status == "FINISHED"
    assert run.data.params == {"train.seed": "7"}
    loss = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in loss] == [(3, 2.0), (6, 1.0)]
    assert {m for m in run.data.metrics} == {"epoch", "step", "train/loss", "val/top1", "lr"}


def records(file: Path) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    content, found, parts, place = file.read_bytes(), [], [], 7
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(b"".join(parts))
            parts = []
    return found


def test_wandb_has_the_curves(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='needs pip install "deitkit[wandb]"')
    from wandb.proto import wandb_internal_pb2

    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_twice("wandb", tmp_path)
    losses, runs = [], set()
    for file in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for content in records(file):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.HasField("run"):
                runs.add((record.run.run_id, record.run.project, record.run.display_name))
            for item in record.history.item:
                if "train/loss" in (item.key, *item.nested_key):
                    losses.append(float(item.value_json))
    assert losses == [2.0, 1.0]
    [(_, project, name)] = runs  # one run, continued
    assert (project, name) == ("deitkit", tmp_path.name)


def test_the_registry_is_the_settings(tmp_path):
    assert set(TRACKERS) == {"tensorboard", "mlflow", "wandb"}
