"""Feature guidance: a student's middle tokens imitate its teacher's feature maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.deit import DeiT, DeiTOutput
from ..teachers.pretrained import middle_levels
from ..teachers.teacher import TeacherOutput
from . import losses

_RIDGE = 1e-3  # of the tokens' mean square


class FeatureDistillation(nn.Module):
    """Projections from two middle blocks' patch tokens to the teacher's two feature maps.

    Locality Guidance (Li et al., ECCV 2022, arXiv 2207.10026). It lives beside the student while
    that trains, and never ships with it.
    """

    def __init__(self, student: DeiT, map_channels: tuple[int, ...]):
        super().__init__()
        self.blocks = middle_levels(student.depth)  # the shallower map guides the lower one
        self.projections = nn.ModuleList(nn.Linear(student.embed_dim, c) for c in map_channels)

    def forward(self, output: DeiTOutput, answer: TeacherOutput) -> Tensor:
        """The sum over both blocks of the mean squared error between normalised features."""
        assert output.grid_size is not None
        terms = [
            losses.guidance(project(tokens), features, output.grid_size, output.kept_patches)
            for project, tokens, features in zip(
                self.projections, output.patch_tokens, answer.feature_maps, strict=True
            )
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def fit(self, seen: Iterable[tuple[DeiTOutput, TeacherOutput]]) -> None:
        """Sets the projections to those that suit the student as it is: ridge regression on `seen`.

        Projections of random values would bend a pre-trained student's tokens before they have learnt
        to read them: on few images that undid its start (docs/small-data.md).
        """
        projections = cast(list[nn.Linear], list(self.projections))
        sums = [_TokenSums(p) for p in projections]
        for output, answer in seen:
            assert output.grid_size is not None
            for each, tokens, features in zip(sums, output.patch_tokens, answer.feature_maps, strict=True):
                each.add(tokens, losses.guidance_target(features, output.grid_size, output.kept_patches))
        for project, each in zip(projections, sums, strict=True):
            weight, bias = each.solution()
            project.weight.copy_(weight)
            project.bias.copy_(bias)


class _TokenSums:
    """Sums over tokens, from which a regression with an intercept is solved.

    On the CPU, since not every device has double precision.
    """

    def __init__(self, project: nn.Linear):
        width = project.in_features + 1
        self.inner = torch.zeros(width, width, dtype=torch.float64)
        self.cross = torch.zeros(width, project.out_features, dtype=torch.float64)

    def add(self, tokens: Tensor, targets: Tensor) -> None:
        """tokens (B, N, D), targets (B, N, C)."""
        x = F.pad(tokens.flatten(0, 1).float(), (0, 1), value=1.0)
        self.inner += (x.T @ x).cpu()
        self.cross += (x.T @ targets.flatten(0, 1)).cpu()

    def solution(self) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,)."""
        ridge = self.inner.diagonal()[:-1].mean() * _RIDGE
        penalty = torch.full_like(self.inner.diagonal(), float(ridge))
        penalty[-1] = 0.0  # the intercept is free
        solved = torch.linalg.solve(self.inner + penalty.diag(), self.cross).T
        return solved[:, :-1], solved[:, -1]
