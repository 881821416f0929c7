"""Fine-tunes a probed teacher, briefly and gently: the whole network, or its last layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..preprocessing import Normalised, Preprocessing

FineTuneBatches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]  # epoch -> (views, soft targets)

_EPOCHS = 5
_LR = 2e-4  # the probe's head is already right; larger rates undo the pretrained features


class Network(nn.Module):
    """A body with a head, as it trains: views (B, 3, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, body: nn.Module, head: nn.Module, view: Preprocessing):
        super().__init__()
        self.body, self.head, self.view = Normalised(body, view.mean, view.std), head, view

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.body(self.view.resize(views))[0])


def finetune(
    network: Network,
    batches: FineTuneBatches,
    device: torch.device,
    *,
    last: bool = False,
    several: bool = False,
) -> int:
    """Trains `network` in place for five epochs, batch norms frozen; returns the number of epochs.

    last: the head and `last_half` of the body only, which takes about half as long: no gradient goes
    further back. several: an image may have several labels, each a question of its own.
    """
    loss_of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    network.to(device).requires_grad_(False)
    trained = [*last_half(network.body), *network.head.parameters()] if last else [*network.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=_LR, weight_decay=0.05)
    for epoch in range(_EPOCHS):
        lr = _LR * 0.5 * (1 + math.cos(math.pi * epoch / _EPOCHS))
        for group in optimizer.param_groups:
            group["lr"] = lr
        for views, targets in batches(epoch):
            loss = loss_of(network(views), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    return _EPOCHS


def last_half(body: nn.Module) -> list[nn.Parameter]:
    """The parameters nearest to the output that hold at most half of all weights, nearest last.

    Modules register their layers in the order in which they run, and so a network of any kind has a
    last half, whatever its blocks are called.
    """
    parameters = list(body.parameters())
    room = sum(p.numel() for p in parameters) / 2
    first = len(parameters)
    while first and (room := room - parameters[first - 1].numel()) >= 0:
        first -= 1
    return parameters[first:]
