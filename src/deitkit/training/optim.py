"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimConfig
from ..models import Student

Group = dict[str, Any]  # `params` and `weight_decay`, as torch's optimizers take it

# No weight decay on biases, norms and other vectors, nor on tokens and position embeddings, which are
# matrices by shape only.
_NO_DECAY = ("cls_token", "dist_token", "pos_embed")


def rate_share(name: str, depth: int, config: OptimConfig) -> float:
    """The learning rate of the student's parameter `name` as a share of the schedule's.

    Layer-wise decay (Bao et al., arXiv 2106.08254, appendix H): each block has `layer_decay` times the rate
    of the next one, and the embedding, tokens and positions that of a block before the first.
    """
    if name.startswith("patch_embed.stem."):
        return config.stem_lr
    layer = depth + 1
    if name.startswith("blocks."):
        layer = 1 + int(name.split(".")[1])
    elif name.startswith(("patch_embed.", *_NO_DECAY)):
        layer = 0
    return float(config.layer_decay ** (depth + 1 - layer))


def parameter_groups(
    modules: Iterable[nn.Module], weight_decay: float, share: Callable[[str], float] = lambda name: 1.0
) -> list[Group]:
    """Groups of the trained parameters: with and without weight decay, for each share of the rate.

    share: of the learning rate that the parameter `name` gets, the group's `lr_share`.
    """
    found: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for module in modules:
        for name, p in module.named_parameters():
            if p.requires_grad:
                matrix = p.ndim > 1 and name.rsplit(".", 1)[-1] not in _NO_DECAY
                found.setdefault((share(name), matrix), []).append(p)
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0, "lr_share": lr_share}
        for (lr_share, decays), params in found.items()
    ]


def create_optimizer(
    student: Student, features: nn.Module | None, config: OptimConfig
) -> torch.optim.Optimizer:
    """The optimizer called `config.name` over the student's parameters and the projections in `features`."""
    groups = parameter_groups([student], config.weight_decay, lambda n: rate_share(n, student.depth, config))
    if features is not None:
        for group, more in zip(groups[:2], parameter_groups([features], config.weight_decay), strict=True):
            group["params"] += more["params"]
    return OPTIMIZERS[config.name](groups, config)


class Lamb(torch.optim.Optimizer):
    """Adam's direction, given each tensor's own length (You et al., arXiv 1904.00962, algorithm 2).

    params: groups with their own `weight_decay`. As in the implementation that DeiT III was trained
    with, the gradient's global norm is first brought down to 1, and only tensors with weight decay
    have their step scaled, by |w| / |step|; the others take Adam's step.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float = 1e-6
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not called."""
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        excess = torch.nn.utils.get_total_norm(gradients).clamp_min(1.0)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad / excess, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())  # a tensor, as torch's optimizers keep it
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        count, (beta1, beta2) = state["step"].item(), group["betas"]
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2**count)).sqrt_().add_(group["eps"])
        step = (mean / (1 - beta1**count)).div_(scale).add_(p, alpha=group["weight_decay"])
        if group["weight_decay"]:
            length, own = p.norm(), step.norm()
            # A tensor of zeros, or without a gradient, has no length of its own to keep.
            step.mul_(torch.where((length > 0) & (own > 0), length / own, torch.ones_like(own)))
        p.sub_(step, alpha=group["lr"])


def _adamw(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _lamb(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """LAMB (You et al., arXiv 1904.00962)."""
    return Lamb(groups, lr=config.lr, betas=config.betas)


def _sgd(groups: list[Group], config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, the first of `betas`."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.betas[0], nesterov=True, fused=True)


# `optim.name` to the function that creates the optimizer. Register a new one here.
OPTIMIZERS: dict[str, Callable[[list[Group], OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lamb": _lamb,
    "sgd": _sgd,
}
