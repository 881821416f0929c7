"""The class means that tell how familiar an image is, and the limit that rejects 5 % of images like them.

Both come from the validation images, which no weight was trained on and whose features are there anyway.
Shapes in comments: n images, F features, C classes with an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..decision import KEPT, conformal_rank
from ..inference.unfamiliarity import unit


@dataclass(frozen=True)
class Familiarity:
    """class_means: (C, F), rows of length 1. up_to: a score that 95 % of images like these do not exceed."""

    class_means: Tensor
    up_to: float


def fit_familiarity(embedding: Tensor, labels: Tensor) -> Familiarity | None:
    """From the features (n, F) of validation images and their classes (n,); None for fewer than 19 images."""
    rank = conformal_rank(len(labels), KEPT)
    if rank is None:
        return None
    features = unit(embedding.float().cpu())
    _, places = labels.cpu().unique(return_inverse=True)
    sums = torch.zeros(int(places.max()) + 1, features.shape[1]).index_add_(0, places, features)
    scores = leave_one_out(features, places, sums)
    return Familiarity(unit(sums), float(scores.sort().values[rank - 1]))


def leave_one_out(features: Tensor, places: Tensor, sums: Tensor) -> Tensor:
    """The unfamiliarity (n,) of each image, as if it were not among those that the class means come from.

    features: (n, F), of length 1. places: (n,), rows of `sums`, (C, F), which add the features of a class.
    """
    similar = features @ unit(sums).T
    own = (features * unit(sums[places] - features)).sum(-1)
    return 1 - similar.scatter(1, places[:, None], own[:, None]).amax(-1)
