"""Fits a linear probe: a logistic regression on a frozen backbone's pooled features.

One regression over all classes, or where an image may have several labels one for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Strengths of the squared-norm penalty that are tried, on standardised features.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Probe:
    """A fitted head on raw features, and how it was chosen."""

    head: nn.Linear
    penalty: float
    score: float  # top-1 in percent, or minus the loss of several labels, on a held-out fifth
    holdout: str  # a phrase: how it did on a fifth of the training images, with that penalty


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> Probe:
    """features (V, N, F) of V views of N images -> a linear head on raw features.

    labels: (N,) classes, or (N, K) labels, of which an image may have several. The penalty is chosen on a
    held-out fifth of the training images (all views of an image on one side), by top-1, or for several
    labels by the loss; the head is then fitted on all of them.
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
    what = f"{scores[best]:.1f} %" if labels.ndim == 1 else f"a loss of {-scores[best]:.3f} a label"
    return Probe(head.requires_grad_(False), PENALTIES[best], scores[best], f"{what} on a held-out fifth")


def _score(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in percent, or minus the mean loss of several labels; the more the better."""
    if labels.ndim == 2:
        return -F.binary_cross_entropy_with_logits(logits, labels.float()).item()
    return 100 * (logits.argmax(1) == labels).float().mean().item()


def _logistic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of classes (n,), or the sum over (n, K) labels of theirs; mean over images."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1).mean()


def held_out_fifth(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images that a choice is measured on, and of the others."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    count = max(1, images // 5)
    return order[:count], order[count:]


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
