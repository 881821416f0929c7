"""A linear probe: logistic regression on the pooled features of a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Candidates for the L2 penalty, for standardised features.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Probe:
    """A fitted head for raw features.

    score: on the held-out fifth, top-1 in percent, or for multi-label data the negated loss.
    holdout: the score as a phrase.
    """

    head: nn.Linear
    penalty: float
    score: float
    holdout: str


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Probe:
    """Fits a linear head to features (V, N, F) of V views of N images.

    labels: (N,) classes, or (N, K) yes/no rows, for which one regression per label is fitted. The penalty is
    the best on a held-out fifth of the images, by top-1 or by the loss; the head is then fitted on all of
    them. All views of an image are on the same side of the split.
    """
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-6
    x = (features - mean) / std
    held, kept = held_out_fifth(len(labels), seed)
    scores = []
    for penalty in PENALTIES:
        weight, bias = _fit(x[:, kept], labels[kept], num_classes, penalty)
        scores.append(_score(x[0, held] @ weight.T + bias, labels[held]))
    best = max(range(len(PENALTIES)), key=lambda i: (scores[i], PENALTIES[i]))
    weight, bias = _fit(x, labels, num_classes, PENALTIES[best])
    head = nn.Linear(x.shape[-1], num_classes)
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)
    score = f"{scores[best]:.1f} %" if labels.ndim == 1 else f"a loss of {-scores[best]:.3f} per label"
    return Probe(head.requires_grad_(False), PENALTIES[best], scores[best], f"{score} on a held-out fifth")


def out_of_fold(
    features: Tensor, labels: Tensor, num_classes: int, groups: Tensor, seed: int, folds: int = 5
) -> Tensor:
    """Probabilities (N, K) of each image by a probe that was fitted on the other folds.

    features (N, F), labels (N,), groups (N,): images with the same number are in the same fold. The classes
    are spread evenly over the folds.
    """
    penalty = fit_probe(features[None], labels, num_classes, seed).penalty
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    fold = _folds(labels, groups, seed, folds)
    found = torch.zeros(len(labels), num_classes)
    for k in fold.unique():
        held = fold == k
        weight, bias = _fit(x[None, ~held], labels[~held], num_classes, penalty)
        found[held] = (x[held] @ weight.T + bias).softmax(1)
    return found


def _folds(labels: Tensor, groups: Tensor, seed: int, folds: int) -> Tensor:
    """(N,) the fold of each image: groups are dealt in random order, class by class of their first image."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    order.sort(key=lambda i: int(labels[i]))
    fold_of: dict[int, int] = {}
    for i in order:
        fold_of.setdefault(int(groups[i]), len(fold_of) % folds)
    return torch.tensor([fold_of[int(group)] for group in groups])


def held_out_fifth(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the held-out images, and of the others."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    count = max(1, images // 5)
    return order[:count], order[count:]


def _score(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in percent, or the negated mean multi-label loss; higher is better."""
    if labels.ndim == 2:
        return -F.binary_cross_entropy_with_logits(logits, labels.float()).item()
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def _logistic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; for (N, K) labels the sum of K binary ones. The mean over images."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1).mean()


def _fit(x: Tensor, labels: Tensor, num_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS: x (V, N, F), labels (N,) or (N, K) -> weight (K, F), bias (K,)."""
    flat, y = x.flatten(0, 1), torch.cat([labels] * x.shape[0])
    weight = torch.zeros(num_classes, x.shape[-1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = _logistic_loss(flat @ weight.T + bias, y) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()
