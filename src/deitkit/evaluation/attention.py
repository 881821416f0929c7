"""Inside a student: its layers one by one, how far its heads look and at what, how its two tokens differ.

Shapes in comments: B batch, h heads, T tokens (P prefix tokens, then N patches in rows), D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.blocks import Block, scaled
from ..models.deit import DeiT, DeiTOutput


class Layer(NamedTuple):
    """The output of one layer.

    tokens: (B, T, D) after it, prefix tokens first.
    attention: (B, h, T, T) inside it, rows sum to 1; None for the embedded input and the final norm.
    """

    tokens: Tensor
    attention: Tensor | None


@torch.inference_mode()
def layers(model: DeiT, images: Tensor) -> Iterator[Layer]:
    """The embedded input, each block and the final norm, for normalised images (B, C, H, W).

    Yields one layer at a time: a caller that reduces each at once never holds all attention maps. The model
    must be in evaluation mode.
    """
    x = model.embed(images)
    yield Layer(x, None)
    for block in model.blocks:
        attention = block.attn.probabilities(block.norm1(x))  # type: ignore[union-attr, operator]
        x = block(x)
        yield Layer(x, attention)
    yield Layer(model.norm(x), None)


def attended(model: DeiT, images: Tensor) -> tuple[DeiTOutput, list[Tensor]]:
    """The model's output, and the attention (B, h, T, T) of each block, through which gradients flow.

    images: normalised, (B, C, H, W). Unlike the fused kernel of `model(images)`, this computes the attention
    weights, and the output from them. The model must be in evaluation mode.
    """
    x = model.embed(images)
    attentions = []
    for block in model.blocks:
        assert isinstance(block, Block)
        normed = block.norm1(x)
        weights = block.attn.probabilities(normed)
        _, _, values = block.attn.queries_keys_values(normed)
        x = x + scaled(block.attn.join(weights @ values), block.gamma_1)
        x = x + block.mlp_branch(x)
        attentions.append(weights)
    return model.classify(x), attentions


def token_cosines(tokens: Tensor) -> Tensor:
    """Cosine similarity of each image's class and distillation token: (B, T, D) -> (B,).

    In the paper (arXiv 2012.12877, section 4) the learnt embeddings have a cosine of 0.06, which rises from
    layer to layer to 0.93 at the last.
    """
    return F.cosine_similarity(tokens[:, 0].double(), tokens[:, 1].double(), dim=-1)


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
    """Attention rollout: how much of each input token reaches each output token, (B, T, T), rows sum to 1.

    Abnar and Zuidema, arXiv 2005.00928: heads are averaged, the residual branch counts half, and the blocks'
    attention (B, h, T, T), first block first, is multiplied up. Raises ValueError without any block.
    """
    flow: Tensor | None = None
    for attention in attentions:
        mixed = 0.5 * (attention.mean(1) + torch.eye(attention.shape[-1], device=attention.device))
        flow = mixed if flow is None else mixed @ flow
    if flow is None:
        raise ValueError("rollout needs the attention of at least one block")
    return flow


def gradient_rollout(attentions: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Relevance of each input token (column) for each output token (row), (B, T, T), not negative.

    Chefer, Gur and Wolf, arXiv 2103.15679, equations 5 and 6 for self-attention: a block's attention times
    the gradient of the explained logit by it, the positive part of that, averaged over heads; from the first
    block to the last R becomes R + A R, with the identity at first. attentions, gradients: (B, h, T, T) each.
    Raises ValueError without any block.
    """
    if not attentions:
        raise ValueError("rollout needs the attention of at least one block")
    B, _, T, _ = attentions[0].shape
    relevance = torch.eye(T, dtype=attentions[0].dtype, device=attentions[0].device).expand(B, T, T)
    for attention, gradient in zip(attentions, gradients, strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(1) @ relevance
    return relevance


def patch_maps(attention: Tensor, grid_size: tuple[int, int]) -> Tensor:
    """Attention from each prefix token to the patches: (B, T, T) -> (B, P, *grid_size)."""
    N = grid_size[0] * grid_size[1]
    P = attention.shape[-1] - N
    return attention[:, :P, P:].reshape(len(attention), P, *grid_size)
