"""Mixup and CutMix between neighbours of a batch, reproducible from the views' keys.

Views 2k and 2k + 1 of a batch are mixed with each other, with the same weight; the key of the first one
decides how. In a batch of odd size the last view is not mixed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import AugmentConfig


def mix_pairs(
    views: Tensor, targets: Tensor, keys: NDArray[np.uint64], augment: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Mixes each pair of (B, 3, H, W) views and (B, K) targets by mixup or CutMix, or not at all.

    Mixup: Zhang et al., arXiv 1710.09412. CutMix: Yun et al., arXiv 1905.04899; the weight is corrected for
    boxes that are clipped at the border.
    """
    if augment.mixup <= 0 and augment.cutmix <= 0:
        return views, targets
    mixed, mixed_targets = views.clone(), targets.clone()
    H, W = views.shape[-2:]
    for a in range(0, len(keys) - 1, 2):
        b = a + 1
        # NumPy never changes the stream of a RandomState; that of a Generator may change.
        rng = np.random.RandomState(int((keys[a] ^ (keys[a] >> np.uint64(32))) & np.uint64(0xFFFFFFFF)))
        if rng.rand() >= augment.mix_probability:
            continue
        use_cutmix = augment.cutmix > 0 and (augment.mixup <= 0 or rng.rand() < augment.cutmix_share)
        if use_cutmix:
            top, bottom, left, right = _cut_box(rng, rng.beta(augment.cutmix, augment.cutmix), H, W)
            mixed[a, :, top:bottom, left:right] = views[b, :, top:bottom, left:right]
            mixed[b, :, top:bottom, left:right] = views[a, :, top:bottom, left:right]
            weight = 1 - (bottom - top) * (right - left) / (H * W)
        else:
            weight = rng.beta(augment.mixup, augment.mixup)
            torch.lerp(views[b], views[a], weight, out=mixed[a])
            torch.lerp(views[a], views[b], weight, out=mixed[b])
        mixed_targets[a] = weight * targets[a] + (1 - weight) * targets[b]
        mixed_targets[b] = weight * targets[b] + (1 - weight) * targets[a]
    return mixed, mixed_targets


def _cut_box(rng: np.random.RandomState, weight: float, H: int, W: int) -> tuple[int, int, int, int]:
    """A box of area 1 - weight around a uniform center, clipped to the image: top, bottom, left, right."""
    h, w = int(H * np.sqrt(1 - weight)), int(W * np.sqrt(1 - weight))
    y, x = rng.randint(H), rng.randint(W)
    return max(y - h // 2, 0), min(y + (h + 1) // 2, H), max(x - w // 2, 0), min(x + (w + 1) // 2, W)
