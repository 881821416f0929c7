"""What both comparisons do to a model before it is compared."""

from __future__ import annotations

import torch


def randomise(model: torch.nn.Module) -> None:
    """Every parameter away from its initial value, so that a swapped or missing one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def tokens_of(blocks: torch.nn.Module) -> list[torch.Tensor]:
    """A list that fills with each block's output (B, prefix + N, D) in the next forward pass."""
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen
