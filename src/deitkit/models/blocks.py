"""What a DeiT is built of: patch embedding, attention, MLP and the block that holds them.

State-dict keys are the published ones. Shapes in comments: B batch, N tokens, D width, h heads, C/H/W image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts the image into patches and projects each one: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, patch_size: tuple[int, int], in_channels: int, embed_dim: int):
        super().__init__()
        self.patch_size = patch_size
        # Held as a convolution for the published key and shape; applied as a matrix product,
        # which on a CPU is faster than a strided convolution.
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        B, C, H, W = images.shape
        p, q = self.patch_size
        x = images.reshape(B, C, H // p, p, W // q, q)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // q), C * p * q)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D)."""

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """`num_queries`: only so many tokens, the first, ask and are answered; None: all."""
        return self.join(F.scaled_dot_product_attention(*self.queries_keys_values(x, num_queries)))

    def queries_keys_values(self, x: Tensor, num_queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> three of (B, h, N, D/h), queries of the first `num_queries` tokens only."""
        if num_queries is None:
            q, k, v = self._heads(self.qkv(x), 3)
            return q, k, v
        D = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        (q,) = self._heads(F.linear(x[:, :num_queries], weight[:D], bias[:D]), 1)
        k, v = self._heads(F.linear(x, weight[D:], bias[D:]), 2)
        return q, k, v

    def probabilities(self, x: Tensor) -> Tensor:
        """What each token (row) takes from each token: (B, N, D) -> (B, h, N, N), rows sum to 1.

        For analyses: `forward` computes the same inside a fused kernel that never forms it.
        """
        q, k, _ = self.queries_keys_values(x)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)

    def join(self, heads: Tensor) -> Tensor:
        """(B, h, N, D/h) -> (B, N, D), projected."""
        B, h, N, d = heads.shape
        return self.proj(heads.transpose(1, 2).reshape(B, N, h * d))

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, N, parts D) -> (parts, B, h, N, D/h)."""
        B, N, width = x.shape
        return x.reshape(B, N, parts, self.num_heads, width // parts // self.num_heads).permute(2, 0, 3, 1, 4)


class MLP(nn.Module):
    """Two linear layers around a GELU: (B, N, D) -> (B, N, D)."""

    def __init__(self, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block with stochastic depth (Huang et al., arXiv 1603.09382).

    `layer_scale`: what the gains per channel of both branches start at (LayerScale, Touvron et al.,
    arXiv 2103.17239), under the published keys `gamma_1` and `gamma_2`; None: no such gains.
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

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """(B, N, D) -> the same, or (B, num_queries, D): only the first tokens, which still see all."""

        def attention(x: Tensor) -> Tensor:
            return scaled(self.attn(self.norm1(x), num_queries), self.gamma_1)

        return self.add_branch(self.add_branch(x, attention, num_queries), self.mlp_branch)

    def mlp_branch(self, x: Tensor) -> Tensor:
        """What the MLP adds to (B, N, D)."""
        return scaled(self.mlp(self.norm2(x)), self.gamma_2)

    def add_branch(
        self, x: Tensor, branch: Callable[[Tensor], Tensor], num_tokens: int | None = None
    ) -> Tensor:
        """(B, N, D) plus `branch` of it, on the first `num_tokens`; in training with stochastic depth.

        A random part of the samples goes without the branch, which is not computed for them (DINOv2,
        arXiv 2304.07193, section 5); the others' is scaled to keep the mean. Every sample is dropped with
        probability `drop_path_rate`, and how many are differs from the mean by less than one.
        """
        first = x[:, :num_tokens]
        if not self.training or self.drop_path_rate == 0.0:
            return first + branch(x)
        keep, size = 1.0 - self.drop_path_rate, len(x)
        count = int(size * keep + torch.rand(()).item())  # drawn on the CPU: a GPU need not be waited for
        if count == size:
            return first + branch(x) / keep
        kept = torch.randperm(size, device=x.device)[:count]
        return first.index_add(0, kept, branch(x[kept]).to(x.dtype), alpha=1.0 / keep)

    @torch.no_grad()
    def fold_layer_scale(self) -> None:
        """Multiplies the gains into the projections before them: gamma (W x + b) = (gamma W) x + gamma b."""
        for gamma, projection in ((self.gamma_1, self.attn.proj), (self.gamma_2, self.mlp.fc2)):
            if gamma is not None:
                projection.weight.mul_(gamma[:, None])
                projection.bias.mul_(gamma)
        self.gamma_1 = self.gamma_2 = None


def scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """A branch (B, N, D) times LayerScale's gains (D,); the branch itself without them."""
    return branch if gamma is None else branch * gamma
