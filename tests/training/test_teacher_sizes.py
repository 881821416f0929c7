"""The sizes at which a teacher may be deployed: which ones there is time for, and when there are none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deitkit
from deitkit import recipes
from deitkit.cli.train import _models_table
from deitkit.evaluation.run_evaluation import evaluate_folder
from deitkit.report.tables import is_uneven
from deitkit.run_folder import read_results
from deitkit.run_schema import ModelResult
from deitkit.teachers.saved import read_teacher
from deitkit.training import teacher_sizes

from ..conftest import write_images
from ..teachers.models import timm_file

# 300 training images, each with its mirror image, and 100 to validate: 700 passes.
DATASET = SimpleNamespace(
    train=SimpleNamespace(images=np.zeros(300)), val=SimpleNamespace(images=np.zeros(100)), task="multiclass"
)


def session(left: float | None = None, **settings: object) -> SimpleNamespace:
    budget = None if left is None else SimpleNamespace(left=left)
    config = recipes.get("small-data").override({k.replace("__", "."): v for k, v in settings.items()})
    return SimpleNamespace(budget=budget, dataset=DATASET, config=config, has_larger_views=False)


def teacher(images_per_s: float) -> ModelResult:
    return ModelResult(name="lite0", params=1, images_per_s=images_per_s, image_size=(128, 128))


@pytest.mark.parametrize(
    ("left", "rate", "busy", "sizes"),
    [
        (None, 350.0, 1, [96, 128, 160, 224]),  # 2 s of passes at 128 px
        (70.0, 350.0, 1, [96, 128, 224]),  # 21 s: 224 takes 9.1 s, 128 5 s, 96 4.1 s
        (70.0, 350.0, 2, [224]),  # the first took 18 s
        (100.0, 350.0, 2, [128, 224]),  # 30 s: 18 s and 10 s
        (20.0, 350.0, 1, [128]),  # 6 s: 224 does not fit
        (5.0, 350.0, 1, []),
        (None, 0.1, 1, []),
    ],
)
def test_the_most_telling_sizes_come_first(monkeypatch, tmp_path, left, rate, busy, sizes):
    """And what one took tells what the next will take."""
    clock = [0.0]

    def measure(session, folder, backend, size, crop):
        clock[0] += busy * teacher_sizes._estimate(session, of, size)
        return SimpleNamespace(result=SimpleNamespace(scores={"top1": 90.0}))

    of = teacher(rate)
    asked = [(size, 0.875) for size in teacher_sizes._SIZES]
    monkeypatch.setattr(teacher_sizes, "_sizes", lambda session, of: asked)
    monkeypatch.setattr(teacher_sizes, "_fit_and_measure", measure)
    monkeypatch.setattr(teacher_sizes.time, "monotonic", lambda: clock[0])
    found = teacher_sizes.measure_teacher_sizes(session(left), tmp_path, SimpleNamespace(result=of))
    assert list(found) == [f"teacher-{size}" for size in sizes]


def test_sizes_of_the_settings_and_of_the_network(tmp_path):
    network = timm_file(tmp_path)

    def of(**settings: object) -> list[int]:
        return [size for size, _ in teacher_sizes._sizes(session(**settings), teacher(1.0))]

    assert of(teacher__spec=network) == [224, 128, 96, 160]
    assert of(teacher__spec=network, teacher__deploy_sizes="64,96") == [64, 96]
    assert of(teacher__spec=network, teacher__deploy_sizes="none") == []
    assert of(teacher__spec=f"{network}*2,{network}") == []  # an ensemble has no size of its own
    assert of(teacher__spec="none") == []
    assert of(teacher__spec=network, distillation__mode="none") == []


def test_without_a_teacher_there_is_nothing_to_measure(tmp_path):
    assert teacher_sizes.measure_teacher_sizes(session(), tmp_path, None) == {}


def test_on_uneven_classes_the_teachers_are_adjusted_like_the_student(tmp_path, monkeypatch):
    """At every size; what the student learns from, live or stored, stays the same."""
    data = write_images(tmp_path / "data", ("cat",), count=48)
    write_images(data, ("cat", "dog"), count=8)
    settings = {"teacher.spec": timm_file(tmp_path), "teacher.image_size": 32, "teacher.probe_views": 1}
    settings |= {"teacher.backend": "pytorch", "student.image_size": 16, "student.patch_size": 8}
    settings |= {"train.device": "cpu", "student.initial_weights": "none"}
    trained = {"train.epochs": 1, "teacher.deploy_sizes": "48"}
    for balance in ("none", "auto"):
        balanced = {"train.balance": balance}
        deitkit.train(data, tmp_path / balance, **settings | trained | balanced)
        deitkit.label(data, tmp_path / f"labels-{balance}", epochs=1, **settings | balanced)

    stored = [
        load_file(tmp_path / name / "epoch-00000-000.safetensors") for name in ("labels-none", "labels-auto")
    ]
    assert torch.equal(stored[0]["labels"], stored[1]["labels"])
    log_shares, views = torch.tensor([36 / 42, 6 / 42]).log(), torch.rand(4, 3, 24, 24)
    folders = {"teacher": ("teacher", None), "teacher-48": ("candidates/teacher-48", (48, 48))}
    for name, (folder, size) in folders.items():
        none, auto = (tmp_path / balance / folder for balance in ("none", "auto"))
        heads = [load_file(each / "teacher.safetensors") for each in (none, auto)]
        assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
        opened = [read_teacher(each, device=torch.device("cpu")) for each in (none, auto)]
        torch.testing.assert_close(opened[1](views).logits, opened[0](views).logits - log_shares)
        assert torch.equal(opened[1].unadjusted()(views).logits, opened[0](views).logits)

        result = read_results(tmp_path / "auto").models[name]
        assert "adjusted for uneven classes" in result.how and result.image_size == (size or (32, 32))
        found = evaluate_folder(tmp_path / "auto", data, model=name)
        assert found.metrics.balanced_accuracy == pytest.approx(result.scores["balanced_accuracy"])
        calibration = json.loads((auto / "calibration.json").read_text())
        assert calibration["nll"] <= calibration["nll_before"]

    results = read_results(tmp_path / "auto")
    assert is_uneven(results) and results.teacher.balanced_interval is not None
    from rich.console import Console

    console = Console(width=80, record=True)
    console.print(_models_table(results))
    text = console.export_text()
    low, high = results.teacher.balanced_interval
    assert f"{low:.1f}–{high:.1f}" in text and "…" not in text and "Teacher at 48 px" in text
