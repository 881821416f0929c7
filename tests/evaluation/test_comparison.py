"""Two classifiers on the same images, and what few or uneven images can tell."""

from __future__ import annotations

import math

import pytest
import torch

from deitkit.evaluation import metrics
from deitkit.evaluation.comparison import (
    chance,
    compare,
    learned,
    macro_f1_difference,
    metric_of,
    paired_difference,
    unpaired_difference,
)
from deitkit.evaluation.multilabel import average_precision, map_difference
from deitkit.run_schema import Difference, ModelResult


def difference(value, low, high, images):
    return Difference(value=value, low=low, high=high, images=images)


def answers(right, labels, num_classes=2):
    """Probabilities (n, K) that are right where the mask (n,) says so."""
    predicted = torch.where(torch.as_tensor(right), labels, (labels + 1) % num_classes)
    return torch.nn.functional.one_hot(predicted, num_classes).float()


def drawn(n, p_both, p_a, p_b, generator):
    """Masks of right answers: both, only the first, only the second, by the given chances."""
    u = torch.rand(n, generator=generator)
    both = u < p_both
    return both | (u < p_both + p_a), both | ((u >= p_both + p_a) & (u < p_both + p_a + p_b))


def test_a_paired_interval_covers_the_true_difference():
    g, hits, width = torch.Generator().manual_seed(0), 0, []
    for _ in range(1000):
        a, b = drawn(60, 0.75, 0.05, 0.12, g)
        value, (low, high) = paired_difference(a, b)
        assert low <= value <= high
        hits += low <= -7 <= high
        width.append(high - low)
    assert 940 <= hits <= 990
    a, b = torch.rand(60, generator=g) < 0.8, torch.rand(60, generator=g) < 0.87
    low, high = paired_difference(a, b)[1]
    assert high - low > sum(width) / len(width)  # answers that agree tell more


def test_answers_that_are_independent_combine_as_unpaired_ones():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    value, (low, high) = paired_difference(a, b)
    interval = metrics.wilson_interval(0.5, 4)
    result = ModelResult(name="", params=1, images_per_s=1.0, scores={"top1": 50.0}, interval=interval)
    found = unpaired_difference(result, result, "top1", 4)
    assert (value, low, high) == pytest.approx((found.value, found.low, found.high))


def test_two_that_are_always_right_are_not_known_to_be_equal():
    right = torch.ones(18, dtype=torch.bool)
    value, (low, high) = paired_difference(right, right)
    assert value == 0 and low < -10 and high > 10


def test_the_images_that_would_settle_it():
    found = difference(-10.0, -30.0, 10.0, 50)
    assert not found.decided and found.images_needed == 200  # twice the gap off zero, four times the images
    assert difference(0.0, -5.0, 5.0, 50).images_needed is None
    assert difference(3.0, 1.0, 5.0, 50).decided and difference(-3.0, -5.0, -1.0, 50).decided


def test_uneven_classes_are_compared_by_balanced_accuracy():
    labels = torch.tensor([0] * 3 + [1] * 75)
    assert metric_of(labels, 2) == "balanced_accuracy"
    assert metric_of(torch.tensor([0] * 10 + [1] * 14), 2) == "top1"
    assert metric_of(torch.zeros(4, 2), 2) == "map"
    always_largest, knows = answers(labels == 1, labels), answers(torch.ones(78, dtype=torch.bool), labels)
    found = compare(always_largest, knows, labels, "balanced_accuracy")
    assert found.value == -50 and found.decided
    assert compare(always_largest, knows, labels, "top1").value == pytest.approx(-100 * 3 / 78)


def test_a_difference_of_macro_f1_is_of_the_same_resampled_images():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=g)
    wrong = torch.rand(200, generator=g)
    better, worse = ((labels + (wrong < share).long()) % 3 for share in (0.1, 0.3))
    value, (low, high) = macro_f1_difference(better, worse, labels)
    tables = [metrics.confusion(of, labels, 3) for of in (better, worse)]
    expected = metrics.macro_f1(tables[0]) - metrics.macro_f1(tables[1])
    assert value == pytest.approx(expected) and 0 < low < value < high
    assert macro_f1_difference(better, better, labels) == (0.0, (0.0, 0.0))
    found = compare(*(torch.eye(3)[of] for of in (better, worse)), labels, "macro_f1")
    assert (found.value, found.low, found.high) == (value, low, high)


def test_chance_by_each_metric():
    labels = torch.tensor([0] * 3 + [1] * 9)
    always = metrics.confusion(torch.ones(12, dtype=torch.long), labels, 2)
    assert chance(labels, "top1") == 75 and chance(labels) == 50
    assert chance(labels, "macro_f1") == pytest.approx(metrics.macro_f1(always))


def test_a_difference_of_maps_is_of_the_same_resampled_images():
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(80, 3, generator=g) < 0.4).float()
    good = labels + torch.randn(80, 3, generator=g)
    value, (low, high) = map_difference(good, -good, labels)
    expected = average_precision(good, labels).mean() - average_precision(-good, labels).mean()
    assert value == pytest.approx(100 * expected.item()) and low < value < high and low > 0
    assert map_difference(good, good, labels) == (0.0, (0.0, 0.0))


def test_always_naming_the_largest_class_is_nothing_learnt():
    labels = torch.tensor([0] * 3 + [1] * 75)
    table = metrics.confusion(torch.ones(78, dtype=torch.long), labels, 2)
    assert metrics.balanced_accuracy(table) == 50 == chance(labels)
    assert not learned(metrics.balanced_accuracy_interval(table), labels)
    found_all = metrics.confusion(labels, labels, 2)
    assert learned(metrics.balanced_accuracy_interval(found_all), labels)


def test_chance_of_labels_is_their_share():
    labels = torch.tensor([[1, 0, 0], [1, 1, 0]])
    assert chance(labels) == pytest.approx(75) and chance(torch.zeros(2, 3)) == 0
    assert learned((80.0, 90.0), labels) and not learned((70.0, 90.0), labels) and learned(None, labels)


def test_the_interval_of_a_balanced_accuracy_covers_it():
    g, hits = torch.Generator().manual_seed(0), 0
    labels = torch.tensor([0] * 12 + [1] * 80)
    recall = torch.tensor([0.6, 0.9])
    for _ in range(500):
        right = torch.rand(92, generator=g) < recall[labels]
        table = metrics.confusion(torch.where(right, labels, 1 - labels), labels, 2)
        low, high = metrics.balanced_accuracy_interval(table)
        hits += low <= 75 <= high
    assert 465 <= hits <= 495


def test_scores_of_a_confusion_matrix_agree_with_their_definitions():
    table = torch.tensor([[8, 2, 0], [1, 3, 0], [0, 0, 0]])  # the third class has no image
    first, second, third = metrics.per_class(table)
    assert (first.recall, second.recall) == pytest.approx((80, 75))
    assert (first.precision, second.precision) == pytest.approx((100 * 8 / 9, 60))
    assert (third.images, third.recall, third.precision, third.f1) == (0, None, None, None)
    assert metrics.balanced_accuracy(table) == pytest.approx(77.5)
    f1 = [2 * p * r / (p + r) for p, r in ((8 / 9, 0.8), (0.6, 0.75))]
    assert metrics.macro_f1(table) == pytest.approx(100 * sum(f1) / 2)
    assert math.isclose(first.f1, 100 * f1[0])


@pytest.mark.parametrize(
    ("counts", "expected"), [([10, 14], False), ([12, 300], True), ([0, 5], False), ([10, 0, 16], True)]
)
def test_uneven(counts, expected):
    assert metrics.uneven(counts) is expected
