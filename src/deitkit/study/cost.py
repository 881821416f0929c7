"""What runs cost: in seconds before they are made, and ImageNet's in GPU hours from a measured step."""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..model import VARIANTS
from .presets import HELD, Preset

IMAGENET_TRAIN_IMAGES = 1_281_167


def forward_macs(config: Config) -> float:
    """Multiply-accumulates of one image through the student that `config` names, sizes included."""
    size, patch = config.student.image_size, config.student.patch_size
    assert size is not None and patch is not None, "a study names its image and patch size"
    variant = VARIANTS[config.student.name]
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    tokens, width = patches + 2, variant.embed_dim
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # projections and MLP, attention
    return variant.depth * block + patches * 3 * patch[0] * patch[1] * width


def expected_seconds(config: Config, preset: Preset, images: float) -> float:
    """Seconds of a run over so many training images, at the speed its preset takes for granted."""
    own = config.override(HELD | dict(preset.settings))
    relative = forward_macs(config) / forward_macs(own)
    assert config.train.epochs is not None, "a study names its epochs"
    # Fitting and measuring the teacher is most of it.
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

    seconds_per_step: measured on one GPU for `images_per_step` images, teacher and data included.
    scaling: the share of that speed which each GPU keeps beside others; at 1 the hours are a lower
    bound for more than one GPU. A GPU whose share of the global batch is smaller than
    `images_per_step` is slower than measured here.
    """
    rate = images_per_step / seconds_per_step
    rows = []
    for n in gpus:
        speed = rate * n * (scaling if n > 1 else 1.0)
        hours = IMAGENET_TRAIN_IMAGES * epochs / speed / 3600
        rows.append({"gpus": n, "images_per_s": speed, "hours": hours, "gpu_hours": hours * n})
    return rows
