"""The optimizer's parameter groups, and the learning rate, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..config import OptimConfig
from .lamb import Lamb

# Biases, norms' gains, and everything that is no matrix go without weight decay; so do both tokens
# and the positions, which are matrices by shape only.
_NO_DECAY = ("cls_token", "dist_token", "pos_embed")


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict]:
    """Two groups for the optimizer: with and without weight decay."""
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for module in modules:
        for name, p in module.named_parameters():
            matrix = p.ndim > 1 and name.rsplit(".", 1)[-1] not in _NO_DECAY
            (decay if matrix else no_decay).append(p)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def create_optimizer(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.Optimizer:
    """Fused AdamW (Loshchilov & Hutter, arXiv 1711.05101), LAMB (You et al., arXiv 1904.00962) or SGD."""
    groups = parameter_groups(modules, config.weight_decay)
    if config.name == "lamb":
        return Lamb(groups, lr=config.lr, betas=config.betas)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0], nesterov=True, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(
    step: int, *, total_steps: int, steps_per_epoch: int, batch_size: int, config: OptimConfig
) -> float:
    """The rate of update `step` (from 0): linear warm-up, then a cosine to `min_lr` at the last update.

    The peak is `lr x batch_size / lr_batch` (arXiv 2012.12877, section 6). It moves by the update,
    not by the epoch, so that a resumed run and a first epoch get the rate they should.
    """
    peak = config.lr * batch_size / config.lr_batch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps // 5)
    if step < warmup:
        return config.warmup_lr + (peak - config.warmup_lr) * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - 1 - warmup)
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
