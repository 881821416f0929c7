"""Two classifiers on the same images: which is more accurate, and whether the images suffice to tell.

The classifiers are compared image by image, because their accuracies on the same images vary together. Shapes
in comments: n images, K classes. Differences are in points (percent).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..run_schema import Difference, Metric, ModelResult
from .metrics import Interval, combine_intervals, uneven, wilson_interval
from .multilabel import map_difference


def metric_of(labels: Tensor, num_classes: int) -> Metric:
    """What to compare by on labels (n,) or (n, K): balanced accuracy if the classes are uneven."""
    if labels.ndim == 2:
        return "map"
    counts = torch.bincount(labels.long(), minlength=num_classes).tolist()
    return "balanced_accuracy" if uneven(counts) else "top1"


def scored(model: ModelResult, metric: Metric) -> tuple[float, Interval] | None:
    """A model's score by `metric` and its interval; None if its results lack them, as in version 0.1."""
    score = model.scores.get(metric)
    interval = model.balanced_interval if metric == "balanced_accuracy" else model.interval
    return None if score is None or interval is None else (score, interval)


def compare(a: Tensor, b: Tensor, labels: Tensor, metric: Metric) -> Difference:
    """The difference of two classifiers' probabilities (n, K) on images with labels (n,) or (n, K)."""
    n = len(labels)
    if metric == "map":
        value, (low, high) = map_difference(a, b, labels)
        return Difference(value=value, low=low, high=high, images=n)
    a_right, b_right = (p.argmax(1) == labels for p in (a, b))
    return compare_right(a_right, b_right, labels, metric)


def compare_right(a_right: Tensor, b_right: Tensor, labels: Tensor, metric: Metric) -> Difference:
    """As `compare`, of two masks (n,) of right answers for labels (n,); not by mAP."""
    n = len(labels)
    if metric == "top1":
        value, (low, high) = paired_difference(a_right, b_right)
        return Difference(value=value, low=low, high=high, images=n)
    classes = [labels == k for k in labels.unique()]
    found = [paired_difference(a_right[of_class], b_right[of_class]) for of_class in classes]
    values, intervals = [value for value, _ in found], [interval for _, interval in found]
    low, high = combine_intervals(values, intervals)
    return Difference(value=sum(values) / len(values), low=low, high=high, images=n)


def paired_difference(a_right: Tensor, b_right: Tensor) -> tuple[float, Interval]:
    """The difference of two accuracies in points, from masks (n,) of right answers, and its interval.

    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 1998, method 10: Wilson intervals, combined by the correlation of the
    answers. Unlike a bootstrap it holds for few images.
    """
    n = len(a_right)
    both, only_a = int((a_right & b_right).sum()), int((a_right & ~b_right).sum())
    only_b = int((~a_right & b_right).sum())
    neither = n - both - only_a - only_b
    p, q = 100 * (both + only_a) / n, 100 * (both + only_b) / n
    (p_low, p_high), (q_low, q_high) = wilson_interval(p / 100, n), wilson_interval(q / 100, n)
    phi = _correlation(both, only_a, only_b, neither)

    def combined(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return p - q, (p - q - combined(p - p_low, q_high - q), p - q + combined(p_high - p, q - q_low))


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    """The answers' phi coefficient, with Newcombe's continuity correction if it is positive."""
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(product - (both + only_a + only_b + neither) / 2, 0.0)
    return product / math.sqrt(margins)


def unpaired_difference(one: ModelResult, other: ModelResult, metric: Metric, n: int) -> Difference:
    """The difference of two scores of which only the intervals are known: wider than a paired one (MOVER)."""
    first, second = scored(one, metric), scored(other, metric)
    assert first is not None and second is not None
    (a, a_interval), (b, b_interval) = first, second
    low = a - b - math.hypot(a - a_interval[0], b_interval[1] - b)
    high = a - b + math.hypot(a_interval[1] - a, b - b_interval[0])
    return Difference(value=a - b, low=low, high=high, images=n)


def chance(labels: Tensor) -> float:
    """What a model scores that knows nothing of the images, in percent.

    labels: (n,), and the score is the balanced accuracy of always naming one class, 1 / K over the classes
    with an image; or (n, K), and it is the mean share of images that show a label, the average precision of a
    random order.
    """
    if labels.ndim == 1:
        return 100 / len(labels.unique())
    shares = labels.double().mean(0)
    return 100 * float(shares[shares > 0].mean()) if bool((shares > 0).any()) else 0.0


def learned(interval: Interval | None, labels: Tensor) -> bool:
    """Whether a balanced accuracy, or mAP, with this interval beats chance; True if it is not known."""
    return interval is None or interval[0] > chance(labels)
