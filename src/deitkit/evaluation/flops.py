"""How much work one image is."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..model import DeiT


def multiply_adds(model: DeiT, image_size: tuple[int, int]) -> int:
    """Multiply-adds of the matrix products in one forward pass on one RGB image (height, width).

    It is what the papers on vision transformers call FLOPs, every token through every block, though a
    forward pass here leaves out what nobody reads of the last one; a processor's count is twice that.
    Counted on tensors without data, so a large model costs neither time nor memory.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        images = torch.empty(1, 3, *image_size, device="meta")
        model.to("meta")(images, tokens_after=(len(model.blocks) - 1,))
    return counter.get_total_flops() // 2
