"""A hybrid's frozen stem on another backend while the rest is trained."""

from __future__ import annotations

import pytest
import torch

from deitkit.models.deit import DeiT, create_model
from deitkit.training import frozen_stem
from deitkit.training.frozen_stem import fast_frozen_stem

CPU = torch.device("cpu")


@pytest.fixture
def hybrid() -> DeiT:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    student = create_model("nano-hybrid", num_classes=3, image_size=64)
    assert student.stem is not None
    student.stem.requires_grad_(False)
    return student


def test_outputs_and_gradients_are_pytorchs(hybrid, monkeypatch):
    images, ran = torch.randn(4, 3, 64, 64), []
    monkeypatch.setattr(type(hybrid.stem), "forward", noted(type(hybrid.stem).forward, ran))
    expected = hybrid(images).class_logits
    (own,) = torch.autograd.grad(expected.sum(), hybrid.patch_embed.proj.weight)
    assert len(ran) == 1
    with fast_frozen_stem(hybrid, CPU):
        ran.clear()
        found = hybrid(images).class_logits
        (other,) = torch.autograd.grad(found.sum(), hybrid.patch_embed.proj.weight)
        assert ran == []
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(other, own, atol=1e-3, rtol=1e-2)
    hybrid(images)
    assert len(ran) == 1  # PyTorch's again


def noted(forward, ran: list[int]):
    def call(stem, images):
        ran.append(len(images))
        return forward(stem, images)

    return call


def test_images_of_another_size_run_with_pytorch(hybrid):
    hybrid.train()
    with fast_frozen_stem(hybrid, CPU):
        small = hybrid(torch.randn(2, 3, 32, 32)).class_logits
    assert small.shape == (2, 3)


def test_a_stem_that_is_trained_or_disagrees_stays_with_pytorch(hybrid, monkeypatch):
    monkeypatch.setattr(frozen_stem, "agrees", lambda *outputs: False)
    with fast_frozen_stem(hybrid, CPU):
        assert hybrid.patch_embed.run_stem is None
    monkeypatch.undo()
    hybrid.stem.requires_grad_(True)
    with fast_frozen_stem(hybrid, CPU):
        assert hybrid.patch_embed.run_stem is None


def test_other_students_are_left_alone():
    plain = create_model("nano", num_classes=3, image_size=32, patch_size=8)
    with fast_frozen_stem(plain, CPU):
        assert plain(torch.zeros(1, 3, 32, 32)).class_logits.shape == (1, 3)
