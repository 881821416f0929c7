"""Average precision and F1 against loops over images and thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deitkit.evaluation import metrics
from deitkit.evaluation.multilabel import (
    MultilabelMetrics,
    average_precision,
    map_interval,
    per_label,
    score_labels,
)
from deitkit.models.deit import DeiTOutput, joint_probabilities


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def naive_ap(scores, true):
    """Every distinct score as a threshold, from the highest down: sum of precision times recall gained."""
    area = recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [t for s, t in zip(scores, true, strict=True) if s >= threshold]
        precision, reached = sum(chosen) / len(chosen), sum(chosen) / sum(true)
        area += precision * (reached - recall)
        recall = reached
    return area


def naive_f1(said, true):
    tp = sum(s and t for s, t in zip(said, true, strict=True))
    return 2 * tp / max(1, sum(said) + sum(true))


def draw(n=83, classes=6, seed=0):
    """Logits of two heads, coarse so that many tie, and labels; the last class is shown by no image."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, classes, generator=g) < torch.linspace(0.5, 0.05, classes)
    labels[:, -1] = False
    heads = [(2 * torch.randn(n, classes, generator=g) + 2 * labels - 1).round() / 2 for _ in range(2)]
    return *heads, labels


def test_average_precision_agrees_with_a_loop_over_thresholds():
    scores, _, labels = draw()
    found = average_precision(scores, labels)
    expected = [naive_ap(scores[:, k].tolist(), labels[:, k].tolist()) for k in range(5)]
    np.testing.assert_allclose(found[:5].numpy(), expected, rtol=1e-12)
    assert found[5].isnan()


def test_average_precision_by_hand():
    """Right, wrong, right: precision 1 at recall 1/2, 2/3 at recall 1. All tied: the share of labels."""
    labels = torch.tensor([[1, 1], [0, 0], [1, 1]])
    scores = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert average_precision(scores, labels).tolist() == pytest.approx([(1 + 2 / 3) / 2, 2 / 3])


def test_measure_agrees_with_loops():
    c, d, labels = draw()
    found = metrics.measure(c, d, labels)
    assert isinstance(found, MultilabelMetrics)
    y = labels.numpy()
    joint = (sigmoid(c) + sigmoid(d)) / 2
    for end, p in (("", joint), ("_class", sigmoid(c)), ("_distill", sigmoid(d))):
        said = p > 0.5
        values = found.to_dict()
        aps = [naive_ap(p[:, k].tolist(), y[:, k].tolist()) for k in range(5)]
        assert values[f"map{end}"] == pytest.approx(100 * np.mean(aps), rel=1e-6)
        assert values[f"f1_micro{end}"] == pytest.approx(100 * naive_f1(said.ravel(), y.ravel()))
        f1s = [naive_f1(said[:, k], y[:, k]) for k in range(5)]
        assert values[f"f1_macro{end}"] == pytest.approx(100 * np.mean(f1s))
    loss = -np.mean(np.where(y, np.log(joint), np.log(1 - joint)))
    assert found.loss == pytest.approx(loss, rel=1e-9) and found.score == found.map and found.images == 83


def test_a_single_head_has_no_distillation_metrics():
    c, _, labels = draw()
    found = metrics.measure(c, None, labels)
    assert found.map_distill is found.f1_micro_distill is found.f1_macro_distill is None
    assert (found.map, found.f1_micro) == (found.map_class, found.f1_micro_class)


def test_a_confident_miss_costs_a_finite_and_true_loss():
    c = torch.tensor([[1000.0], [0.0]])
    assert metrics.measure(c, c, torch.tensor([[0], [1]])).loss == pytest.approx(500 + math.log(2) / 2)


def test_the_joint_classifier_averages_sigmoids():
    output = DeiTOutput(torch.tensor([[2.0, -1.0]]), torch.tensor([[-9.0, 0.5]]))
    expected = (sigmoid([[2.0, -1.0]]) + sigmoid([[-9.0, 0.5]])) / 2
    np.testing.assert_allclose(joint_probabilities(output, "multilabel").numpy(), expected, rtol=1e-6)


def test_rows_of_labels_agree_with_the_means():
    c, d, labels = draw()
    rows, found = per_label(DeiTOutput(c, d), labels), metrics.measure(c, d, labels)
    assert [row.images for row in rows] == labels.sum(0).tolist()
    assert rows[5].ap is None and rows[5].recall is None and rows[5].images == 0
    for name in ("ap", "ap_class", "ap_distill"):
        mean = np.mean([getattr(row, name) for row in rows[:5]])
        assert mean == pytest.approx(getattr(found, name.replace("ap", "map")), rel=1e-6)
    assert np.mean([row.f1 for row in rows[:5]]) == pytest.approx(found.f1_macro)


def test_the_interval_is_that_of_resampled_images():
    """The same resamples, each measured by itself as a set of its own."""
    c, _, labels = draw(n=40)
    low, high = map_interval(c, labels)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        rows = torch.randint(40, (40,), generator=generator)
        found.append(100 * average_precision(c[rows], labels[rows]).nanmean().item())
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])), rel=1e-9)
    assert low < score_labels(c.sigmoid(), labels)["map"] < high
