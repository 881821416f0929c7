"""Position embeddings: initial weights, and fitting them to another grid of patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sincos_positions(grid_size: tuple[int, int], embed_dim: int) -> Tensor:
    """(gh * gw, D): sines and cosines of column and row at D / 4 wavelengths from 2 pi to 20,000 pi.

    Vaswani et al., arXiv 1706.03762, section 3.5, once for each of the two axes; D a multiple of 4.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in grid_size), indexing="ij")
    frequencies = 10_000.0 ** -(torch.arange(embed_dim // 4) / (embed_dim // 4))
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)


def resize_positions(
    pos_embed: Tensor,
    num_prefix: int,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    antialias: bool = False,
) -> Tensor:
    """Position embeddings for another patch grid: (1, num_prefix + gh gw, D) -> (1, num_prefix + gh' gw', D).

    Bicubic, align_corners False, as the published code fine-tunes at 384 px (arXiv 2012.12877,
    section 3, "Fixing the positional encoding across resolutions"); the prefix tokens' stay as they are.
    """
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, gh, gw)
    if old_grid != new_grid:
        patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
