"""How good a multilabel classifier is: average precision and F1.

Shapes in comments: n images, K classes. Every metric is in percent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.base import DeiTOutput, joint_probabilities
from ..tasks import THRESHOLD

_RESAMPLES = 200


@dataclass(frozen=True)
class MultilabelMetrics:
    """The heads of one model over one set of images; in percent.

    map: mean average precision. f1_micro, f1_macro: at a probability of 0.5. Without a suffix, of both heads
    joined (the mean of their sigmoids); `_class` and `_distill`, of one head, None without that head. Means
    over classes leave out classes that no image shows. loss: the joint classifier's mean binary cross-entropy
    over images and classes, in nats.
    """

    images: int
    map: float
    map_class: float
    map_distill: float | None
    f1_micro: float
    f1_micro_class: float
    f1_micro_distill: float | None
    f1_macro: float
    f1_macro_class: float
    f1_macro_distill: float | None
    loss: float

    @property
    def score(self) -> float:
        return self.map

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name, as written to `metrics.jsonl`."""
        return dataclasses.asdict(self)


def measure_labels(class_logits: Tensor, distill_logits: Tensor | None, labels: Tensor) -> MultilabelMetrics:
    """The metrics of logits (n, K) against labels (n, K)."""
    log_yes, log_no = label_log_probabilities(class_logits, distill_logits)
    joint = joint_probabilities(DeiTOutput(class_logits, distill_logits), "multilabel")
    heads = {"": joint, "_class": class_logits.sigmoid()}
    heads |= {"_distill": distill_logits.sigmoid()} if distill_logits is not None else {}
    values: dict[str, Any] = {f"{name}_distill": None for name in ("map", "f1_micro", "f1_macro")}
    for head, probabilities in heads.items():
        values |= {f"{name}{head}": v for name, v in score_labels(probabilities, labels).items()}
    loss = -torch.where(labels.bool(), log_yes, log_no).mean().item()
    return MultilabelMetrics(images=len(labels), loss=loss, **values)


def label_log_probabilities(class_logits: Tensor, distill_logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithms, (n, K) each, of the joint classifier's probability of each label, and of its absence.

    In double precision: a confident miss must cost its real loss, not infinity or a clamp.
    """
    log_yes, log_no = (F.logsigmoid(s * class_logits.double()) for s in (1, -1))
    if distill_logits is not None:
        other_yes, other_no = (F.logsigmoid(s * distill_logits.double()) for s in (1, -1))
        log_yes = torch.logaddexp(log_yes, other_yes) - math.log(2)
        log_no = torch.logaddexp(log_no, other_no) - math.log(2)
    return log_yes, log_no


def score_labels(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """map, f1_micro and f1_macro of one classifier's probabilities (n, K) against labels (n, K)."""
    tp, fp, fn = _counts(probabilities, labels)
    shown = labels.bool().any(0)
    return {
        "map": 100 * average_precision(probabilities, labels).nanmean().item(),
        "f1_micro": 100 * _f1(tp.sum(), fp.sum(), fn.sum()).item(),
        "f1_macro": 100 * _f1(tp, fp, fn)[shown].mean().item(),
    }


@dataclass(frozen=True)
class LabelMetrics:
    """One label; in percent.

    images: those that show it. ap, ap_class, ap_distill: average precision of both heads joined and of each,
    None if no image shows the label, or without that head. f1, precision, recall: at a probability of 0.5;
    precision is None if the label was never predicted, recall if no image shows it.
    """

    images: int
    ap: float | None
    ap_class: float | None
    ap_distill: float | None
    f1: float
    precision: float | None = None
    recall: float | None = None


def per_label(output: DeiTOutput, labels: Tensor) -> list[LabelMetrics]:
    """The metrics of each label, from both heads' logits (n, K) and labels (n, K)."""
    joint = joint_probabilities(output, "multilabel")
    scores = {"ap": joint, "ap_class": output.class_logits, "ap_distill": output.distill_logits}
    found = {k: average_precision(s, labels).tolist() if s is not None else None for k, s in scores.items()}
    tp, fp, fn = _counts(joint, labels)
    f1 = _f1(tp, fp, fn).tolist()
    return [
        LabelMetrics(
            images=int(images),
            **{k: None if ap is None or math.isnan(ap[i]) else 100 * ap[i] for k, ap in found.items()},
            f1=100 * f1[i],
            precision=100 * float(tp[i] / (tp[i] + fp[i])) if tp[i] + fp[i] > 0 else None,
            recall=100 * float(tp[i]) / images if images else None,
        )
        for i, images in enumerate(labels.bool().sum(0).tolist())
    ]


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class, in [0, 1]: scores (n, K), labels (n, K) -> (K,).

    sum_i (R_i - R_(i-1)) P_i over the distinct scores from the highest down, where R and P are recall and
    precision of the images that score no less: the area under the stepped precision-recall curve, without
    interpolation. NaN for a class that no image shows. Any score that grows with the probability serves.
    """
    return _weighted(_Ranking.of(scores, labels), torch.ones(len(scores), dtype=torch.float64))


def map_interval(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """A 95 % interval of the mean average precision, in percent: the percentile bootstrap over images.

    Efron, Annals of Statistics 1979; 200 resamples of the images, always from the same seed. It is 0 to 100
    if no resample has a label.
    """
    ranking = _Ranking.of(scores, labels)
    maps = [_weighted(ranking, weights).nanmean() for weights in _resampled(len(scores))]
    return _percentiles(torch.stack(maps)) or (0.0, 100.0)


def map_difference(a: Tensor, b: Tensor, labels: Tensor) -> tuple[float, tuple[float, float]]:
    """Mean average precision of scores `a` (n, K) minus that of `b`, in points, and its 95 % interval.

    The interval is the percentile bootstrap over images, each drawn for both. It is -100 to 100 if no
    resample has a label.
    """
    ours, theirs = _Ranking.of(a, labels), _Ranking.of(b, labels)
    drawn = [torch.ones(len(labels), dtype=torch.float64), *_resampled(len(labels))]
    found = [(_weighted(ours, w).nanmean() - _weighted(theirs, w).nanmean()) for w in drawn]
    return 100 * float(found[0].nan_to_num()), _percentiles(torch.stack(found[1:])) or (-100.0, 100.0)


def _resampled(n: int) -> Iterator[Tensor]:
    """How often each of n images is drawn, (n,), in each resample."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_RESAMPLES):
        yield torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double()


def _percentiles(values: Tensor) -> tuple[float, float] | None:
    """2.5th and 97.5th percentile of shares, in percent, without NaN; None if nothing else is there."""
    values = values[~values.isnan()]
    if len(values) == 0:
        return None
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return 100 * low, 100 * high


@dataclass(frozen=True)
class _Ranking:
    """Each class's images from the highest score down; tensors (n, K).

    hits: whether the image shows the class. last: the rank of the last image with the same score.
    """

    order: Tensor
    hits: Tensor
    last: Tensor

    @staticmethod
    def of(scores: Tensor, labels: Tensor) -> _Ranking:
        n, K = scores.shape
        ranked, order = scores.detach().cpu().double().sort(dim=0, descending=True)
        ends = torch.ones(n, K, dtype=torch.bool)
        ends[:-1] = ranked[1:] != ranked[:-1]
        places = torch.where(ends, torch.arange(n)[:, None], n)
        last = places.flip(0).cummin(0).values.flip(0)
        return _Ranking(order, labels.cpu().double().gather(0, order), last)


def _weighted(ranking: _Ranking, weights: Tensor) -> Tensor:
    """Average precision (K,) with each image counted `weights` (n,) times."""
    counted = weights[ranking.order]
    hits = ranking.hits * counted
    precision = hits.cumsum(0) / counted.cumsum(0).clamp(min=1e-12)
    return (hits * precision.gather(0, ranking.last)).sum(0) / hits.sum(0)


def _counts(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives of each class, (K,) each."""
    predicted, true = probabilities.cpu() > THRESHOLD, labels.cpu().bool()

    def count(mask: Tensor) -> Tensor:
        return mask.double().sum(0)

    return count(predicted & true), count(predicted & ~true), count(~predicted & true)


def _f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN), 0 if all are 0."""
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)
