"""The linear probe: one regression over all classes, or one for each label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deitkit.teachers import probe
from deitkit.teachers.probe import fit_probe


def newton(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Logistic regression of one label by Newton's method: mean log loss + penalty |w|^2, bias free."""
    n, width = x.shape
    design, theta = np.hstack([x, np.ones((n, 1))]), np.zeros(width + 1)
    ridge = 2 * penalty * np.diag([1.0] * width + [0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        gradient = design.T @ (p - y) / n + ridge @ theta
        hessian = (design * (p * (1 - p))[:, None]).T @ design / n + ridge
        theta -= np.linalg.solve(hessian, gradient)
    return theta[:-1], theta[-1]


@pytest.fixture
def noisy() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (V=2, N=120, F=6) and labels (N, K=3) that depend on them, with noise."""
    g = torch.Generator().manual_seed(0)
    features = 3 + 2 * torch.randn(2, 120, 6, generator=g)
    score = features[0] @ torch.randn(6, 3, generator=g) + 2 * torch.randn(120, 3, generator=g)
    return features, score > score.median(0).values + 1


def test_several_labels_are_one_regression_each(noisy, monkeypatch):
    monkeypatch.setattr(probe, "PENALTIES", (0.01,))
    features, labels = noisy
    fitted = fit_probe(features, labels, 3, seed=0)
    x = features.double().numpy()
    mean, std = x.mean((0, 1)), x.std((0, 1), ddof=1) + 1e-6
    flat = ((x - mean) / std).reshape(-1, 6)
    for k in range(3):
        weight, bias = newton(flat, np.tile(labels[:, k].numpy(), 2), 0.01)
        expected = ((x - mean) / std) @ weight + bias
        found = fitted.head(features)[..., k].detach().numpy()
        difference = np.abs(found - expected).max()
        print(f"largest difference of logits: {difference:.1e}")
        assert difference < 2e-3


def test_a_label_is_not_moved_by_the_others(noisy, monkeypatch):
    monkeypatch.setattr(probe, "PENALTIES", (0.01,))
    features, labels = noisy
    alone = fit_probe(features, labels[:, :1], 1, seed=0).head
    together = fit_probe(features, labels, 3, seed=0).head
    torch.testing.assert_close(alone.weight[0], together.weight[0], rtol=0, atol=2e-3)


def test_the_penalty_is_chosen_where_the_held_out_loss_is_least(noisy):
    features, labels = noisy
    noise = torch.randn(2, 120, 200, generator=torch.Generator().manual_seed(1))
    fitted = fit_probe(torch.cat([features, noise], -1), labels, 3, seed=0)
    assert fitted.penalty > min(probe.PENALTIES)  # so many useless features need a brake
    assert fitted.holdout.startswith("a loss of 0.") and fitted.holdout.endswith("on a held-out fifth")


def test_one_class_an_image_is_scored_by_top1():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = 0.1 * torch.randn(1, 60, 3, generator=g) + torch.eye(3)[labels]
    fitted = fit_probe(features, labels, 3, seed=0)
    assert (fitted.head(features[0]).argmax(1) == labels).all()
    assert fitted.holdout == "100.0 % on a held-out fifth"
