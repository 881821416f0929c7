"""The optimizer that the settings name."""

from __future__ import annotations

import torch
from torch import nn

from deitkit.config import OptimConfig
from deitkit.training.optim import create_optimizer


def test_sgd_takes_nesterovs_steps_with_decay_on_matrices_only():
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0), model.bias.fill_(2.0)
    config = OptimConfig(name="sgd", lr=0.1, betas=(0.9, 0.999), weight_decay=0.5)
    optimizer = create_optimizer([model], config)
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
