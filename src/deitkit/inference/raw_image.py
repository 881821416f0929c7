"""A classifier's graph with its preprocessing in front: bytes of an image of any size in."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import resized_side
from .joint_classifier import ClassifierGraph


class RawImageGraph(ClassifierGraph):
    """One image (H, W, 3), RGB, uint8, of any size -> the outputs of `graph` for a batch of one.

    The image is resized and cropped as by `data.decode.center_crop`: bicubically with antialiasing as Pillow
    does it, each pass rounded to whole values. Pillow adds in fixed point, so that rarely a pixel differs by
    one of 255. A JPEG has to be decoded at full scale; Pillow's reduced scale has other pixels.

    graph: of views (B, 3, *view_size), float in [0, 1].
    """

    def __init__(self, graph: ClassifierGraph, view_size: tuple[int, int], crop: float):
        super().__init__()
        self.inner, self.view_size = graph, view_size
        self.covered = tuple(resized_side(side, crop) for side in view_size)
        self.output_names = graph.output_names

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.inner(self.view(image))
        return outputs

    def view(self, image: Tensor) -> Tensor:
        """(H, W, 3) uint8 -> (1, 3, *view_size), float in [0, 1]."""
        (H, W), (low, narrow) = self.view_size, self.covered
        # As tensors, because the graph takes any size.
        rows, columns = torch.arange(image.shape[0]), torch.arange(image.shape[1])
        down, across = rows[-1] + 1, columns[-1] + 1
        # The resized image covers (low, narrow) in both directions and keeps its aspect ratio.
        height = torch.clamp(torch.div(narrow * down, across, rounding_mode="floor"), min=low)
        width = torch.clamp(torch.div(low * across, down, rounding_mode="floor"), min=narrow)
        pixels = image.permute(2, 0, 1).float()
        to_columns = _resampling(columns, across, width, W)
        to_rows = _resampling(rows, down, height, H)
        narrowed = _whole(pixels @ to_columns.T)
        return _whole(to_rows @ narrowed)[None] / 255.0


def _resampling(inputs: Tensor, length: Tensor, resized: Tensor, window: int) -> Tensor:
    """The matrix (window, length) that resizes `length` pixels to `resized` and keeps the middle ones.

    inputs: 0, 1, ..., length - 1. As Pillow: the cubic kernel with a = -0.5, widened by the scale where that
    is above 1, and its weights divided by their sum.
    """
    first = torch.div(resized - window, 2, rounding_mode="floor")
    # The centre of output i lies at (2 i + 1) length / (2 resized): in whole numbers, and then their rest,
    # since 24 bits are not enough for pixels of a large image.
    numerator = (2 * (first + torch.arange(window)) + 1) * length
    whole = torch.div(numerator, 2 * resized, rounding_mode="floor")
    rest = (numerator - whole * 2 * resized).float() / (2 * resized).float()
    distance = (inputs[None, :] - whole[:, None]).float() + 0.5 - rest[:, None]
    scale = torch.clamp(length.float() / resized.float(), min=1.0)
    weights = _cubic((distance / scale).abs())
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """The kernel of bicubic interpolation with a = -0.5 at distances x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def _whole(pixels: Tensor) -> Tensor:
    """Rounded to whole values of 0 to 255, halves up, as between Pillow's passes."""
    return torch.floor(pixels + 0.5).clamp(0.0, 255.0)
