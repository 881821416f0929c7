"""What a student is trained on: its labels, its teacher's answers, its teacher's feature maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from ..config import DistillationConfig, TrainConfig
from ..model import DeiT, DeiTOutput
from ..tasks import Task
from ..teachers.teacher import TeacherAnswer

_RIDGE = 1e-3  # of the tokens' mean square


class Guidance(nn.Module):
    """Projections from two middle blocks' patch tokens to the teacher's two feature maps.

    Locality Guidance (Li et al., ECCV 2022, arXiv 2207.10026). It lives beside the student while
    that trains, and never ships with it.
    """

    def __init__(self, student: DeiT, map_channels: tuple[int, ...]):
        super().__init__()
        depth = len(student.blocks)
        # The shallower map guides the block half way up, the deeper one that at five sixths.
        self.blocks = (depth // 2 - 1, depth * 5 // 6 - 1)
        self.projections = nn.ModuleList(nn.Linear(student.embed_dim, c) for c in map_channels)

    def forward(self, output: DeiTOutput, answer: TeacherAnswer) -> Tensor:
        """The sum over both blocks of the mean squared error between normalised features."""
        assert output.grid_size is not None
        terms = [
            losses.guidance(project(tokens), features, output.grid_size, output.kept_patches)
            for project, tokens, features in zip(
                self.projections, output.patch_tokens, answer.maps, strict=True
            )
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def fit(self, seen: Iterable[tuple[DeiTOutput, TeacherAnswer]]) -> None:
        """Sets the projections to those that suit the student as it is: ridge regression on `seen`.

        Projections of random values would bend a pre-trained student's tokens before they have learnt
        to read them: on few images that undid its start (docs/small-data.md).
        """
        projections = cast(list[nn.Linear], list(self.projections))
        sums = [_TokenSums(p) for p in projections]
        for output, answer in seen:
            assert output.grid_size is not None
            for each, tokens, features in zip(sums, output.patch_tokens, answer.maps, strict=True):
                each.add(tokens, losses.guidance_target(features, output.grid_size, output.kept_patches))
        for project, each in zip(projections, sums, strict=True):
            weight, bias = each.solution()
            project.weight.copy_(weight)
            project.bias.copy_(bias)


class _TokenSums:
    """Sums over tokens, in double precision, from which a regression with an intercept is solved."""

    def __init__(self, project: nn.Linear):
        width, device = project.in_features + 1, project.weight.device
        self.inner = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.cross = torch.zeros(width, project.out_features, dtype=torch.float64, device=device)

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        """tokens (B, N, D), targets (B, N, C)."""
        x = F.pad(tokens.flatten(0, 1).double(), (0, 1), value=1.0)
        self.inner += x.T @ x
        self.cross += x.T @ targets.flatten(0, 1).double()

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,)."""
        ridge = self.inner.diagonal()[:-1].mean() * _RIDGE
        penalty = torch.full_like(self.inner.diagonal(), float(ridge))
        penalty[-1] = 0.0  # the intercept is free
        solved = torch.linalg.solve(self.inner + penalty.diag(), self.cross).T
        return solved[:, :-1], solved[:, -1]


def label_loss(logits: Tensor, targets: Tensor, train: TrainConfig, task: Task = "classes") -> Tensor:
    """The labels' term: logits and targets (B, K), the targets smoothed here."""
    if task == "multilabel":
        return losses.multilabel_cross_entropy(logits, losses.smooth_each(targets, train.label_smoothing))
    of = losses.binary_cross_entropy if train.loss == "bce" else losses.soft_target_cross_entropy
    return of(logits, losses.smooth(targets, train.label_smoothing))


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, config: DistillationConfig, task: Task = "classes"
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
    answer: TeacherAnswer | None,
    config: DistillationConfig,
    train: TrainConfig,
    *,
    guidance: Guidance | None,
    labelled_share: float = 1.0,
    task: Task = "classes",
) -> dict[str, Tensor]:
    """The parts of the loss and their weighted sum, `loss` (arXiv 2012.12877, equations 2 and 3).

    targets (B, K) are soft; of one class an image, they are zero for a view without a label, and the
    class term is the mean over the labelled views, `labelled_share` of the global batch, and 0 where
    there are none. Without a teacher only the class term remains, at full weight.
    """
    base = label_loss(output.class_logits, targets, train, task) / (labelled_share or 1.0)
    parts = {"class": base}
    if answer is None or config.mode == "none":
        return {"loss": base, **parts}
    student_logits = output.distill_logits if config.token == "distill" else output.class_logits
    assert student_logits is not None, "the distillation token needs a distilled student"
    parts["distill"] = distillation_loss(student_logits, answer.logits, config, task)
    total = (1 - config.alpha) * base + config.alpha * parts["distill"]
    if guidance is not None:
        parts["guidance"] = guidance(output, answer)
        total = total + config.guidance * parts["guidance"]
    return {"loss": total, **parts}
