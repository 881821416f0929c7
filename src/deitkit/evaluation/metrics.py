"""How good a classifier is: accuracy of each head and of both together, per class, with intervals.

Shapes in comments: n images, K classes. Every accuracy is in percent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..models.base import DeiTOutput, joint_probabilities
from .multilabel import MultilabelMetrics, map_interval, measure_labels, score_labels

Interval = tuple[float, float]

_Z = 1.96  # 95 %
# Classes are uneven if the largest has more than this many times the images of the smallest.
_UNEVEN = 1.5


@dataclass(frozen=True)
class MulticlassMetrics:
    """The heads of one model over one set of images; accuracies in percent.

    top1, top5, balanced_accuracy and macro_f1 are the joint classifier's (arXiv 2012.12877, section 4: the
    sum of both heads' softmaxes). top5: the best K if there are fewer than five classes. balanced_accuracy:
    mean recall over classes. macro_f1: mean F1 over classes. Both leave out classes without an image, and are
    None in results of version 0.1. loss: mean negative log of the joint probability of the true class, in
    nats; balanced_loss: mean over classes of each one's mean. top1_distill: None without a distillation head.
    """

    images: int
    top1: float
    top1_class: float
    top1_distill: float | None
    top5: float
    loss: float
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    balanced_loss: float | None = None

    @property
    def score(self) -> float:
        return self.top1

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, as written to `metrics.jsonl`."""
        return dataclasses.asdict(self)


Metrics = MulticlassMetrics | MultilabelMetrics


def measure(class_logits: Tensor, distill_logits: Tensor | None, labels: Tensor) -> Metrics:
    """The metrics of logits (n, K) against classes (n,), or against (n, K) if multilabel.

    Raises DataError if there is no image.
    """
    if len(labels) == 0:
        raise DataError("there are no images to evaluate on; add some to the validation set")
    class_logits, labels = class_logits.float(), labels.to(class_logits.device)
    if labels.ndim == 2:
        return measure_labels(class_logits, distill_logits, labels)
    log_p = joint_log_probabilities(class_logits, distill_logits)
    joint = joint_probabilities(DeiTOutput(class_logits, distill_logits))
    counts = confusion(joint.argmax(1), labels, joint.shape[1])
    return MulticlassMetrics(
        images=len(labels),
        top1=top_k(joint, labels, 1),
        top1_class=top_k(class_logits, labels, 1),
        top1_distill=None if distill_logits is None else top_k(distill_logits, labels, 1),
        top5=top_k(joint, labels, 5),
        loss=F.nll_loss(log_p, labels).item(),
        balanced_accuracy=balanced_accuracy(counts),
        macro_f1=macro_f1(counts),
        balanced_loss=_balanced_loss(log_p, labels),
    )


def _balanced_loss(log_p: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of each class, and the mean over classes with an image; (n, K), (n,)."""
    return sum(F.nll_loss(log_p[labels == k], labels[labels == k]).item() for k in labels.unique()) / len(
        labels.unique()
    )


def joint_log_probabilities(class_logits: Tensor, distill_logits: Tensor | None) -> Tensor:
    """The logarithm of `joint_probabilities`, (n, K), multiclass.

    In double precision: a confident miss must cost its real loss, not infinity or a clamp.
    """
    log_p = class_logits.double().log_softmax(-1)
    if distill_logits is None:
        return log_p
    return torch.logaddexp(log_p, distill_logits.double().log_softmax(-1)) - math.log(2)


def top_k(probabilities: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows of (n, K) scores whose label (n,) is among the k highest; k is cut to K.

    Any score that grows with the probability serves, so logits do as well.
    """
    best = probabilities.topk(min(k, probabilities.shape[-1]), dim=-1).indices  # (n, k)
    return 100.0 * (best == labels[:, None]).any(-1).double().mean().item()


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts (K, K): row is the true class, column the predicted one; from two (n,) tensors."""
    cells = labels.long().cpu() * num_classes + predictions.long().cpu()
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassMetrics:
    """One class of a confusion matrix; in percent.

    recall: None without an image of the class. precision: None if it was never predicted. f1: 0 if the class
    was never predicted right, None without an image.
    """

    images: int
    recall: float | None
    precision: float | None
    f1: float | None


def per_class(counts: Tensor) -> list[ClassMetrics]:
    """Recall, precision and F1 of each class, from a confusion matrix (K, K)."""
    found = []
    for k in range(len(counts)):
        right, images, predicted = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        found.append(
            ClassMetrics(
                images=images,
                recall=100 * right / images if images else None,
                precision=100 * right / predicted if predicted else None,
                f1=100 * 2 * right / (images + predicted) if images else None,
            )
        )
    return found


def balanced_accuracy(counts: Tensor) -> float:
    """Mean recall in percent over the classes with an image, from a confusion matrix (K, K).

    Always naming one class scores 1 / K, whatever its share of the images.
    """
    recalls = [c.recall for c in per_class(counts) if c.recall is not None]
    return sum(recalls) / len(recalls)


def macro_f1(counts: Tensor) -> float:
    """Mean F1 in percent over the classes with an image, from a confusion matrix (K, K)."""
    scores = [c.f1 for c in per_class(counts) if c.f1 is not None]
    return sum(scores) / len(scores)


def balanced_accuracy_interval(counts: Tensor) -> Interval:
    """A 95 % interval of the balanced accuracy, in percent, from a confusion matrix (K, K).

    The classes' recalls are independent proportions. Their Wilson intervals are combined by squares and roots
    (MOVER: Zou and Donner, Statistics in Medicine 2008, equation 3), so a class with few images widens it.
    """
    recalls, intervals = [], []
    for c in per_class(counts):
        if c.recall is not None:
            recalls.append(c.recall)
            intervals.append(wilson_interval(c.recall / 100, c.images))
    return combine_intervals(recalls, intervals)


def macro_f1_interval(counts: Tensor) -> Interval:
    """A 95 % interval of macro-F1, in percent, from a confusion matrix (K, K).

    With J the share of right ones among the images that have the class or were given it, a proportion, F1 is
    2 J / (1 + J); so Wilson's interval of J gives one of F1 (Lam et al., arXiv 2309.14621, "indirect"). Those
    of the classes are combined as for balanced accuracy, but an image that is taken for another class costs
    both: their correlations are taken into account (Zou and Donner, 2008), by the delta method.
    """
    found = [(k, c.f1) for k, c in enumerate(per_class(counts)) if c.f1 is not None]
    classes, scores = [k for k, _ in found], torch.tensor([f1 for _, f1 in found], dtype=torch.float64)
    below, above = [], []
    for k, f1 in found:
        right = int(counts[k, k])
        either = int(counts[k].sum() + counts[:, k].sum()) - right
        low, high = (100 * 2 * j / (100 + j) for j in wilson_interval(right / either, either))
        below.append(f1 - low)
        above.append(high - f1)
    correlations = _f1_correlations(counts.double())[classes][:, classes]
    mean = float(scores.mean())
    widths = (torch.tensor(of, dtype=torch.float64) for of in (below, above))
    lower, upper = (float((w @ correlations @ w).clamp(min=0).sqrt()) / len(found) for w in widths)
    return mean - lower, mean + upper


def _f1_correlations(counts: Tensor) -> Tensor:
    """Correlations (K, K) of the classes' F1 if each row of a confusion matrix (K, K) is drawn anew."""
    sizes = counts.sum(1)
    both = (sizes + counts.sum(0)).clamp(min=1)  # F1 is 2 n_kk / both_k
    f1 = 2 * counts.diagonal() / both
    slope = 2 * torch.eye(len(counts), dtype=counts.dtype) / both - f1 / both  # of F1 of column k by n_ik
    moved = counts * slope
    covariance = torch.diag((moved * slope).sum(0)) - moved.T @ (moved / sizes.clamp(min=1)[:, None])
    deviations = covariance.diagonal().clamp(min=0).sqrt()
    scale = deviations[:, None] * deviations
    found = torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 0.0)
    found.fill_diagonal_(1.0)
    return found


def combine_intervals(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of the mean of independent estimates with the given intervals (MOVER)."""
    K = len(values)
    mean = sum(values) / K
    below = math.sqrt(sum((v - low) ** 2 for v, (low, _) in zip(values, intervals, strict=True))) / K
    above = math.sqrt(sum((high - v) ** 2 for v, (_, high) in zip(values, intervals, strict=True))) / K
    return mean - below, mean + above


def uneven(images_per_class: Sequence[int]) -> bool:
    """Whether the largest class has more than 1.5 times the images of the smallest that has any."""
    present = [n for n in images_per_class if n]
    return bool(present) and max(present) > _UNEVEN * min(present)


def score_and_interval(probabilities: Tensor, labels: Tensor) -> tuple[float, Interval]:
    """The main score of (n, K) probabilities, top-1 or for labels (n, K) mAP, and its 95 % interval."""
    if labels.ndim == 2:
        return score_labels(probabilities, labels)["map"], map_interval(probabilities, labels)
    top1 = top_k(probabilities, labels, 1)
    return top1, wilson_interval(top1 / 100, len(labels))


def wilson_interval(correct_fraction: float, n: int, z: float = _Z) -> Interval:
    """Lower and upper bound, in percent, of the accuracy behind `correct_fraction` right of n images.

    Wilson's score interval ("Probable inference", JASA 1927); z = 1.96 covers 95 %. Unlike the textbook
    interval it stays inside 0..100 and keeps its width at 0 and 100 %.
    """
    if n == 0:
        return 0.0, 100.0
    p, zz = correct_fraction, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
