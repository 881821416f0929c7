"""A trained student as one graph: views in [0, 1] in, probabilities and both heads' logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models import DeiTOutput, joint_probabilities, tempered
from ..tasks import Task
from .unfamiliarity import unfamiliarity


class ClassifierGraph(nn.Module):
    """Views (B, 3, H, W), float in [0, 1] -> `output_names`.

    `probabilities` and the logits of one or two heads, (B, K) each, and last, where class means are known,
    `unfamiliarity`, (B,).
    """

    output_names: tuple[str, ...]


class JointClassifier(ClassifierGraph):
    """A student with its normalisation inside; see `ClassifierGraph`.

    network: normalised images (B, 3, H, W) -> DeiTOutput; its `distilled` says whether there is a second
    head. mean, std: of the three channels, in [0, 1]. task: multiclass probabilities are a softmax,
    multilabel ones a sigmoid each. temperature: of the probabilities; the logits stay as they are.
    class_means: (C, F) of the network's embedding, see `unfamiliarity`.
    """

    mean: Tensor
    std: Tensor
    class_means: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        task: Task = "multiclass",
        temperature: float = 1.0,
        class_means: Tensor | None = None,
    ):
        super().__init__()
        self.network, self.task, self.temperature = network, task, temperature
        self.output_names = ("probabilities", "class_logits", "distill_logits")[
            : 3 if network.distilled else 2
        ]
        self.output_names += () if class_means is None else ("unfamiliarity",)
        self.register_buffer("class_means", class_means, persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(self.network(self.normalise(views)))

    def normalise(self, views: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the network's input."""
        return (views - self.mean) / self.std

    def outputs(self, output: DeiTOutput) -> tuple[Tensor, ...]:
        """The graph's outputs of what the network returned."""
        probabilities = tempered(joint_probabilities(output, self.task), self.temperature, self.task)
        outputs = tuple(t for t in (probabilities, *output[:2]) if t is not None)
        if self.class_means is None or output.embedding is None:
            return outputs
        return (*outputs, unfamiliarity(output.embedding, self.class_means))


def as_output(outputs: Sequence[Tensor]) -> DeiTOutput:
    """A graph's outputs as the model's own output: the logits of its one or two heads."""
    _, class_logits, *others = (output for output in outputs if output.ndim == 2)
    return DeiTOutput(class_logits, others[0] if others else None)
