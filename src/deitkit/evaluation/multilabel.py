"""How good a classifier of several labels an image is: average precision and F1.

Shapes in comments: n images, K classes. Every metric is in percent.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.deit import DeiTOutput, joint_probabilities
from ..tasks import THRESHOLD

_RESAMPLES = 200


@dataclass(frozen=True)
class MultilabelMetrics:
    """The heads of one model over one set of images with several labels each; in percent.

    map: mean average precision. f1_micro, f1_macro: at a probability of 0.5. Each of both heads joined
    (the mean of their sigmoids), and `_class` and `_distill` of one head alone, None where there is none.
    Means over classes leave out those that no image shows. loss is the joint classifier's mean binary
    cross-entropy over images and classes, in nats.
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
    """The metrics of logits (n, K) against labels (n, K), at least one of them on some image."""
    # In double precision: a confident miss must cost its real loss, not infinity or a clamp.
    log_yes, log_no = (F.logsigmoid(s * class_logits.double()) for s in (1, -1))
    if distill_logits is not None:
        other_yes, other_no = (F.logsigmoid(s * distill_logits.double()) for s in (1, -1))
        log_yes = torch.logaddexp(log_yes, other_yes) - math.log(2)
        log_no = torch.logaddexp(log_no, other_no) - math.log(2)
    joint = joint_probabilities(DeiTOutput(class_logits, distill_logits), "multilabel")
    heads = {"": joint, "_class": class_logits.sigmoid()}
    heads |= {"_distill": distill_logits.sigmoid()} if distill_logits is not None else {}
    values: dict[str, Any] = {f"{name}_distill": None for name in ("map", "f1_micro", "f1_macro")}
    for head, probabilities in heads.items():
        values |= {f"{name}{head}": v for name, v in score_labels(probabilities, labels).items()}
    loss = -torch.where(labels.bool(), log_yes, log_no).mean().item()
    return MultilabelMetrics(images=len(labels), loss=loss, **values)


def score_labels(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """map, f1_micro and f1_macro of one classifier's probabilities (n, K) against labels (n, K)."""
    tp, fp, fn = _counts(probabilities, labels)
    shown = labels.bool().any(0)
    return {
        "map": 100 * average_precision(probabilities, labels).nanmean().item(),
        "f1_micro": 100 * _f1(tp.sum(), fp.sum(), fn.sum()).item(),
        "f1_macro": 100 * _f1(tp, fp, fn)[shown].mean().item(),
    }


def per_class(output: DeiTOutput, labels: Tensor) -> list[dict[str, Any]]:
    """For each class: images that show it, average precision of both heads and of each, and F1.

    Average precision is None for a class that no image shows, and for a head that is not there.
    """
    joint = joint_probabilities(output, "multilabel")
    scores = {"ap": joint, "ap_class": output.class_logits, "ap_distill": output.distill_logits}
    found = {k: average_precision(s, labels).tolist() if s is not None else None for k, s in scores.items()}
    f1 = _f1(*_counts(joint, labels)).tolist()
    return [
        {"images": int(images)}
        | {k: None if ap is None or math.isnan(ap[i]) else 100 * ap[i] for k, ap in found.items()}
        | {"f1": 100 * f1[i]}
        for i, images in enumerate(labels.bool().sum(0).tolist())
    ]


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class, in [0, 1]: scores (n, K), labels (n, K) -> (K,).

    sum_i (R_i - R_(i-1)) P_i over the distinct scores, from the highest down, with recall R and
    precision P of the images that score no less: the area under the stepped precision-recall curve,
    without interpolation. NaN for a class that no image shows. Any score that grows with the
    probability serves.
    """
    return _weighted(_Ranking.of(scores, labels), torch.ones(len(scores), dtype=torch.float64))


def map_interval(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """A 95 % interval of the mean average precision, in percent: the percentile bootstrap over images.

    Efron, Annals of Statistics 1979; 200 resamples of the images from a seed of their own. It widens to
    0 and 100 where no resample has a label.
    """
    ranking, n = _Ranking.of(scores, labels), len(scores)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(_RESAMPLES):
        drawn = torch.randint(n, (n,), generator=generator)
        weights = torch.bincount(drawn, minlength=n).double()
        found.append(_weighted(ranking, weights).nanmean())
    values = torch.stack(found)
    values = values[~values.isnan()]
    if len(values) == 0:
        return 0.0, 100.0
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return 100 * low, 100 * high


@dataclass(frozen=True)
class _Ranking:
    """Each class's images from the highest score down, all (n, K).

    hits: whether the image shows the class; last: the place of the last image with the same score.
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
    said, true = probabilities.cpu() > THRESHOLD, labels.cpu().bool()
    return tuple(mask.double().sum(0) for mask in (said & true, said & ~true, ~said & true))  # type: ignore[return-value]


def _f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """2 TP / (2 TP + FP + FN), 0 where there is nothing at all."""
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)
