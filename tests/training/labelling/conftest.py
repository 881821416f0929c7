"""What the tests of soft labels share: images, a teacher, its soft labels, and students of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import deitkit
from deitkit.soft_labels.store import open_soft_labels
from deitkit.training import results
from deitkit.training import run as job
from tests.conftest import write_images

# Every kind of randomness that a view or a student can have.
VIEWS = {
    "student.image_size": 16,
    "train.batch_size": 8,
    "train.micro_batch_size": 3,
    "data.repeats": 3,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.randaugment_ops": 2,
    "augment.erasing": 0.25,
    "train.device": "cpu",
}
STUDENT = {
    "student.initial_weights": "none",
    "student.patch_size": 8,
    "student.drop_path_rate": 0.2,
    "train.micro_batch_size": 3,
    "optim.lr": 1e-2,
    "distillation.distill_until": 1.0,
}
EPOCHS = 3


@pytest.fixture(scope="package")
def stage(tmp_path_factory):
    """Images of three classes, and a small convnet's weights as the teacher."""
    folder = tmp_path_factory.mktemp("labelling")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "teacher.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        write_images(folder / "images", ("cat", "dog", "bird"))
        yield folder


@pytest.fixture(autouse=True)
def shared_cache(stage, own_cache, monkeypatch):
    monkeypatch.setenv("DEITKIT_CACHE", str(stage / "cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without what takes long and is tested elsewhere."""
    monkeypatch.setattr(results, "images_per_s", lambda run, images: 1.0)
    monkeypatch.setattr(results, "rates_in_turns", lambda runs, images: {key: [1.0] for key in runs})
    monkeypatch.setattr(job, "write_report", lambda folder: None)


def teacher_settings(stage: Path) -> dict:
    return {
        "teacher.spec": f"timm:test_efficientnet@{stage / 'teacher.safetensors'}",
        "teacher.image_size": 32,
        "teacher.probe_views": 1,
        "teacher.backend": "pytorch",
    }


def label(stage: Path, out: Path, epochs: int = EPOCHS, **more):
    return deitkit.label(stage / "images", out, epochs=epochs, **VIEWS, **teacher_settings(stage), **more)


def train(stage: Path, out: Path, **settings) -> dict[str, torch.Tensor]:
    """The weights after the last step, whether raw or averaged ones were kept."""
    deitkit.train(stage / "images", out, **STUDENT | settings)
    last = sorted((out / "checkpoints").glob("*.safetensors"))[-1]
    return {k: v for k, v in load_file(last).items() if k.startswith("model.")}


@pytest.fixture(scope="package")
def soft(stage) -> Path:
    label(stage, stage / "soft")
    return stage / "soft"


@pytest.fixture(scope="package")
def hard(stage) -> Path:
    label(stage, stage / "hard", hard=True)
    return stage / "hard"


def shards(folder: Path) -> dict[str, list]:
    """The rows of every shard, checked."""
    if not (folder / "manifest.json").exists():
        return {}
    store = open_soft_labels(folder)
    places = [place for place in store.places(10) if store.path(place).exists()]
    return {store.path(place).name: store.read(place).tolist() for place in places}
