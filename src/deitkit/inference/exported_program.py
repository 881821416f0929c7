"""A frozen network as a program of `torch.export`, from which converters start."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

_LARGEST_SIDE = 2**15  # pixels of an image that a graph takes in any size


def to_program(
    network: nn.Module, view_size: tuple[int, int] | None, batch: int | None = None
) -> ExportedProgram:
    """The program of `network` for views (B, 3, *view_size); B is `batch`, or any number if that is None.

    view_size: None for a network that takes an image (H, W, 3) uint8 of any size.
    """
    # Plain attention instead of the fused kernel, whose memory layout differs: masked attention could not be
    # exported from it.
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        example, dynamic = example_input(view_size, batch)
        return torch.export.export(network.cpu().eval(), (example,), dynamic_shapes=(dynamic,))


def example_input(
    view_size: tuple[int, int] | None, batch: int | None
) -> tuple[torch.Tensor, dict[int, Dim] | None]:
    """An input to export with, and which of its dimensions are free."""
    if view_size is None:
        sides = {0: Dim("height", min=2, max=_LARGEST_SIDE), 1: Dim("width", min=2, max=_LARGEST_SIDE)}
        return torch.zeros(51, 67, 3, dtype=torch.uint8), sides
    if batch is not None:
        return torch.zeros(batch, 3, *view_size), None
    # A batch of two: one would be taken for a constant.
    return torch.zeros(2, 3, *view_size), {0: Dim("batch", min=1)}
