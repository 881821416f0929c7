"""The cost of runs: expected seconds of a study's, and GPU hours on ImageNet from a measured step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ..config import Config, StudentConfig
from ..evaluation.speed import multiply_adds
from ..models.deit import create_model
from ..settings import AUTO
from .presets import HELD, IMAGENET_TRAIN_IMAGES, Preset


def student_multiply_adds(student: StudentConfig) -> int:
    """Multiply-adds of the student for one image of its size."""
    size, patch = student.image_size, student.patch_size
    assert size != AUTO and patch != AUTO, "a study names its image and patch size"
    return _multiply_adds(student.name, size, patch)


@lru_cache
def _multiply_adds(name: str, image_size: tuple[int, int], patch_size: tuple[int, int]) -> int:
    with torch.device("meta"):
        model = create_model(name, num_classes=2, image_size=image_size, patch_size=patch_size)
    return multiply_adds(model)


def expected_seconds(config: Config, preset: Preset, images: float) -> float:
    """Seconds of a run over `images` training images, at the preset's assumed speed."""
    own = config.override(HELD | dict(preset.settings))
    relative = student_multiply_adds(config.student) / student_multiply_adds(own.student)
    assert config.train.epochs != AUTO, "a study names its epochs"
    # Most of the overhead is fitting and measuring the teacher.
    overhead = preset.overhead_s if config.distillation.mode != "none" else preset.overhead_s / 4
    return overhead + config.train.epochs * images * relative / preset.images_per_s


def imagenet_cost(
    seconds_per_step: float,
    images_per_step: int,
    *,
    epochs: int = 300,
    gpus: tuple[int, ...] = (1, 8, 64),
    scaling: float = 1.0,
) -> list[dict[str, Any]]:
    """Hours and GPU hours of an ImageNet-1k run, for each number of GPUs.

    seconds_per_step: measured on one GPU for `images_per_step` images, teacher and data included. scaling:
    the share of that speed that each of several GPUs keeps; 1 gives a lower bound of the hours. A GPU with
    fewer images per step than `images_per_step` is slower than assumed.
    """
    rate = images_per_step / seconds_per_step
    rows = []
    for n in gpus:
        speed = rate * n * (scaling if n > 1 else 1.0)
        hours = IMAGENET_TRAIN_IMAGES * epochs / speed / 3600
        rows.append({"gpus": n, "images_per_s": speed, "hours": hours, "gpu_hours": hours * n})
    return rows
