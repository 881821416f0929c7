"""The layers of a DeiT: patch embedding, position embedding, attention, MLP and transformer block.

State-dict keys are the published ones. Shapes in comments: B batch, N tokens, D width, h heads, C/H/W image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import BatchRows

_Network = TypeVar("_Network", bound=nn.Module)


class PatchEmbed(nn.Module):
    """Splits images into patches and projects each patch: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int):
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        # A convolution for the published key and shape; applied as a matrix product, faster on CPUs.
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        p, q = self.patch_size
        x = images.reshape(B, C, H // p, p, W // q, q)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // q), C * p * q)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ConvolutionPatches(nn.Module):
    """The same projection as a convolution. patches: whose weights are used."""

    def __init__(self, patches: PatchEmbed):
        super().__init__()
        self.patch_size, self.proj = patches.patch_size, patches.proj

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.proj(images)
        return projected.flatten(2).transpose(1, 2)


def in_four_dimensions(network: _Network) -> _Network:
    """A copy whose tensors have at most four dimensions, for runtimes that have no more."""
    copied = copy.deepcopy(network)
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, PatchEmbed):
                setattr(parent, name, ConvolutionPatches(child))
    return copied


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, num_queries, D): the first tokens only, attending to all."""
        return self.join(F.scaled_dot_product_attention(*self.queries_keys_values(x, num_queries)))

    def queries_keys_values(self, x: Tensor, num_queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys, values (B, h, N, D/h); queries of the first `num_queries` tokens."""
        if num_queries is None:
            q, k, v = self._heads(self.qkv(x), 3)
            return q, k, v
        D = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (q,) = self._heads(F.linear(x[:, :num_queries], weight[:D], bias[:D]), 1)
        k, v = self._heads(F.linear(x, weight[D:], bias[D:]), 2)
        return q, k, v

    def probabilities(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Attention weights of each query (row) over the keys: (B, N, D) -> (B, h, N, N), rows sum to 1.

        num_queries: as in `forward`, which uses a fused kernel that never materialises them.
        """
        q, k, _ = self.queries_keys_values(x, num_queries)
        scores: Tensor = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        return scores.softmax(-1)

    def join(self, heads: Tensor) -> Tensor:
        """Concatenates and projects the heads: (B, h, N, D/h) -> (B, N, D)."""
        B, h, N, d = heads.shape
        projected: Tensor = self.proj(heads.transpose(1, 2).reshape(B, N, h * d))
        return projected

    def _heads(self, x: Tensor, count: int) -> list[Tensor]:
        """Splits `count` concatenated projections into heads: (B, N, count D) -> (B, h, N, D/h) each."""
        # One at a time: all at once have five dimensions, and runtimes for phones have four.
        B, N, width = x.shape
        D = width // count
        parts = [x[..., i * D : (i + 1) * D] for i in range(count)]
        return [part.reshape(B, N, self.num_heads, D // self.num_heads).transpose(1, 2) for part in parts]


class MLP(nn.Module):
    """Two linear layers with a GELU between them: (B, N, D) -> (B, N, D)."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth (Huang et al., arXiv 1603.09382).

    layer_scale: LayerScale init value (Touvron et al., arXiv 2103.17239) of the per-channel gains
    `gamma_1` and `gamma_2`, as the published keys are; None disables LayerScale.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp = MLP(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path_rate = drop_path_rate
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((embed_dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((embed_dim,), layer_scale))

    def forward(self, x: Tensor, num_queries: int | None = None, rows: BatchRows | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, num_queries, D): the first tokens only, attending to all."""

        def attention(x: Tensor) -> Tensor:
            return scaled(self.attn(self.norm1(x), num_queries), self.gamma_1)

        return self.add_branch(self.add_branch(x, attention, num_queries, rows), self.mlp_branch, rows=rows)

    def mlp_branch(self, x: Tensor) -> Tensor:
        """The residual of the MLP for (B, N, D)."""
        return scaled(self.mlp(self.norm2(x)), self.gamma_2)

    def add_branch(
        self,
        x: Tensor,
        branch: Callable[[Tensor], Tensor],
        num_tokens: int | None = None,
        rows: BatchRows | None = None,
    ) -> Tensor:
        """Adds `branch(x)` to the first `num_tokens` of x (B, N, D); in training with stochastic depth.

        Each sample drops the branch with probability `drop_path_rate`. The branch is computed for the
        kept samples only (DINOv2, arXiv 2304.07193, section 5) and divided by the keep rate. The number
        of dropped samples differs from its mean by less than one; compiled, it is fixed, as in DINOv2.
        """
        first = x if num_tokens is None else x[:, :num_tokens]
        if not self.training or self.drop_path_rate == 0.0:
            return first + branch(x)
        keep, (start, size) = 1.0 - self.drop_path_rate, rows or (0, len(x))
        if torch.compiler.is_compiling():  # static shapes, one graph
            count = max(1, round(size * keep))
            keep = count / size
        else:
            count = int(size * keep + torch.rand(()).item())  # on the CPU, so as not to wait for a GPU
        if count == size:
            return first + branch(x) / keep
        kept = torch.randperm(size, device=x.device)[:count]
        if size > len(x):  # a part of the micro-batch
            kept = kept[(kept >= start) & (kept < start + len(x))] - start
        return first.index_add(0, kept, branch(x[kept]).to(x.dtype), alpha=1.0 / keep)

    @torch.no_grad()
    def fold_layer_scale(self) -> None:
        """Folds LayerScale into the projections: gamma (W x + b) = (gamma W) x + gamma b."""
        for gamma, projection in ((self.gamma_1, self.attn.proj), (self.gamma_2, self.mlp.fc2)):
            if gamma is not None:
                projection.weight.mul_(gamma[:, None])
                projection.bias.mul_(gamma)
        self.gamma_1 = self.gamma_2 = None


def scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """`branch` (B, N, D) times the LayerScale gains (D,); unchanged if `gamma` is None."""
    return branch if gamma is None else branch * gamma


def sincos_positions(grid_size: tuple[int, int], embed_dim: int) -> Tensor:
    """Two-dimensional sine-cosine position embeddings: (gh gw, D), D a multiple of 4.

    Vaswani et al., arXiv 1706.03762, section 3.5, for column and row: sines and cosines at D / 4
    wavelengths from 2 pi to 20,000 pi.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in grid_size), indexing="ij")
    frequencies = 10_000.0 ** -(torch.arange(embed_dim // 4) / (embed_dim // 4))
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([wave for a in angles for wave in (a.sin(), a.cos())], dim=1)


def resize_positions(
    pos_embed: Tensor,
    num_prefix: int,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    antialias: bool = False,
) -> Tensor:
    """Resizes position embeddings to another patch grid: (1, P + gh gw, D) -> (1, P + gh' gw', D).

    Bicubic, align_corners False, as in the published code (arXiv 2012.12877, section 3, "Fixing the
    positional encoding across resolutions"). The first P = num_prefix embeddings are unchanged.
    """
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    patches = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # (1, D, gh, gw)
    if old_grid != new_grid:
        patches = F.interpolate(patches, new_grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
