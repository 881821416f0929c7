"""How good a classifier is: accuracy of each head and of both together, with an interval.

Shapes in comments: n images, K classes. Every accuracy is in percent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..models.deit import DeiTOutput, joint_probabilities
from .multilabel import MultilabelMetrics, map_interval, measure_labels, score_labels


@dataclass(frozen=True)
class MulticlassMetrics:
    """The heads of one model over one set of images; accuracies in percent.

    top1 and top5 are the joint classifier's (arXiv 2012.12877, section 4: the sum of both heads'
    softmaxes); top5 takes the best K where there are fewer than five classes. loss is the mean
    negative log of the joint probability of the true class, in nats. top1_distill is None for a
    model without a distillation head.
    """

    images: int
    top1: float
    top1_class: float
    top1_distill: float | None
    top5: float
    loss: float

    @property
    def score(self) -> float:
        return self.top1

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, as written to `metrics.jsonl`."""
        return dataclasses.asdict(self)


Metrics = MulticlassMetrics | MultilabelMetrics


def measure(class_logits: Tensor, distill_logits: Tensor | None, labels: Tensor) -> Metrics:
    """The metrics of logits (n, K) against classes (n,), or against (n, K) of several labels an image.

    Raises DeitkitError where there is no image to measure on.
    """
    if len(labels) == 0:
        raise DataError("there are no images to evaluate on; add some to the validation set")
    class_logits, labels = class_logits.float(), labels.to(class_logits.device)
    if labels.ndim == 2:
        return measure_labels(class_logits, distill_logits, labels)
    # In double precision: a confident miss must cost its real loss, not infinity or a clamp.
    log_p = class_logits.double().log_softmax(-1)
    if distill_logits is not None:
        log_p = torch.logaddexp(log_p, distill_logits.double().log_softmax(-1)) - math.log(2)
    joint = joint_probabilities(DeiTOutput(class_logits, distill_logits))
    return MulticlassMetrics(
        images=len(labels),
        top1=top_k(joint, labels, 1),
        top1_class=top_k(class_logits, labels, 1),
        top1_distill=None if distill_logits is None else top_k(distill_logits, labels, 1),
        top5=top_k(joint, labels, 5),
        loss=F.nll_loss(log_p, labels).item(),
    )


def top_k(probabilities: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows of (n, K) scores whose label (n,) is among the k highest; k is cut to K.

    Any score that grows with the probability serves, so logits do as well.
    """
    best = probabilities.topk(min(k, probabilities.shape[-1]), dim=-1).indices  # (n, k)
    return 100.0 * (best == labels[:, None]).any(-1).double().mean().item()


def score_and_interval(probabilities: Tensor, labels: Tensor) -> tuple[float, tuple[float, float]]:
    """The main score of (n, K) probabilities, top-1 or for labels (n, K) mAP, and its 95 % interval."""
    if labels.ndim == 2:
        return score_labels(probabilities, labels)["map"], map_interval(probabilities, labels)
    top1 = top_k(probabilities, labels, 1)
    return top1, wilson_interval(top1 / 100, len(labels))


def wilson_interval(correct_fraction: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Lower and upper bound, in percent, of the accuracy behind `correct_fraction` right of n images.

    Wilson's score interval ("Probable inference", JASA 1927); z = 1.96 covers 95 %. Unlike the
    textbook interval it stays inside 0..100 and keeps its width at 0 and 100 %.
    """
    if n == 0:
        return 0.0, 100.0
    p, zz = correct_fraction, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K): row is the true class, column the predicted one; from two (n,) tensors."""
    cells = labels.long().cpu() * num_classes + predictions.long().cpu()
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
