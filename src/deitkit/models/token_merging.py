"""Token merging (ToMe): alike patch tokens become one, block by block, on a model as it is trained.

Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461. Shapes in comments: B batch,
P prefix tokens, N patch tokens, r tokens that are merged away in a block, D width, h heads.
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
    """Which patch tokens merge. Tokens 0, 2, 4... form set A, tokens 1, 3, 5... set B.

    kept: (B, |A| - r) members of A that stay, in order. merged: (B, r) members of A that merge, and
    into: (B, r) the member of B that each merges into.
    """

    kept: Tensor
    merged: Tensor
    into: Tensor


def match(metric: Tensor, r: int) -> Matching:
    """Bipartite soft matching: the r members of A most alike to their nearest member of B.

    metric: (B, N, C), compared by cosine. Appendix D of the paper, with the prefix tokens left out
    of both sets. r is at most N // 2.
    """
    metric = F.normalize(metric, dim=-1)
    similarity = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)  # (B, |A|, |B|)
    best, nearest = similarity.max(-1)
    order = best.argsort(dim=-1, descending=True)  # (B, |A|)
    merged = order[:, :r]
    return Matching(order[:, r:].sort(-1).values, merged, nearest.gather(-1, merged))


def merge(x: Tensor, size: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """The mean of merged tokens, weighted by how many patches each stands for.

    x: (B, N, D); size: (B, N, 1) patches a token stands for. Gives both with N - r tokens: what
    stays of A, then B.
    """
    weighted = torch.cat([x * size, size], dim=-1)  # (B, N, D + 1)
    a, b = weighted[:, ::2], weighted[:, 1::2]
    # As a matrix product: a scatter is slower on CPUs, and not every backend of ONNX adds in one.
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
    """Proportional attention (equation 1): a token counts as often as it stands for patches.

    x: (B, T, D); size: (B, T, 1), None where every token stands for one. Gives attention's output
    and the keys' mean over heads, (B, T, D/h), by which tokens are compared.
    """
    q, k, v = attn.queries_keys_values(x, num_queries)
    bias = None if size is None else size.log().transpose(1, 2)[:, None]  # (B, 1, 1, T)
    return attn.join(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)), k.mean(1)


class TokenMerging(nn.Module):
    """A trained DeiT that merges `r` patch tokens away in each block; for evaluation only.

    images: (B, C, H, W), normalised -> DeiTOutput, as the model itself. Class and distillation token
    never merge. Each block merges at most half of the patch tokens it has, so any r works; the last
    block merges none, for nobody reads its patches. Raises DeitkitError for a negative r.
    """

    def __init__(self, model: DeiT, r: int):
        super().__init__()
        if r < 0:
            raise SettingError(f"{r} tokens cannot be merged; give 0 or more tokens a block")
        self.model, self.r = model, r

    @property
    def distilled(self) -> bool:
        """Whether the model has a distillation token and its head."""
        return self.model.distilled

    def forward(self, images: Tensor) -> DeiTOutput:
        """(B, C, H, W) -> DeiTOutput with both heads' logits."""
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
        """Merges r of the patch tokens in (B, P + N, D); sizes come with the prefix tokens' ones."""
        P = self.model.num_prefix_tokens
        size = torch.ones_like(x[..., :1]) if size is None else size
        patches, sizes = merge(x[:, P:], size[:, P:], match(keys[:, P:], r))
        return torch.cat([x[:, :P], patches], dim=1), torch.cat([size[:, :P], sizes], dim=1)
