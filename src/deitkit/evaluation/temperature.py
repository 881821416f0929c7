"""One temperature per classifier, fitted on validation images after training (arXiv 1706.04599).

Probabilities become powers 1 / T, normalised, so that no prediction changes. T minimises the negative
log-likelihood with a weak prior around 1, which keeps a classifier that made no mistake on few images from
certainty. Shapes in comments: n images, K classes.

A student's two heads are calibrated as a whole: its joint classifier is the mean of two softmaxes, and a
temperature for each head would change which class is named. Each head has a temperature of its own besides,
for those who use its logits alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import DeiTOutput, joint_logits
from ..run_schema import CalibrationInfo
from .calibration import Calibration, calibration
from .metrics import joint_log_probabilities
from .multilabel import label_log_probabilities

FEWEST_IMAGES = 50  # with fewer, temperatures stay 1
_FOLDS = 5
_DIGITS = 6  # of the probabilities that are kept
_PRIOR = 0.5  # standard deviation of log T: a factor of 1.6


@dataclass(frozen=True)
class Reliability:
    """How far a classifier's probabilities can be believed, on some images.

    temperature: that of the run. cross_fitted: whether the run's temperature was fitted on some of these
    images, so that each is judged at a temperature that the others give. nll: in nats, per image, or per
    image and label. calibration: None if multilabel. before: at temperature 1.
    """

    temperature: float
    cross_fitted: bool
    nll: float
    nll_before: float
    calibration: Calibration | None
    calibration_before: Calibration | None


def reliability(
    output: DeiTOutput, labels: Tensor, temperature: float, *, fitted_on_these: bool
) -> Reliability:
    """Measures the probabilities of heads' logits (n, K) at the run's temperature, and at 1."""
    scores, labels = log_scores(output, labels.ndim == 2), labels.cpu()
    cross_fit = fitted_on_these and temperature != 1.0 and len(labels) >= FEWEST_IMAGES
    after = cross_fitted(scores, labels) if cross_fit else scores / temperature
    return Reliability(
        temperature=temperature,
        cross_fitted=cross_fit,
        nll=nll(after, labels),
        nll_before=nll(scores, labels),
        calibration=_binned(after, labels),
        calibration_before=_binned(scores, labels),
    )


def calibrate(output: DeiTOutput, labels: Tensor) -> CalibrationInfo:
    """What validation images tell about a classifier, from its heads' logits (n, K).

    labels: (n,), or (n, K) if multilabel. Temperatures are 1 with fewer than 50 images, and where those that
    are fitted on four fifths of the images do not lower the loss of the other fifth.
    """
    scores, labels = log_scores(output, labels.ndim == 2), labels.cpu()
    temperature, held_out = _that_helps(scores, labels)
    return CalibrationInfo(
        images=len(labels),
        temperature=temperature,
        head_temperatures={name: _that_helps(s, labels)[0] for name, s in _alone(output).items()},
        nll=nll(held_out, labels),
        nll_before=nll(scores, labels),
        ece=None if (found := _binned(held_out, labels)) is None else found.ece,
        ece_before=None if (found := _binned(scores, labels)) is None else found.ece,
        true_probabilities=_true_probabilities(held_out, labels) if labels.ndim == 1 else (),
    )


def _true_probabilities(scores: Tensor, labels: Tensor) -> tuple[float, ...]:
    """The probabilities of the true classes, ascending; rounded down, so that sets stay large enough."""
    found = scores.softmax(-1).gather(1, labels[:, None]).flatten().sort().values
    return tuple((found * 10**_DIGITS).floor().div(10**_DIGITS).tolist())


def _that_helps(scores: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """The temperature and the cross-fitted scores (n, K); 1 and the same scores if it does not help."""
    if len(labels) >= FEWEST_IMAGES:
        held_out = cross_fitted(scores, labels)
        if nll(held_out, labels) < nll(scores, labels):
            return fit_temperature(scores, labels), held_out
    return 1.0, scores


def log_scores(output: DeiTOutput, multilabel: bool) -> Tensor:
    """Scores (n, K) in double precision whose softmax, or sigmoid if multilabel, is `joint_probabilities`."""
    if not multilabel:
        return joint_log_probabilities(*output[:2]).cpu()
    log_yes, log_no = label_log_probabilities(*output[:2])
    return (log_yes - log_no).cpu()


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature of scores (n, K), never of a higher loss than 1."""
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=50, line_search_fn="strong_wolfe")
    strength = 0.5 / _PRIOR**2 / len(labels)

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = _loss(scores / log_t.exp(), labels) + strength * log_t.square()
        value.backward()
        return value

    optimizer.step(objective)
    temperature = math.exp(log_t.item())
    lower = math.isfinite(temperature) and nll(scores / temperature, labels) < nll(scores, labels)
    return temperature if lower else 1.0


def cross_fitted(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores (n, K), each image's divided by the temperature that other images give."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    found = scores.clone()
    for fold in range(_FOLDS):
        others = torch.cat([order[k::_FOLDS] for k in range(_FOLDS) if k != fold])
        found[order[fold::_FOLDS]] /= fit_temperature(scores[others], labels[others])
    return found


def nll(scores: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats of scores (n, K): per image, or per image and label."""
    return _loss(scores, labels).item()


def _binned(scores: Tensor, labels: Tensor) -> Calibration | None:
    """The calibration error of scores (n, K); None if multilabel."""
    return calibration(scores.softmax(-1), labels) if labels.ndim == 1 else None


def _alone(output: DeiTOutput) -> dict[str, Tensor]:
    """Logits of what may be used instead of the joint classifier of two heads, by name."""
    if output.distill_logits is None:
        return {}
    logits = {"class": output.class_logits, "distill": output.distill_logits, "mean": joint_logits(output)}
    return {name: each.double().cpu() for name, each in logits.items()}


def _loss(scores: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(scores, labels.double())
    return F.cross_entropy(scores, labels)
