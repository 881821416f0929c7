"""The sizes at which a teacher may be deployed: which ones there is time for, and when there are none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deitkit import recipes
from deitkit.run_schema import ModelResult
from deitkit.training import teacher_sizes

from ..teachers.models import timm_file

# 300 training images, each with its mirror image, and 100 to validate: 700 passes.
DATASET = SimpleNamespace(
    train=SimpleNamespace(images=np.zeros(300)), val=SimpleNamespace(images=np.zeros(100)), task="multiclass"
)


def session(left: float | None = None, **settings: object) -> SimpleNamespace:
    budget = None if left is None else SimpleNamespace(left=left)
    config = recipes.get("small-data").override({k.replace("__", "."): v for k, v in settings.items()})
    return SimpleNamespace(budget=budget, dataset=DATASET, config=config)


def teacher(images_per_s: float) -> ModelResult:
    return ModelResult(name="lite0", params=1, images_per_s=images_per_s, image_size=(128, 128))


@pytest.mark.parametrize(
    ("left", "rate", "sizes"),
    [
        (None, 350.0, [96, 128, 160, 224]),  # 2 s of passes at 128 px
        (60.0, 350.0, [96, 128, 224]),  # 24 s: 224 takes 9.1 s, 128 5 s, 96 4.1 s
        (20.0, 350.0, [128]),  # 8 s: 224 does not fit
        (5.0, 350.0, []),
        (None, 0.1, []),
    ],
)
def test_the_most_telling_sizes_come_first(monkeypatch, tmp_path, left, rate, sizes):
    asked = [(size, 0.875) for size in teacher_sizes._SIZES]
    monkeypatch.setattr(teacher_sizes, "_sizes", lambda session: asked)
    found = teacher_sizes._affordable(session(left), tmp_path, teacher(rate))
    assert [size for size, _ in found] == sizes


def test_sizes_of_the_settings_and_of_the_network(tmp_path):
    network = timm_file(tmp_path)
    of = lambda **settings: [size for size, _ in teacher_sizes._sizes(session(**settings))]  # noqa: E731
    assert of(teacher__spec=network) == [224, 128, 96, 160]
    assert of(teacher__spec=network, teacher__deploy_sizes="64,96") == [64, 96]
    assert of(teacher__spec=network, teacher__deploy_sizes="none") == []
    assert of(teacher__spec=f"{network}*2,{network}") == []  # an ensemble has no size of its own
    assert of(teacher__spec="none") == []
    assert of(teacher__spec=network, distillation__mode="none") == []


def test_without_a_teacher_there_is_nothing_to_measure(tmp_path):
    assert teacher_sizes.measure_teacher_sizes(session(), tmp_path, None) == {}
