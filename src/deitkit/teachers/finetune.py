"""Fine-tunes a teacher, briefly and with a small learning rate: the whole network, or its last half."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..preprocessing import Normalised, Preprocessing

FineTuneBatches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]  # epoch -> (views, soft targets)

_EPOCHS = 5
_LR = 2e-4  # the head is fitted already, and larger rates destroy the pretrained features


class Network(nn.Module):
    """A backbone and a head for training: views (B, 3, H, W) in [0, 1] -> logits (B, K)."""

    def __init__(self, backbone: nn.Module, head: nn.Module, view: Preprocessing):
        super().__init__()
        self.backbone, self.head, self.view = Normalised(backbone, view.mean, view.std), head, view

    def forward(self, views: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(self.view.resize(views))[0])
        return logits


def finetune(
    network: Network,
    batches: FineTuneBatches,
    device: torch.device,
    *,
    last: bool = False,
    multilabel: bool = False,
) -> int:
    """Trains `network` in place for five epochs with frozen batch norms. Returns the number of epochs.

    last: trains only the head and the `last_half` of the backbone, in about half the time, since gradients
    go no further back.
    """
    loss_of = F.binary_cross_entropy_with_logits if multilabel else F.cross_entropy
    network.to(device).requires_grad_(False)
    parameters = [*network.parameters()]
    if last:
        parameters = [*last_half(network.backbone), *network.head.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.05)
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


def last_half(backbone: nn.Module) -> list[nn.Parameter]:
    """The last parameters, in order, that together have at most half of all weights.

    Works for any architecture, because modules register their layers in the order in which they run.
    """
    parameters = list(backbone.parameters())
    room = sum(p.numel() for p in parameters) / 2
    first = len(parameters)
    while first and (room := room - parameters[first - 1].numel()) >= 0:
        first -= 1
    return parameters[first:]
