"""Multiply-adds of a forward pass."""

from __future__ import annotations

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from ..models.deit import DeiT


def multiply_adds(model: DeiT) -> int:
    """Multiply-adds of the matrix products in one forward pass on one image of the model's size.

    It is what the papers on vision transformers call FLOPs, every token through every block, though a
    forward pass here leaves out what nobody reads of the last one; a processor's count is twice that.
    Counted on tensors without data, so a large model costs neither time nor memory.
    """
    shapes = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    images = torch.empty(1, model.patch_embed.proj.in_channels, *model.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, shapes, (images,), {"tokens_after": (model.depth - 1,)})
    return counter.get_total_flops() // 2
