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

_RESAMPLES = 500
_BLOCK = 50  # resamples that are counted at once


def metric_of(labels: Tensor, num_classes: int) -> Metric:
    """What to compare by on labels (n,) or (n, K): balanced accuracy if the classes are uneven."""
    if labels.ndim == 2:
        return "map"
    counts = torch.bincount(labels.long(), minlength=num_classes).tolist()
    return "balanced_accuracy" if uneven(counts) else "top1"


def scored(model: ModelResult, metric: Metric) -> tuple[float, Interval] | None:
    """A model's score by `metric` and its interval; None if its results lack them, as in version 0.1."""
    score = model.scores.get(metric)
    of_metric = {"balanced_accuracy": model.balanced_interval, "macro_f1": model.macro_f1_interval}
    interval = of_metric.get(metric, model.interval)
    return None if score is None or interval is None else (score, interval)


def compare(a: Tensor, b: Tensor, labels: Tensor, metric: Metric) -> Difference:
    """The difference of two classifiers' probabilities (n, K) on images with labels (n,) or (n, K)."""
    n = len(labels)
    if metric == "map":
        value, (low, high) = map_difference(a, b, labels)
        return Difference(value=value, low=low, high=high, images=n)
    if metric == "macro_f1":
        value, (low, high) = macro_f1_difference(a.argmax(1), b.argmax(1), labels)
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


def macro_f1_difference(a: Tensor, b: Tensor, labels: Tensor) -> tuple[float, Interval]:
    """Macro-F1 of predictions `a` (n,) minus that of `b`, in points, and its interval.

    The percentile bootstrap over images (Efron, Annals of Statistics 1979), each drawn for both and as many
    of each class as there are; always from the same seed.
    """
    labels, a, b = labels.long().cpu(), a.cpu(), b.cpu()
    generator = torch.Generator().manual_seed(0)
    members = [torch.nonzero(labels == k)[:, 0] for k in labels.unique()]

    def drawn(times: int) -> Tensor:
        """(times, n) images."""
        of = [m[torch.randint(len(m), (times, len(m)), generator=generator)] for m in members]
        return torch.cat(of, 1)

    everyone = torch.arange(len(labels))[None]
    images = [everyone, *(drawn(_BLOCK) for _ in range(_RESAMPLES // _BLOCK))]
    found = torch.cat([_macro_f1(a[i], labels[i]) - _macro_f1(b[i], labels[i]) for i in images])
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(found[0]), (low, high)


def _macro_f1(predictions: Tensor, labels: Tensor) -> Tensor:
    """Of each row of (R, n) predictions and labels, (R,), in percent: as `metrics.macro_f1`."""
    K = int(max(predictions.max(), labels.max())) + 1

    def counts(of: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(len(of), K, dtype=torch.float64).scatter_add_(1, of, weights.double())

    ones = torch.ones_like(labels)
    images, right = counts(labels, ones), counts(labels, predictions == labels)
    f1 = 2 * right / (images + counts(predictions, ones)).clamp(min=1)
    return 100 * f1.sum(1) / (images > 0).sum(1)


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


def chance(labels: Tensor, metric: Metric = "balanced_accuracy") -> float:
    """What a model scores that knows nothing of the images, in percent.

    labels: (n,), and the score, top1 or another one, is that of always naming the largest class: a balanced
    accuracy of 1 / K over the classes with an image; or (n, K), and it is the mean share of images that show
    a label, the average precision of a random order.
    """
    if labels.ndim == 1:
        K = len(labels.unique())
        largest = float(torch.bincount(labels.long()).max()) / len(labels)
        by_metric = {"top1": largest, "macro_f1": 2 * largest / (1 + largest) / K}
        return 100 * by_metric.get(metric, 1 / K)
    shares = labels.double().mean(0)
    return 100 * float(shares[shares > 0].mean()) if bool((shares > 0).any()) else 0.0


def learned(interval: Interval | None, labels: Tensor) -> bool:
    """Whether a balanced accuracy, or mAP, with this interval beats chance; True if it is not known."""
    return interval is None or interval[0] > chance(labels)
