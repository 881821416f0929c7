"""Views that are shown again: once made, what frozen networks make of them is not asked for again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deitkit
from deitkit.data.loader import TrainingViews
from deitkit.errors import Interrupted
from deitkit.teachers.teacher import TeacherOutput
from deitkit.training import frozen_stem, step_inputs
from deitkit.training.budget import _epochs_within, _EpochTimes
from deitkit.training.trainer import Trainer
from deitkit.training.view_memory import FrozenOutputs, ViewMemory

from .test_hybrid import lite0  # noqa: F401

EPOCHS, VIEWS = 5, 2


@pytest.fixture
def without_conversion(monkeypatch):
    """To OpenVINO, which takes seconds."""
    monkeypatch.setattr(frozen_stem, "installed", lambda backend: False)


@pytest.fixture
def train(lite0, image_folder, tmp_path):  # noqa: F811
    def run(name: str, **settings: object) -> dict[str, torch.Tensor]:
        base = {
            "student__image_size": (32, 32),
            "student__initial_weights": "none",
            "teacher__spec": f"timm:tf_efficientnet_lite0@{lite0}",
            "teacher__image_size": 32,
            "teacher__deploy_sizes": None,
            "teacher__backend": "pytorch",
            "data__views": VIEWS,
            "train__epochs": EPOCHS,
            "train__device": "cpu",
            "train__batch_size": 7,
        }
        deitkit.train(image_folder, tmp_path / name, recipe="hybrid", **(base | settings))
        return load_file(tmp_path / name / "model.safetensors")

    return run


def noted(monkeypatch, owner: type, method: str, size) -> list[int]:
    """The sizes of the calls of a method from now on."""
    sizes: list[int] = []
    original = getattr(owner, method)

    def call(self, *arguments):
        sizes.append(size(*arguments))
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, call)
    return sizes


def test_each_view_is_made_once_and_trains_as_if_it_were_made_again(train, without_conversion, monkeypatch):
    with monkeypatch.context() as patch:
        made = noted(patch, TrainingViews, "make", lambda batch: len(batch.indices))
        remembered = train("remembered")
    with monkeypatch.context() as patch:
        patch.setattr(step_inputs, "view_memory", lambda *_: None)
        again = noted(patch, TrainingViews, "make", lambda batch: len(batch.indices))
        plain = train("plain")
    images = (sum(again) - sum(made)) / (EPOCHS - VIEWS)
    assert images > 10 and images == int(images)
    assert sum(made) >= VIEWS * images
    for name, tensor in plain.items():
        torch.testing.assert_close(remembered[name], tensor, atol=2e-4, rtol=1e-3, msg=name)


def test_a_stopped_run_resumes_exactly(train, monkeypatch, stopped_after=3):
    backend = {"teacher__backend": "auto"}
    whole = train("whole", **backend)
    end_epoch = Trainer._end_epoch

    def stop(self: Trainer, epoch: int, *rest: object) -> None:
        end_epoch(self, epoch, *rest)
        if epoch + 1 == stopped_after:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop)
        with pytest.raises(Interrupted):
            train("stopped", **backend)
    resumed = train("stopped", resume=True, **backend)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"augment__mixup": 0.8},
        {"optim__stem_lr": 0.1},
        {"data__views": None},
        {"data__views": EPOCHS},
        {"distillation__features": "maps", "distillation__feature_weight": 1.0},
    ],
)
def test_nothing_is_remembered_where_it_would_be_wrong_or_of_no_use(
    train, without_conversion, monkeypatch, settings
):
    seen = []
    run = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, *a: (seen.append(self.inputs.memory), run(self, *a))[1])
    train("run", **settings)
    assert seen == [None]


def test_labels_alone_at_the_end_ask_for_no_teacher(train, without_conversion, monkeypatch):
    """The stem's outputs are still those of the first epochs."""
    made = noted(monkeypatch, TrainingViews, "make", lambda batch: len(batch.indices))
    whole = train("whole", distillation__distill_until=0.5, distillation__feature_until=0.5)
    first = sum(made)
    train("longer", distillation__distill_until=0.5, distillation__feature_until=0.5, train__epochs=8)
    assert sum(made) == 2 * first
    assert all(tensor.isfinite().all() for tensor in whole.values())


def test_a_memory_gives_back_rows_in_any_order():
    memory, keys = ViewMemory(), np.array([5, 2**63, 7], np.uint64)
    stem, logits, embedding = torch.rand(3, 192, 1, 1), torch.rand(3, 2), torch.rand(3, 4)
    memory.remember(keys, FrozenOutputs(stem, TeacherOutput(logits, (), embedding)))
    found = memory.recall(keys[[2, 0]], taught=True)
    assert found is not None and found.teacher is not None and found.teacher.embedding is not None
    assert torch.equal(found.stem, stem[[2, 0]])
    assert torch.equal(found.teacher.logits, logits[[2, 0]])
    assert torch.equal(found.teacher.embedding, embedding[[2, 0]])
    assert memory.recall(np.array([5, 6], np.uint64), taught=False) is None
    memory.remember(np.array([6], np.uint64), FrozenOutputs(stem[:1], None))
    assert memory.recall(np.array([6], np.uint64), taught=True) is None  # the teacher was not asked
    assert memory.recall(np.array([6], np.uint64), taught=False) is not None


def test_epochs_of_known_views_are_planned_as_cheap():
    """20 s hold two epochs of new views and twelve of known ones; fewer beside a baseline of 4 s each."""
    student, baseline = _EpochTimes(new=4.0, again=1.0, views=2), _EpochTimes(4.0, 4.0, math.inf)
    assert _epochs_within(20.0, [student]) == 14
    assert student.of(14) == 20.0 and student.of(1) == 4.0
    assert _epochs_within(3.9, [student]) == 0
    assert _epochs_within(20.9, [student, baseline]) == 2
    assert _epochs_within(21.0, [student, baseline]) == 3
