"""Expected calibration error and the bins of a reliability diagram."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is in one interval; both means in percent, 0 without an image."""

    images: int
    confidence: float
    top1: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error, mean confidence and accuracy in percent, and the bins.

    A confidence above the accuracy means an overconfident classifier.
    """

    ece: float
    confidence: float
    top1: float
    bins: tuple[Bin, ...]


def calibration(probabilities: Tensor, labels: Tensor, num_bins: int = 15) -> Calibration:
    """Calibration of probabilities (n, K) against labels (n,), n at least 1.

    Guo et al., arXiv 1706.04599, equation 3: images are binned by the probability of the predicted class into
    `num_bins` intervals (low, high] of equal width. The error is the gap between a bin's mean confidence and
    its accuracy, averaged over images.
    """
    confidence, predicted = probabilities.double().max(-1)
    right = (predicted == labels).double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1]
    places = torch.bucketize(confidence, edges)  # left-open intervals: an edge belongs to the bin below
    bins, error = [], 0.0
    for place in range(num_bins):
        inside = places == place
        count = int(inside.sum())
        mean, share = (float(v[inside].mean()) if count else 0.0 for v in (confidence, right))
        bins.append(Bin(count, 100 * mean, 100 * share))
        error += count / len(labels) * abs(mean - share)
    return Calibration(100 * error, 100 * float(confidence.mean()), 100 * float(right.mean()), tuple(bins))
