"""Explanations: the papers' maps by hand, the class that is asked for, what cannot be explained."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deitkit.classifier import load
from deitkit.errors import DependencyError, SettingError, WeightsError
from deitkit.evaluation import explanation
from deitkit.evaluation.attention import attended, gradient_rollout, layers, patch_maps
from deitkit.evaluation.explanation import METHODS, explain_views, maps_of, methods_of

from ..teachers.models import fitted_folder


@pytest.fixture
def student(random_run):
    return load(random_run, device="cpu", backend="pytorch")


@pytest.fixture
def views() -> torch.Tensor:
    return torch.randint(0, 255, (3, 3, 16, 24), dtype=torch.uint8)


def test_attended_is_the_forward_pass(student, views):
    images = student.normalise(views)
    output, attentions = attended(student.model, images)
    with torch.inference_mode():
        expected = student.model(images)
    assert torch.allclose(output.class_logits, expected.class_logits, atol=1e-5)
    assert torch.allclose(output.distill_logits, expected.distill_logits, atol=1e-5)
    found = [layer.attention for layer in layers(student.model, images) if layer.attention is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(attentions, found, strict=True))


def test_gradient_rollout_is_that_of_the_paper():
    rng = np.random.default_rng(0)
    attentions, gradients = rng.random((3, 2, 2, 5, 5)), rng.normal(size=(3, 2, 2, 5, 5))
    expected = np.stack([np.eye(5)] * 2)
    for A, G in zip(attentions, gradients, strict=True):
        expected = expected + np.maximum(G * A, 0).mean(1) @ expected
    found = gradient_rollout(*([torch.from_numpy(x) for x in each] for each in (attentions, gradients)))
    np.testing.assert_allclose(found, expected)
    with pytest.raises(ValueError, match="at least one block"):
        gradient_rollout([], [])


def test_gradients_are_those_of_the_explained_logit(student, views):
    """A change of the last block's attention changes the logit as the gradient says."""
    targets = torch.tensor([0, 1, 1])
    maps, heads = maps_of(student, views, targets)
    assert set(maps) == set(METHODS) and all(m.shape == (3, 2, 2, 3) for m in maps.values())
    assert heads.shape == (3, 2, 2, 2, 2, 3)  # images, blocks, heads, tokens, grid
    model, images = student.model, student.normalise(views)
    images.requires_grad_()
    output, attentions = attended(model, images)
    logits = (output.class_logits + output.distill_logits) / 2
    gradients = [
        torch.stack(
            [torch.autograd.grad(logits[i, k], a, retain_graph=True)[0][i] for i, k in enumerate(targets)]
        )
        for a in attentions
    ]
    expected = patch_maps(gradient_rollout(attentions, gradients), model.grid_size)
    assert torch.allclose(maps["gradient-rollout"], expected, atol=1e-6)
    assert torch.allclose(maps["attention"], heads[:, -1].mean(1), atol=1e-6)


def test_the_predicted_class_is_explained_or_the_one_that_is_named(student, views):
    arrays = list(views.numpy())
    expected = student.backend(views.float() / 255)[0]
    for i, found in enumerate(explain_views(student, ["a", "b", "c"], arrays, [None, "cat", "dog"])):
        wanted = [None, "cat", "dog"][i] or student.classes[expected[i].argmax()]
        assert (found.source, found.label) == ("abc"[i], wanted)
        assert found.predicted == student.classes[expected[i].argmax()]
        assert found.probability == pytest.approx(float(expected[i, student.classes.index(wanted)]), abs=1e-6)
        assert found.map().shape == (2, 3) and (found.map() >= 0).all()
    one, other = explain_views(student, ["a", "a"], [arrays[0]] * 2, ["cat", "dog"])
    assert not np.allclose(one.map(), other.map())
    assert np.array_equal(one.map("rollout"), other.map("rollout"))  # of no class
    with pytest.raises(SettingError, match="no class 'dgo'; did you mean 'dog'"):
        explain_views(student, ["a"], arrays[:1], ["dgo"])


def test_grad_cam_is_that_of_the_paper(tmp_path):
    pytest.importorskip("captum", reason='needs pip install "deitkit[explain]"')
    teacher = load(fitted_folder(tmp_path, side=96), device="cpu", backend="pytorch")
    views, targets = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8), torch.tensor([1, 0])
    [(member, layer)] = explanation._grad_cam_layers(teacher)
    kept = []
    hook = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = member((views.float() / 255).requires_grad_())[0]
    hook.remove()
    [gradient] = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), kept)
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).clamp(min=0)
    assert cam.shape[-1] > 1 and (cam.amax((1, 2, 3)) > 0).all()
    expected = F.interpolate(cam / cam.amax((1, 2, 3), keepdim=True), (96, 96), mode="bilinear")
    maps, attention = maps_of(teacher, views, targets)
    assert methods_of(teacher) == ("grad-cam",) and attention is None
    assert torch.allclose(maps["grad-cam"], expected, atol=1e-5)


def test_without_captum_grad_cam_is_refused(tmp_path, monkeypatch):
    teacher = load(fitted_folder(tmp_path), device="cpu", backend="pytorch")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(DependencyError, match=r"deitkit\[explain\]"):
        methods_of(teacher)


def test_a_teacher_without_feature_maps_is_refused(tmp_path):
    pytest.importorskip("captum", reason='needs pip install "deitkit[explain]"')
    teacher = load(fitted_folder(tmp_path, "test_vit", side=160), device="cpu", backend="pytorch")
    with pytest.raises(WeightsError, match="no convolutional network"):
        methods_of(teacher)
