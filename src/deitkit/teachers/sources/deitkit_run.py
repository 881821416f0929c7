"""run:RUN: a student that deitkit trained earlier teaches another one; transformers teach too."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import WeightsError
from ...models.deit import DeiT, DeiTOutput, joint_probabilities
from ...preprocessing import InputSize, Preprocessing
from ...run_folder import read_run
from ...tasks import Task
from ..pretrained import Pretrained, count_params, pick_levels

SYNTAX = "run:RUN"
ABOUT = "a finished deitkit run"
PACKAGE = "deitkit"


class RunBody(nn.Module):
    """Normalised images -> the prefix tokens (B, prefix * D), and two blocks' patch tokens as maps."""

    def __init__(self, model: DeiT):
        super().__init__()
        self.model = model
        self.levels = pick_levels([0] * model.depth)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x, after, prefix = self.model.embed(images), [], self.model.num_prefix_tokens
        for block in self.model.blocks:
            x = block(x)
            after.append(x)
        maps = [after[i][:, prefix:].transpose(1, 2).unflatten(2, self.model.grid_size) for i in self.levels]
        return self.model.norm(x[:, :prefix]).flatten(1), *maps


class RunHead(nn.Module):
    """Both heads' tokens (B, prefix * D) -> the joint classifier's logits (B, K)."""

    def __init__(self, head: nn.Module, head_dist: nn.Module | None, task: Task):
        super().__init__()
        self.task = task
        self.head, self.head_dist = head, head_dist

    def forward(self, pooled: Tensor) -> Tensor:
        if self.head_dist is None:
            return self.head(pooled)
        by_class, by_distill = pooled.chunk(2, 1)
        joint = joint_probabilities(DeiTOutput(self.head(by_class), self.head_dist(by_distill)), self.task)
        if self.task == "multilabel":
            return joint.logit(eps=1e-6)
        return joint.clamp(min=torch.finfo(joint.dtype).tiny).log()


def check(rest: str) -> None:
    """Raises DeitkitError where there is no finished run."""
    if not (Path(rest) / "model.safetensors").is_file() or not (Path(rest) / "config.json").is_file():
        raise WeightsError(f"{rest} holds no finished run; give the --out folder of a training that ended")


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The run's student with both heads, at its own size."""
    check(rest)
    model, saved = read_run(Path(rest))
    if wanted.configured not in (None, *model.image_size):
        size = "x".join(map(str, model.image_size))
        raise WeightsError(f"the run {rest} takes {size} pixels only; leave out teacher.image_size")
    view = saved["preprocessing"]
    return Pretrained(
        name=f"deit {saved['student'].get('name', 'of other weights')}",
        preprocessing=Preprocessing(
            model.image_size, tuple(view["mean"]), tuple(view["std"]), view["crop"], view["interpolation"]
        ),
        body=RunBody(model.eval()),
        head=RunHead(model.head, model.head_dist, saved.get("task", "multiclass")),
        outputs=tuple(saved["classes"]),
        params=count_params(model),
    )
