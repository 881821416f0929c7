"""Feature distillation: patch tokens of the student imitate feature maps of the teacher."""

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

_RIDGE = 1e-3  # relative to the tokens' mean square


class FeatureDistillation(nn.Module):
    """Projects patch tokens after two middle blocks to the teacher's two feature maps.

    Locality Guidance (Li et al., ECCV 2022, arXiv 2207.10026). The projections are trained with the student
    and are not part of it.
    """

    projections: nn.ModuleList

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

    @torch.no_grad()
    def fit(self, outputs: Iterable[tuple[DeiTOutput, TeacherOutput]]) -> None:
        """Initialises the projections by ridge regression on `outputs`.

        Random projections would first pull a pretrained student's tokens in random directions; on few
        images that undid its initial weights (docs/small-data.md).
        """
        sums: list[_TokenSums] = []
        for output, teacher in outputs:
            assert output.grid_size is not None
            targets = [
                feature_target(features, output.grid_size, output.kept_patches)
                for features in teacher.feature_maps
            ]
            sums = sums or [
                _TokenSums(tokens.shape[-1], target.shape[-1])
                for tokens, target in zip(output.patch_tokens, targets, strict=True)
            ]
            for each, tokens, target in zip(sums, output.patch_tokens, targets, strict=True):
                each.add(tokens, target)
        projections: Any = self.projections
        for project, each in zip(projections, sums, strict=True):
            weight, bias = each.solution()
            project.weight.copy_(weight)
            project.bias.copy_(bias)


class _TokenSums:
    """Sums over tokens that a ridge regression with an intercept is solved from.

    On the CPU, because not every device has double precision.
    """

    def __init__(self, width: int, channels: int):
        self.inner = torch.zeros(width + 1, width + 1, dtype=torch.float64)
        self.cross = torch.zeros(width + 1, channels, dtype=torch.float64)

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        """tokens: (B, N, D). targets: (B, N, C)."""
        x = F.pad(tokens.flatten(0, 1).float(), (0, 1), value=1.0)
        self.inner += (x.T @ x).cpu()
        self.cross += (x.T @ targets.flatten(0, 1)).cpu()

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,)."""
        ridge = self.inner.diagonal()[:-1].mean() * _RIDGE
        penalty = torch.full_like(self.inner.diagonal(), float(ridge))
        penalty[-1] = 0.0  # the intercept is not penalised
        solved = torch.linalg.solve(self.inner + penalty.diag(), self.cross).T
        return solved[:, :-1], solved[:, -1]
