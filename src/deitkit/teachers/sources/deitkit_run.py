"""run:RUN: a student that deitkit trained earlier, with both of its heads, as a transformer teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import WeightsError
from ...models.deit import DeiT, DeiTOutput, joint_probabilities
from ...preprocessing import InputSize
from ...run_folder import read_student
from ...tasks import Task
from ..pretrained import Pretrained, TeacherSource, count_params, feature_levels, register


class RunBackbone(nn.Module):
    """Normalised images -> the prefix tokens (B, prefix * D), and two blocks' patch tokens as maps."""

    def __init__(self, model: DeiT):
        super().__init__()
        self.model = model
        self.levels = feature_levels([0] * model.depth)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, outputs, prefix = self.model.embed(images), [], self.model.num_prefix_tokens
        for block in self.model.blocks:
            x = block(x)
            outputs.append(x)
        maps = [
            outputs[i][:, prefix:].transpose(1, 2).unflatten(2, self.model.grid_size) for i in self.levels
        ]
        return self.model.norm(x[:, :prefix]).flatten(1), *maps


class RunHead(nn.Module):
    """The prefix tokens (B, prefix * D) -> the joint classifier's logits (B, K)."""

    def __init__(self, head: nn.Module, head_dist: nn.Module | None, task: Task):
        super().__init__()
        self.task = task
        self.head, self.head_dist = head, head_dist

    def forward(self, pooled: Tensor) -> Tensor:
        if self.head_dist is None:
            logits: Tensor = self.head(pooled)
            return logits
        cls_token, dist_token = pooled.chunk(2, 1)
        output = DeiTOutput(self.head(cls_token), self.head_dist(dist_token))
        joint = joint_probabilities(output, self.task)
        if self.task == "multilabel":
            return joint.logit(eps=1e-6)
        return joint.clamp(min=torch.finfo(joint.dtype).tiny).log()


@register
class RunSource(TeacherSource):
    name = "run"
    syntax = "run:RUN"
    about = "a finished deitkit run"

    def check(self, model: str) -> None:
        run = Path(model)
        if not (run / "model.safetensors").is_file() or not (run / "config.json").is_file():
            raise WeightsError(f"{run} holds no finished run; give the --out folder of a training that ended")

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        """The student at its own image size."""
        self.check(model)
        student, info = read_student(Path(model))
        if size.configured not in (None, *student.image_size):
            pixels = "x".join(map(str, student.image_size))
            raise WeightsError(f"the run {model} takes {pixels} pixels only; leave out teacher.image_size")
        return Pretrained(
            name=f"deit {info.student.name or 'of other weights'}",
            preprocessing=replace(info.preprocessing, image_size=student.image_size),
            backbone=RunBackbone(student.eval()),
            head=RunHead(student.head, student.head_dist, info.task),
            outputs=info.classes,
            params=count_params(student),
        )

    def absolute(self, model: str) -> str:
        return str(Path(model).resolve())
