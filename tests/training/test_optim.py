"""The optimizer that the settings name."""

from __future__ import annotations

import torch
from torch import nn

from deitkit.config import OptimConfig
from deitkit.models import create_model
from deitkit.training.optim import OPTIMIZERS, create_optimizer, parameter_groups


def test_sgd_takes_nesterovs_steps_with_decay_on_matrices_only():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0), model.bias.fill_(2.0)
    config = OptimConfig(name="sgd", lr=0.1, betas=(0.9, 0.999), weight_decay=0.5)
    optimizer = OPTIMIZERS["sgd"](parameter_groups([model], config.weight_decay), config)
    expected, velocity = {"weight": 2.0, "bias": 2.0}, {"weight": 0.0, "bias": 0.0}
    for _ in range(3):
        optimizer.zero_grad()
        (3 * model.weight + 3 * model.bias).sum().backward()
        optimizer.step()
        for name, decay in (("weight", 0.5), ("bias", 0.0)):
            gradient = 3 + decay * expected[name]
            velocity[name] = 0.9 * velocity[name] + gradient
            expected[name] -= 0.1 * (gradient + 0.9 * velocity[name])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.item(), expected[name])


def rates(config: OptimConfig, name: str = "nano", **settings) -> dict[str, float]:
    """The share of the learning rate that each parameter gets; without those that are not trained."""
    model = create_model(name, num_classes=2, image_size=32, **settings)
    if model.stem is not None and config.stem_lr == 0:
        model.stem.requires_grad_(False)
    groups = create_optimizer(model, nn.Linear(2, 2), config).param_groups
    share = {id(p): group["lr_share"] for group in groups for p in group["params"]}
    return {key: share[id(p)] for key, p in model.named_parameters() if id(p) in share}


def test_layer_decay_lowers_the_rate_from_the_heads_to_the_patches():
    found = rates(OptimConfig(layer_decay=0.5), patch_size=16)
    assert found["head.weight"] == found["norm.weight"] == found["head_dist.bias"] == 1.0
    assert [found[f"blocks.{i}.attn.qkv.weight"] for i in range(6)] == [0.5**k for k in range(6, 0, -1)]
    assert found["patch_embed.proj.weight"] == found["pos_embed"] == found["cls_token"] == 0.5**7


def test_without_layer_decay_there_are_two_groups():
    model = create_model("nano", num_classes=2, image_size=32, patch_size=16)
    groups = create_optimizer(model, nn.Linear(2, 2), OptimConfig(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], group["lr_share"]) for group in groups] == [(0.1, 1.0), (0.0, 1.0)]
    trained = sum(p.numel() for group in groups for p in group["params"])
    assert trained == sum(p.numel() for p in model.parameters()) + 6


def test_a_hybrids_stem_has_a_rate_of_its_own_or_is_frozen():
    stem = "patch_embed.stem.first.weight"
    assert rates(OptimConfig(stem_lr=0.1), "nano-hybrid")[stem] == 0.1
    frozen = rates(OptimConfig(), "nano-hybrid")
    assert stem not in frozen and frozen["patch_embed.proj.weight"] == 1.0
