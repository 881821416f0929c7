"""Hybrid students: a convnet's stages in place of the patch projection."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deitkit.errors import DeitkitError
from deitkit.evaluation.speed import kept_values
from deitkit.models import DeiT, create_model
from deitkit.models.conv_stem import STAGES, ConvStem


@pytest.fixture(scope="module")
def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with random weights and random statistics of its batch norms."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.1, 0.1)
    return network


@torch.no_grad()
def first_stages(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    x = network.bn1(network.conv_stem(images))
    for stage in list(network.blocks)[: len(STAGES)]:
        x = stage(x)
    return x


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_the_stem_is_the_teachers_first_stages(efficientnet, size):
    stem = ConvStem()
    stem.load_efficientnet(efficientnet.state_dict(), (127 / 255,) * 3, (128 / 255,) * 3)
    images = torch.randn(2, 3, *size)
    expected = first_stages(efficientnet, images)
    assert expected.shape == (2, ConvStem.channels, size[0] // 32, size[1] // 32)
    with torch.no_grad():
        torch.testing.assert_close(stem(images), expected, atol=1e-4, rtol=1e-4)


def test_the_students_normalisation_is_folded_in(efficientnet):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    stem = ConvStem()
    stem.load_efficientnet(efficientnet.state_dict(), mean, std)
    pixels = torch.rand(1, 3, 128, 128)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        own = stem.first((pixels - m) / s)[..., 1:-1, 1:-1]  # padding stands for another colour
        convolved = efficientnet.conv_stem((255 * pixels - 127) / 128)
        norm = efficientnet.bn1
        expected = nn.functional.batch_norm(
            convolved, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )[..., 1:-1, 1:-1]
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_network_are_refused(efficientnet):
    state = dict(reversed(efficientnet.state_dict().items()))
    with pytest.raises(ValueError, match="expected"):
        ConvStem().load_efficientnet(state, (0.5,) * 3, (0.5,) * 3)


def test_a_hybrid_has_both_heads_and_patch_tokens():
    model = create_model("nano-hybrid", num_classes=5, image_size=(64, 96)).eval()
    with torch.no_grad():
        out = model(torch.randn(2, 3, 64, 96), tokens_after=(1,))
    assert out.class_logits.shape == out.distill_logits.shape == (2, 5)
    assert out.grid_size == (2, 3) and out.patch_tokens[0].shape == (2, 6, 192)


def test_its_description_makes_the_same_model():
    model = create_model("nano-hybrid", num_classes=5, image_size=64)
    again = DeiT.from_description(model.describe(), 5)
    again.load_state_dict(model.state_dict())
    assert again.stem is not None and again.describe() == model.describe()


def test_other_patches_are_refused():
    with pytest.raises(DeitkitError, match="patches of 32x32"):
        create_model("nano-hybrid", num_classes=5, image_size=64, patch_size=16)


def test_what_autograd_keeps_of_it_is_counted():
    """By which the micro-batch on a GPU is chosen."""
    with torch.device("meta"):
        hybrid = create_model("nano-hybrid", num_classes=5, image_size=64)
        plain = create_model("nano", num_classes=5, image_size=64, patch_size=32)
    trained = kept_values(hybrid)
    hybrid.stem.requires_grad_(False)
    frozen = kept_values(hybrid)
    assert trained > 5 * frozen and 0 < frozen < 2 * kept_values(plain)
