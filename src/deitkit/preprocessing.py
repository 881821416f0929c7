"""How a teacher was trained to see images: its input size, interpolation, crop, mean and deviation.

A wrong normalisation costs EfficientNet-Lite0 ten points of top-1 on ImageNet, silently, so these values
belong to the teacher and are never the student's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STUDENT_MEAN, STUDENT_STD = IMAGENET_MEAN, IMAGENET_STD  # of every student's input
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # Pillow's names


@dataclass(frozen=True)
class Preprocessing:
    """What a image goes through before it reaches the teacher.

    image_size: height and width in pixels. mean, std: of the three channels, in [0, 1]. crop: share of the
    shorter side that the centre crop of a whole image keeps; a student's view is a crop already.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bicubic"

    def resize(self, views: Tensor) -> Tensor:
        """(B, 3, h, w) views in [0, 1] -> the same at `image_size`."""
        if tuple(views.shape[-2:]) == self.image_size:
            return views
        mode = "bicubic" if self.interpolation in ("bicubic", "lanczos") else "bilinear"
        smaller = views.shape[-2] > self.image_size[0] or views.shape[-1] > self.image_size[1]
        resized = F.interpolate(views, self.image_size, mode=mode, align_corners=False, antialias=smaller)
        return resized.clamp(0, 1)  # a cubic overshoots at edges

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Preprocessing:
        """The inverse of `dataclasses.asdict`, from JSON's lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**values)


class Normalised(nn.Module):
    """A body that takes images in [0, 1]: it normalises first, which a backend can fold into a layer."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.body((images - self.mean) / self.std)
        return outputs


@dataclass(frozen=True)
class InputSize:
    """Which input size is wanted: the one in the settings, else what suits the student's."""

    configured: int | None = None  # pixels a side
    student: tuple[int, int] | None = None  # None: whole images come, and the native size is best

    def resolve(self, native: int) -> tuple[int, int]:
        """For a model that takes any size and was trained at `native`.

        A convnet at 128 pixels costs a third of one at 224; fitted at that size, it loses little. So it is
        the student's size but at least 128 pixels, and no more than the native one.
        """
        if self.configured is not None:
            side = self.configured
        else:
            side = native if self.student is None else min(native, max(128, *self.student))
        return side, side


def normalise(views: Tensor) -> Tensor:
    """(B, 3, H, W) views in [0, 1] -> the student's input."""
    mean, std = _student_statistics(views.device)
    return (views - mean) / std


@functools.cache
@torch.inference_mode(False)
def _student_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, copied once: a copy to a GPU waits for all queued work."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (STUDENT_MEAN, STUDENT_STD))
    return mean, std
