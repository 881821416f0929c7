"""Where a student looks: how far on average, and at what.

Shapes in comments: B images, h heads, T tokens (P prefix tokens, then N patches in rows).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def patch_distances(grid_size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Distances between the centres of all patches, in pixels: (N, N).

    grid_size: patches down and across; patch_size: a patch's height and width in pixels.
    """
    rows, columns = (torch.arange(n).double() * side for n, side in zip(grid_size, patch_size, strict=True))
    centres = torch.cartesian_prod(rows, columns)  # (N, 2)
    return torch.cdist(centres, centres)


def mean_distance(attention: Tensor, distances: Tensor) -> Tensor:
    """Mean attention distance in pixels of each head and image: (B, h, T, T), (N, N) -> (B, h).

    Dosovitskiy et al., arXiv 2010.11929, figure 7: the distance from a patch to the patches it
    attends to, weighted by the attention, averaged over all patches. Attention to prefix tokens has
    no distance; each patch's weights over the patches are rescaled to sum to 1.
    """
    N = len(distances)
    weights = attention[:, :, -N:, -N:].double()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return (weights * distances.to(weights.device)).sum(-1).mean(-1)


def rollout(attentions: Iterable[Tensor]) -> Tensor:
    """What reaches each token at the top from each token at the input: (B, T, T), rows sum to 1.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928): heads are averaged, the residual branch
    counts half, and the layers' (B, h, T, T), first block first, are multiplied up.
    """
    flow: Tensor | None = None
    for attention in attentions:
        mixed = 0.5 * (attention.mean(1) + torch.eye(attention.shape[-1], device=attention.device))
        flow = mixed if flow is None else mixed @ flow
    if flow is None:
        raise ValueError("rollout needs the attention of one block at least")
    return flow


def patch_maps(attention: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """What each prefix token takes from the patches: (B, T, T) -> (B, P, *grid_size)."""
    N = grid_size[0] * grid_size[1]
    P = attention.shape[-1] - N
    return attention[:, :P, P:].reshape(len(attention), P, *grid_size)
