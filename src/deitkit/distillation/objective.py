"""What a student is trained on: its labels, its teacher's answers, its teacher's feature maps."""

from __future__ import annotations

from torch import Tensor

from ..config import DistillationConfig, TrainConfig
from ..models.deit import DeiTOutput
from ..tasks import Task
from ..teachers.teacher import TeacherOutput
from . import losses
from .feature_distillation import FeatureDistillation


def label_loss(logits: Tensor, targets: Tensor, train: TrainConfig, task: Task = "multiclass") -> Tensor:
    """The labels' term: logits and targets (B, K), the targets smoothed here."""
    if task == "multilabel":
        return losses.multilabel_cross_entropy(logits, losses.smooth_each(targets, train.label_smoothing))
    of = losses.binary_cross_entropy if train.loss == "bce" else losses.soft_target_cross_entropy
    return of(logits, losses.smooth(targets, train.label_smoothing))


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, config: DistillationConfig, task: Task = "multiclass"
) -> Tensor:
    """The teacher's term in the mode that `config` names, not yet weighted; both logits (B, K)."""
    if task == "multilabel":
        if config.mode == "hard":
            return losses.hard_multilabel_distillation(student_logits, teacher_logits, config.smoothing)
        assert config.mode == "soft" and not config.standardise, "refused with the data"
        return losses.soft_multilabel_distillation(student_logits, teacher_logits, config.temperature)
    if config.mode == "hard":
        return losses.hard_distillation(student_logits, teacher_logits, config.smoothing)
    if config.mode == "dist":
        return losses.dist(student_logits, teacher_logits, config.temperature)
    if config.standardise:
        student_logits, teacher_logits = map(losses.standardise, (student_logits, teacher_logits))
    return losses.soft_distillation(student_logits, teacher_logits, config.temperature, config.reduction)


def training_loss(
    output: DeiTOutput,
    targets: Tensor,
    answer: TeacherOutput | None,
    config: DistillationConfig,
    train: TrainConfig,
    *,
    guidance: FeatureDistillation | None,
    answered: bool = True,
    labelled_share: float = 1.0,
    task: Task = "multiclass",
) -> dict[str, Tensor]:
    """The parts of the loss and their weighted sum, `loss` (arXiv 2012.12877, equations 2 and 3).

    targets (B, K) are soft; of one class an image, they are zero for a view without a label, and the
    class term is the mean over the labelled views, `labelled_share` of the global batch, and 0 where
    there are none. Without a teacher only the class term remains, at full weight. Not `answered`: the
    teacher's term is over, and both heads learn from the labels.
    """
    base = label_loss(output.class_logits, targets, train, task) / (labelled_share or 1.0)
    parts = {"class": base}
    if config.mode == "none" or (answered and answer is None):
        return {"loss": base, **parts}
    student_logits = output.distill_logits if config.token == "distill" else output.class_logits
    assert student_logits is not None, "the distillation token needs a distilled student"
    if answered:
        assert answer is not None
        parts["distill"] = distillation_loss(student_logits, answer.logits, config, task)
    else:
        parts["distill"] = label_loss(student_logits, targets, train, task) / (labelled_share or 1.0)
    total = (1 - config.alpha) * base + config.alpha * parts["distill"]
    if guidance is not None:
        assert answer is not None
        parts["guidance"] = guidance(output, answer)
        total = total + config.feature_weight * parts["guidance"]
    return {"loss": total, **parts}
