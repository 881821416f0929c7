"""A student's inside, layer by layer, for the analyses; the forward pass itself keeps none of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.deit import DeiT


class Layer(NamedTuple):
    """What one block leaves behind.

    tokens: (B, N, D) after the block, prefix tokens first.
    attention: (B, h, N, N) inside it, rows sum to 1; None for the input, which no block has seen.
    """

    tokens: Tensor
    attention: Tensor | None


@torch.inference_mode()
def layers(model: DeiT, images: Tensor) -> Iterator[Layer]:
    """The embedded input, each block, and last the final norm, of normalised images (B, C, H, W).

    One at a time, so that a caller who reduces each at once never holds all attention maps. The
    model must be in evaluation mode.
    """
    x = model.embed(images)
    yield Layer(x, None)
    for block in model.blocks:
        attention = block.attn.probabilities(block.norm1(x))  # type: ignore[union-attr, operator]
        x = block(x)
        yield Layer(x, attention)
    yield Layer(model.norm(x), None)
