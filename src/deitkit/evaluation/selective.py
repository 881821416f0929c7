"""A classifier that answers only when it is sure: which threshold gives a precision, and what that costs.

Shapes in comments: n images. Shares are in percent, probabilities and thresholds in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from .metrics import Interval, wilson_interval

_STEPS = 20  # points of a risk-coverage curve


@dataclass(frozen=True)
class Answered:
    """The images that a threshold answers. share: of all images. precision: None if none is answered."""

    images: int
    answered: int
    share: float | None
    precision: float | None
    interval: Interval | None

    @classmethod
    def of(cls, right: Tensor, answered: Tensor) -> Answered:
        """From masks (n,): whether each image would be right, and whether it is answered."""
        n, count = len(right), int(answered.sum())
        precision = float(right[answered].double().mean()) if count else None
        return cls(
            images=n,
            answered=count,
            share=100 * count / n if n else None,
            precision=None if precision is None else 100 * precision,
            interval=None if precision is None else wilson_interval(precision, count),
        )


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold that reaches a precision on some images; None if none does.

    target: the precision that was asked for. per_class: of the images that are taken for each class.
    """

    target: float
    threshold: float | None
    all: Answered
    per_class: tuple[Answered, ...]


@dataclass(frozen=True)
class CurvePoint:
    """A point of a risk-coverage curve: at `threshold`, so many images are answered, and so many right."""

    threshold: float
    share: float
    precision: float


def operating_point(probabilities: Tensor, labels: Tensor, precision: float) -> OperatingPoint:
    """The lowest threshold on the top probability of (n, K) whose answers reach `precision`, a share.

    labels: (n,). Raises SettingError for a precision that is not a share.
    """
    check_precision(precision)
    confidence, predicted = probabilities.max(-1)
    right = predicted == labels
    threshold = threshold_for(confidence, right, precision)
    answered = confidence >= (2.0 if threshold is None else threshold)
    per_class = [
        Answered.of(right[predicted == k], answered[predicted == k]) for k in range(probabilities.shape[1])
    ]
    return OperatingPoint(100 * precision, threshold, Answered.of(right, answered), tuple(per_class))


def check_precision(precision: float) -> None:
    """Raises SettingError for a precision that is not a share."""
    if not 0 < precision <= 1:
        raise SettingError(f"--precision is a share above 0 and up to 1, such as 0.99, not {precision:g}")


def threshold_for(confidence: Tensor, right: Tensor, precision: float) -> float | None:
    """The lowest of the confidences (n,) such that of the images from there up a share is right, or None.

    Images of one confidence are answered together.
    """
    ranked, order = confidence.sort(descending=True)
    share_right = right[order].double().cumsum(0) / torch.arange(1, len(ranked) + 1)
    ends = torch.ones(len(ranked), dtype=torch.bool)
    ends[:-1] = ranked[1:] != ranked[:-1]
    reached = torch.nonzero(ends & (share_right >= precision - 1e-12)).flatten()
    return float(ranked[reached[-1]]) if len(reached) else None


def risk_coverage(confidence: Tensor, right: Tensor) -> tuple[CurvePoint, ...]:
    """Precision of the most confident 5 %, 10 % ... 100 % of images (El-Yaniv and Wiener, JMLR 2010)."""
    ranked, order = confidence.sort(descending=True, stable=True)
    n, share_right = len(ranked), right[order].double().cumsum(0) / torch.arange(1, len(ranked) + 1)
    lasts: Sequence[int] = sorted({max(1, round(n * step / _STEPS)) for step in range(1, _STEPS + 1)})
    return tuple(
        CurvePoint(float(ranked[last - 1]), 100 * last / n, 100 * float(share_right[last - 1]))
        for last in lasts
    )
