"""Losses: pure functions on tensors, computed in float32 whatever the input type.

Each returns a scalar averaged over the batch, so it depends neither on the batch size nor on how a step is
split into micro-batches of one size. Shapes: B batch, K classes, N tokens, C channels.

`DISTILLATION_LOSSES` registers distillation losses by the names of `distillation.mode`. To add one, write
the function and register it there; settings, help and checks follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ..config import DistillationConfig


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution: -mean_b sum_k t_bk log softmax(z_b)_k.

    logits, targets: (B, K); the rows of `targets` sum to 1, as mixup leaves them (arXiv 1710.09412).
    """
    return -(targets.float() * logits.float().log_softmax(-1)).sum(-1).mean()


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """Label smoothing of soft targets: (1 - s) t + s / K, (B, K) -> (B, K).

    Szegedy et al., arXiv 1512.00567, section 7. Being linear, it may come before or after mixup. A row
    of zeros, which stands for no label, stays one.
    """
    targets = targets.float()
    return targets * (1.0 - smoothing) + targets.sum(-1, keepdim=True) * (smoothing / targets.shape[-1])


def soft_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    reduction: Literal["batch", "batch_and_classes"] = "batch",
) -> Tensor:
    """T^2 KL(softmax(Zt / T) || softmax(Zs / T)), mean over the batch; both logits (B, K).

    Hinton et al., arXiv 1503.02531; DeiT, arXiv 2012.12877, section 4. The published DeiT code divides
    by the number of classes as well, which makes the term K times weaker than the paper's formula;
    `reduction="batch_and_classes"` reproduces that.
    """
    student = (student_logits.float() / temperature).log_softmax(-1)
    teacher = (teacher_logits.float() / temperature).log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    count = student.shape[0] if reduction == "batch" else student.numel()
    return divergence * (temperature**2 / count)


def hard_distillation(student_logits: Tensor, teacher_logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """CE(softmax(Zs), argmax Zt): the teacher's decision as a label; both logits (B, K).

    DeiT, arXiv 2012.12877, section 4, "Hard-label distillation"; `smoothing` gives the true label
    1 - s + s / K and the others s / K.
    """
    return F.cross_entropy(student_logits.float(), teacher_logits.argmax(-1), label_smoothing=smoothing)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T^2 (beta mean_b [1 - r(Ps_b, Pt_b)] + gamma mean_k [1 - r(Ps_k, Pt_k)]); both logits (B, K).

    DIST, Huang et al., arXiv 2205.10536: P = softmax(Z / T) and r is Pearson's correlation, once
    along each row (how one image relates to the classes) and once along each column (how the batch
    relates to one class). A column needs two images at least: with B = 1 its term is constant.
    """
    student = (student_logits.float() / temperature).softmax(-1)
    teacher = (teacher_logits.float() / temperature).softmax(-1)
    inter = 1.0 - _pearson(student, teacher, dim=1).mean()
    intra = 1.0 - _pearson(student, teacher, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`; 0 where one side is constant."""
    # Each side is normalised by itself: the product of two small norms would drown in the guard.
    a = F.normalize(a - a.mean(dim, keepdim=True), dim=dim, eps=1e-12)
    b = F.normalize(b - b.mean(dim, keepdim=True), dim=dim, eps=1e-12)
    return (a * b).sum(dim)


def standardise(logits: Tensor) -> Tensor:
    """Each row as z-scores, (z - mean) / std with the population's std: (B, K) -> (B, K).

    Logit standardisation, Sun et al., arXiv 2403.01427: applied to both sides before
    `soft_distillation`, it asks the student for the teacher's ranking rather than its scale.
    A constant row becomes zeros.
    """
    return F.layer_norm(logits.float(), logits.shape[-1:], eps=1e-12)


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-mean_bk [t log sigmoid(z) + (1 - t) log(1 - sigmoid(z))]; both (B, K).

    One yes-or-no question a class, as DeiT III trains (arXiv 2204.07118, section 3), mean over batch
    and classes as published. Targets stay as they are: smoothed and mixed ones keep their values,
    where the published code's threshold would turn every smoothed target into 1. A row of zeros,
    which stands for no label, asks nothing.
    """
    each = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (each * targets.any(-1, keepdim=True)).mean()


def multilabel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-mean_bk [t log sigmoid(z) + (1 - t) log(1 - sigmoid(z))] for several labels an image; both (B, K).

    As `binary_cross_entropy`, but a row of zeros is an answer here: the image shows none of the classes.
    Mixed targets keep their values.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


def smooth_each(targets: Tensor, smoothing: float) -> Tensor:
    """Label smoothing of yes-or-no questions: (1 - s) t + s / 2, (B, K) -> (B, K).

    Szegedy et al., arXiv 1512.00567, section 7, for each class by itself, which has two answers.
    """
    return targets.float() * (1.0 - smoothing) + smoothing / 2


def soft_multilabel_distillation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    """T^2 BCE(sigmoid(Zs / T), sigmoid(Zt / T)), mean over batch and classes; both logits (B, K).

    Soft distillation (arXiv 1503.02531) with each class as a distribution over yes and no. Its gradient
    is that of T^2 KL(teacher || student); it ends at the teacher's entropy, not at 0.
    """
    targets = (teacher_logits.float() / temperature).sigmoid()
    return temperature**2 * multilabel_cross_entropy(student_logits.float() / temperature, targets)


def hard_multilabel_distillation(
    student_logits: Tensor, teacher_logits: Tensor, smoothing: float = 0.0
) -> Tensor:
    """BCE(sigmoid(Zs), [sigmoid(Zt) > 1/2]), mean over batch and classes; both logits (B, K).

    Hard-label distillation (arXiv 2012.12877, section 4) with the teacher's decision on each class;
    `smoothing` as in `smooth_each`.
    """
    decided = (teacher_logits > 0).float()
    return multilabel_cross_entropy(student_logits, smooth_each(decided, smoothing))


def feature_loss(
    tokens: Tensor, features: Tensor, grid: tuple[int, int], kept: Tensor | None = None
) -> Tensor:
    """Mean squared error between the student's patch tokens and a teacher's feature map.

    Locality Guidance, Li et al., ECCV 2022, arXiv 2207.10026.

    tokens: (B, N, C), the student's patch tokens projected to the map's channels, N = gh * gw.
    features, grid, kept: as for `feature_target`. Both sides are layer-normalised over channels,
    without learnt scale, so that only the pattern counts; the mean runs over all elements of `tokens`.
    """
    target = feature_target(features, grid, kept)
    return F.mse_loss(F.layer_norm(tokens.float(), target.shape[-1:]), target)


def feature_target(features: Tensor, grid: tuple[int, int], kept: Tensor | None = None) -> Tensor:
    """The target of each of the student's patch tokens in a teacher's feature map, (B, N, C).

    features: (B, C, h, w), the teacher's map. grid: (gh, gw), the student's patches, N = gh * gw.
    kept: (B, n) cells of the grid that the student kept, then N = n; None: all.
    The map is averaged down along a side longer than the grid's and stretched bilinearly along a
    shorter one, and layer-normalised over channels.
    """
    features = features.float()
    h, w = features.shape[-2:]
    features = F.adaptive_avg_pool2d(features, (min(h, grid[0]), min(w, grid[1])))
    if features.shape[-2:] != grid:
        features = F.interpolate(features, grid, mode="bilinear", align_corners=False, antialias=False)
    channels = features.shape[1:2]
    target = F.layer_norm(features.flatten(2).transpose(1, 2), channels)
    if kept is not None:
        target = target.gather(1, kept[..., None].expand(-1, -1, channels[0]))
    return target


DistillationTerm = Callable[
    [Tensor, Tensor, DistillationConfig], Tensor
]  # student's, teacher's logits (B, K)


@dataclass(frozen=True)
class DistillationLoss:
    """A distillation loss for one class per image, and its multilabel form; None if it has none.

    relates_images: whether it is no mean over images, because it relates those of a micro-batch.
    """

    multiclass: DistillationTerm
    multilabel: DistillationTerm | None = None
    relates_images: bool = False


def _soft(student: Tensor, teacher: Tensor, config: DistillationConfig) -> Tensor:
    if config.standardise:
        student, teacher = standardise(student), standardise(teacher)
    return soft_distillation(student, teacher, config.temperature, config.reduction)


# `distillation.mode` to loss.
DISTILLATION_LOSSES = {
    "soft": DistillationLoss(_soft, lambda s, t, c: soft_multilabel_distillation(s, t, c.temperature)),
    "hard": DistillationLoss(
        lambda s, t, c: hard_distillation(s, t, c.smoothing),
        lambda s, t, c: hard_multilabel_distillation(s, t, c.smoothing),
    ),
    "dist": DistillationLoss(lambda s, t, c: dist(s, t, c.temperature), relates_images=True),
}


def label_loss(logits: Tensor, targets: Tensor, loss: str, smoothing: float, *, multilabel: bool) -> Tensor:
    """The loss on the labels. logits, targets: (B, K); `targets` are smoothed here. loss: `train.loss`."""
    if multilabel:
        return multilabel_cross_entropy(logits, smooth_each(targets, smoothing))
    of = binary_cross_entropy if loss == "bce" else soft_target_cross_entropy
    return of(logits, smooth(targets, smoothing))
