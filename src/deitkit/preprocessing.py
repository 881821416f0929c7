"""Preprocessing of images: input size, interpolation, crop, mean and standard deviation.

Each teacher has its own, as it was trained: with the student's, EfficientNet-Lite0 would silently lose ten
points of top-1 on ImageNet.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STUDENT_MEAN, STUDENT_STD = IMAGENET_MEAN, IMAGENET_STD
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # Pillow's names


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a model's input.

    image_size: height, width in pixels. mean, std: of the three channels, in [0, 1]. crop: share of the
    shorter side that the centre crop of a whole image keeps; views in training are crops already.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bicubic"

    @property
    def torch_mode(self) -> str:
        """The mode of `torch.nn.functional.interpolate` that is closest to `interpolation`."""
        return "bicubic" if self.interpolation in ("bicubic", "lanczos") else "bilinear"

    def resize(self, views: Tensor) -> Tensor:
        """Resizes views (B, 3, h, w) in [0, 1] to `image_size`."""
        if tuple(views.shape[-2:]) == self.image_size:
            return views
        smaller = views.shape[-2] > self.image_size[0] or views.shape[-1] > self.image_size[1]
        resized = F.interpolate(
            views, self.image_size, mode=self.torch_mode, align_corners=False, antialias=smaller
        )
        return resized.clamp(0, 1)  # bicubic interpolation overshoots at edges


class Normalised(nn.Module):
    """A backbone with its normalisation, which a backend can fold into the first layer: takes [0, 1]."""

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
    """Chooses a teacher's input size: the configured one, or one that suits the student's.

    configured: side in pixels. student: the student's height, width; None for whole images.
    """

    configured: int | None = None
    student: tuple[int, int] | None = None

    def resolve(self, native: int) -> tuple[int, int]:
        """The input size (height, width) of a model that takes any size and was trained at `native` pixels.

        The student's size, but at least 128 and at most `native` pixels: a convnet at 128 pixels costs a
        third of one at 224 and, with a head fitted at that size, loses little. For whole images, `native`.
        """
        if self.configured is not None:
            side = self.configured
        else:
            side = native if self.student is None else min(native, max(128, *self.student))
        return side, side


def normalise(views: Tensor) -> Tensor:
    """Normalises views (B, 3, H, W) in [0, 1] for the student."""
    mean, std = _student_statistics(views.device)
    return (views - mean) / std


@functools.cache
@torch.inference_mode(False)
def _student_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std on the device, copied once: a copy to a GPU waits for all queued work."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (STUDENT_MEAN, STUDENT_STD))
    return mean, std
