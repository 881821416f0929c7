"""Token merging (ToMe): merges similar patch tokens in each block of a trained model, for faster evaluation.

Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461. Shapes in comments: B batch,
P prefix tokens, N patch tokens, r tokens merged per block, D width, h heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from .blocks import Attention, Block, scaled
from .deit import DeiT, DeiTOutput


class Matching(NamedTuple):
    """Which patch tokens to merge. Tokens 0, 2, 4, ... are set A, tokens 1, 3, 5, ... set B.

    kept: (B, |A| - r) tokens of A that are kept, in order. merged: (B, r) tokens of A that are merged.
    into: (B, r) the token of B that each of them is merged into.
    """

    kept: Tensor
    merged: Tensor
    into: Tensor


def match(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching: the r tokens of A that are most similar to their nearest token of B.

    metric: (B, N, C), compared by cosine similarity; r is at most N // 2. Appendix D of the paper, without
    the prefix tokens in either set.
    """
    metric = F.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)  # (B, |A|, |B|)
    best, nearest = similarity.max(-1)
    order = best.argsort(dim=-1, descending=True)  # (B, |A|)
    merged = order[:, :r]
    return Matching(order[:, r:].sort(-1).values, merged, nearest.gather(-1, merged))


def merge(x: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Averages merged tokens, weighted by size.

    x: (B, N, D). size: (B, N, 1), number of patches that each token represents. Returns both for the
    N - r remaining tokens: those kept of A, then B.
    """
    weighted = torch.cat([x * size, size], dim=-1)  # (B, N, D + 1)
    a, b = weighted[:, ::2], weighted[:, 1::2]
    # A matrix product: scatter-add is slower on CPUs and missing in some ONNX backends.
    places = torch.arange(b.shape[1], device=x.device)
    joins = (places[:, None] == matching.into[:, None, :]).to(x.dtype)  # (B, |B|, r)
    b = b + joins @ _rows(a, matching.merged)
    whole = torch.cat([_rows(a, matching.kept), b], dim=1)
    size = whole[..., -1:]
    return whole[..., :-1] / size, size


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """(B, N, D), (B, n) -> (B, n, D)."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def attend(attn: Attention, x: Tensor, size: Tensor | None, num_queries: int | None) -> tuple[Tensor, Tensor]:
    """Proportional attention (equation 1): keys are weighted by token size.

    x: (B, T, D). size: (B, T, 1); None if no tokens were merged yet. Returns the attention output and
    the mean of the keys over heads, (B, T, D/h), which is the similarity metric.
    """
    q, k, v = attn.queries_keys_values(x, num_queries)
    bias = None if size is None else size.log().transpose(1, 2)[:, None]  # (B, 1, 1, T)
    return attn.join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)), k.mean(1)


class TokenMerging(nn.Module):
    """A trained DeiT that merges `r` patch tokens in each block; for evaluation only.

    Prefix tokens are never merged. A block merges at most half of its patch tokens, so any r works; the
    last block merges none, since its patch tokens are not used. Raises SettingError for a negative r.
    """

    def __init__(self, model: DeiT, r: int):
        super().__init__()
        if r < 0:
            raise SettingError(f"cannot merge {r} tokens per block; give 0 or more")
        self.model, self.r = model, r

    @property
    def distilled(self) -> bool:
        """Whether the model has a distillation token and its head."""
        return self.model.distilled

    def forward(self, images: Tensor) -> DeiTOutput:
        """(B, C, H, W), normalised -> DeiTOutput with the logits of both heads."""
        model, P = self.model, self.model.num_prefix_tokens
        x, size = model.embed(images), None
        last = model.depth - 1
        for i, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            queries = P if i == last else None
            attended, keys = attend(block.attn, block.norm1(x), size, queries)
            x = x[:, :queries] + scaled(attended, block.gamma_1)
            r = min(self.r, (x.shape[1] - P) // 2)
            if r > 0:
                x, size = self._merge(x, size, keys, r)
            x = x + block.mlp_branch(x)
        return model.classify(x)

    def _merge(self, x: Tensor, size: Tensor | None, keys: Tensor, r: int) -> tuple[Tensor, Tensor]:
        """Merges r patch tokens of x (B, P + N, D); the sizes of prefix tokens are 1."""
        P = self.model.num_prefix_tokens
        size = torch.ones_like(x[..., :1]) if size is None else size
        patches, sizes = merge(x[:, P:], size[:, P:], match(keys[:, P:], r))
        return torch.cat([x[:, :P], patches], dim=1), torch.cat([size[:, :P], sizes], dim=1)
