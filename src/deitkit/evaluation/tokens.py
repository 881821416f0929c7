"""How far class and distillation token say the same (arXiv 2012.12877, section 4).

The paper: cosine 0.06 between the learnt embeddings, rising from layer to layer to 0.93 at the last.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_cosines(tokens: Tensor) -> Tensor:
    """Cosine of each image's class token and distillation token: (B, N, D) -> (B,)."""
    return F.cosine_similarity(tokens[:, 0].double(), tokens[:, 1].double(), dim=-1)
