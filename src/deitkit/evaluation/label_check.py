"""Which labels are likely wrong, and which images look like nothing else, by a teacher's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DependencyError
from ..teachers.probe import out_of_fold

_NEIGHBOURS = 10
_FENCE = 1.5  # interquartile ranges above the upper quartile, as in Tukey's box plots
_BLOCK = 1024  # images that are compared with all at once


@dataclass(frozen=True)
class WrongLabel:
    """Image `index` looks like the class `suggested`, with `probability`, more than like its own."""

    index: int
    suggested: int
    probability: float
    probability_of_label: float


@dataclass(frozen=True)
class Outlier:
    """distance: mean cosine distance to the ten most similar images; typical: its median over all images."""

    index: int
    distance: float
    typical: float


def require_cleanlab() -> None:
    """Raises DependencyError if it is not installed."""
    try:
        import cleanlab.filter  # noqa: F401
    except ImportError:
        raise DependencyError(
            'wrong labels are found with cleanlab, which is not installed; pip install "deitkit[check]"'
        ) from None


def find_wrong_labels(
    features: Tensor, labels: Tensor, num_classes: int, groups: NDArray[np.int64], seed: int = 0
) -> list[WrongLabel]:
    """Likely wrong labels among N images, most likely first, by confident learning.

    Northcutt et al., "Confident learning: estimating uncertainty in dataset labels", JAIR 2021, as
    implemented by cleanlab, on out-of-fold probabilities of a linear probe. features (N, F), labels (N,).
    groups (N,): images with the same number are left out together, since copies would vouch for each other.
    Raises DependencyError without cleanlab.
    """
    require_cleanlab()
    from cleanlab.filter import find_label_issues

    probabilities = out_of_fold(features, labels, num_classes, torch.from_numpy(groups), seed).numpy()
    given = labels.numpy()
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    best = probabilities.argmax(1)
    return [
        WrongLabel(int(i), int(best[i]), float(probabilities[i].max()), float(probabilities[i, given[i]]))
        for i in ranked
        if best[i] != given[i]
    ]


def find_outliers(features: Tensor, groups: NDArray[np.int64]) -> list[Outlier]:
    """Images that look like no others, farthest first: features (N, F).

    groups (N,): an image's copies do not count as others.
    """
    x = torch.nn.functional.normalize(features, dim=1)
    count = min(_NEIGHBOURS, len(x) - 1)
    number = torch.from_numpy(groups)
    distances = []
    for first in range(0, len(x), _BLOCK):
        block = 1 - x[first : first + _BLOCK] @ x.T
        block[number[first : first + _BLOCK, None] == number] = 2.0  # the largest distance there is
        distances.append(block.topk(count, largest=False).values.mean(1))
    found = torch.cat(distances).numpy()
    lower, typical, upper = np.quantile(found, (0.25, 0.5, 0.75))
    far = np.flatnonzero(found > upper + _FENCE * (upper - lower))
    return [Outlier(int(i), float(found[i]), float(typical)) for i in far[np.argsort(-found[far])]]
