"""A trained student as one graph: plain pixels in, probabilities and both heads' logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models.deit import DeiTOutput, joint_probabilities
from ..tasks import Task


class ClassifierGraph(nn.Module):
    """Views (B, 3, H, W), float in [0, 1] -> `output_names`, each (B, K); the first is `probabilities`."""

    output_names: tuple[str, ...]


class JointClassifier(ClassifierGraph):
    """The joint classifier with its normalisation inside.

    network: normalised images (B, 3, H, W) -> DeiTOutput, with `distilled` saying whether that has a second
    head's logits. mean, std: of the three channels, in [0, 1].
    task: whether probabilities are over classes (softmax) or each label's own (sigmoid).
    The input is views (B, 3, H, W), float in [0, 1]; the outputs are `output_names`, each (B, K).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        task: Task = "multiclass",
    ):
        super().__init__()
        self.network, self.task = network, task
        self.output_names = ("probabilities", "class_logits", "distill_logits")[
            : 3 if network.distilled else 2
        ]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        output = self.network((views - self.mean) / self.std)
        return tuple(t for t in (joint_probabilities(output, self.task), *output[:2]) if t is not None)


def as_output(answer: Sequence[Tensor]) -> DeiTOutput:
    """What the graph's outputs say, as the model itself says it."""
    return DeiTOutput(answer[1], answer[2] if len(answer) == 3 else None)
