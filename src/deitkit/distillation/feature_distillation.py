"""Feature distillation: the student imitates the teacher's feature maps, or its embedding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import DeiTOutput, Student
from ..teachers.pretrained import middle_levels
from ..teachers.teacher import TeacherOutput
from .losses import feature_loss, feature_target

# Relative to the tokens' mean square. An image has many tokens but one embedding, and the regression on a few
# hundred of them would fit noise: held out, its R^2 is -0.2 at 0.001 and 0.3 from 0.3 to 1 (woof10).
_RIDGE, _EMBEDDING_RIDGE = 1e-3, 0.5
_HUBER_DELTA = 2.0  # standard deviations; an embedding after a ReLU has a long tail
_LEAST_STD = 0.1  # as a share of the mean one


class FeatureDistillation(nn.Module):
    """Projects what the student has to what the teacher has.

    The projections are trained with the student and are not part of it. blocks: of the student whose patch
    tokens are needed. fit_from_scratch: whether a student with random weights is fitted too. ridge: of the
    regression.
    """

    projections: nn.ModuleList
    blocks: tuple[int, ...] = ()
    fit_from_scratch = False
    ridge = _RIDGE

    def forward(self, output: DeiTOutput, teacher: TeacherOutput) -> Tensor:
        """The loss of a micro-batch."""
        raise NotImplementedError

    def pairs(self, output: DeiTOutput, teacher: TeacherOutput) -> list[tuple[Tensor, Tensor]]:
        """For each projection its inputs (B, N, D) and its targets (B, N, C)."""
        raise NotImplementedError

    @torch.no_grad()
    def fit(self, outputs: Iterable[tuple[DeiTOutput, TeacherOutput]]) -> list[_TokenSums]:
        """Initialises the projections by ridge regression on `outputs`; returns the sums it was solved from.

        Random projections would first pull a pretrained student's tokens in random directions; on few
        images that undid its initial weights (docs/small-data.md).
        """
        sums: list[_TokenSums] = []
        for output, teacher in outputs:
            pairs = self.pairs(output, teacher)
            sums = sums or [_TokenSums(tokens.shape[-1], target.shape[-1]) for tokens, target in pairs]
            for each, (tokens, target) in zip(sums, pairs, strict=True):
                each.add(tokens, target)
        projections: Any = self.projections
        for project, each in zip(projections, sums, strict=True):
            weight, bias = each.solution(self.ridge)
            project.weight.copy_(weight)
            project.bias.copy_(bias)
        return sums


class MapDistillation(FeatureDistillation):
    """Projects patch tokens after two middle blocks to the teacher's two feature maps.

    Locality Guidance (Li et al., ECCV 2022, arXiv 2207.10026).
    """

    def __init__(self, student: Student, map_channels: tuple[int, ...]):
        super().__init__()
        self.blocks = middle_levels(student.depth)  # the shallower map goes with the lower block
        self.projections = nn.ModuleList(nn.Linear(student.embed_dim, c) for c in map_channels)

    def forward(self, output: DeiTOutput, teacher: TeacherOutput) -> Tensor:
        """The sum over both blocks of the mean squared error between normalised features."""
        assert output.grid_size is not None
        terms = [
            feature_loss(project(tokens), features, output.grid_size, output.kept_patches)
            for project, tokens, features in zip(
                self.projections, output.patch_tokens, teacher.feature_maps, strict=True
            )
        ]
        return torch.stack(terms).sum()

    def pairs(self, output: DeiTOutput, teacher: TeacherOutput) -> list[tuple[Tensor, Tensor]]:
        assert output.grid_size is not None
        targets = [feature_target(m, output.grid_size, output.kept_patches) for m in teacher.feature_maps]
        return list(zip(output.patch_tokens, targets, strict=True))


class EmbeddingDistillation(FeatureDistillation):
    """Projects what the student's heads read to what the teacher's head reads.

    As the token loss of Proteus (Zhang et al., arXiv 2407.10366, section 3.2), with a projection, since the
    sizes differ, and on each number of the embedding standardised: a linear probe can read the rare ones too.
    """

    fit_from_scratch = True  # the standardisation is fitted as well
    ridge = _EMBEDDING_RIDGE
    mean: Tensor
    std: Tensor

    def __init__(self, student: Student, size: int):
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(student.embedding_size, size)])
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, output: DeiTOutput, teacher: TeacherOutput) -> Tensor:
        """The Huber loss to the standardised embedding."""
        [(embedding, target)] = self.pairs(output, teacher)
        found = self.projections[0](embedding).float()
        return F.huber_loss(found, target, delta=_HUBER_DELTA)

    def pairs(self, output: DeiTOutput, teacher: TeacherOutput) -> list[tuple[Tensor, Tensor]]:
        assert output.embedding is not None and teacher.embedding is not None
        target = (teacher.embedding.float() - self.mean) / self.std
        return [(output.embedding[:, None], target[:, None])]

    @torch.no_grad()
    def fit(self, outputs: Iterable[tuple[DeiTOutput, TeacherOutput]]) -> list[_TokenSums]:
        """As the base class, and fits the standardisation."""
        sums = super().fit(outputs)
        mean, std = sums[0].target_moments()
        self.mean.copy_(mean)
        # A number that was nearly constant on these views would outweigh the others.
        self.std.copy_(std.clamp(min=_LEAST_STD * float(std.mean())))
        project: Any = self.projections[0]
        project.bias.sub_(self.mean).div_(self.std)
        project.weight.div_(self.std[:, None])
        return sums


class _TokenSums:
    """Sums over tokens that a ridge regression with an intercept is solved from.

    On the CPU, because not every device has double precision.
    """

    def __init__(self, width: int, channels: int):
        self.inner = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.cross = torch.zeros(width + 1, channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        """tokens: (B, N, D). targets: (B, N, C)."""
        x = F.pad(tokens.flatten(0, 1).float(), (0, 1), value=1.0)
        self.inner += (x.T @ x).cpu()
        self.cross += (x.T @ targets.flatten(0, 1)).cpu()
        self.squares += targets.flatten(0, 1).square().sum(0).cpu()

    def solution(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,)."""
        penalty = torch.full_like(self.inner.diagonal(), float(self.inner.diagonal()[:-1].mean() * ridge))
        penalty[-1] = 0.0  # the intercept is not penalised
        solved = torch.linalg.solve(self.inner + penalty.diag(), self.cross).T
        return solved[:, :-1], solved[:, -1]

    def target_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the targets, (C,) each."""
        count, mean = self.inner[-1, -1], self.cross[-1] / self.inner[-1, -1]
        return mean, (self.squares / count - mean**2).clamp(min=0).sqrt()
