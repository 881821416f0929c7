import math

import numpy as np
import pytest
import torch

from deitkit.errors import DeitkitError
from deitkit.evaluation import metrics
from deitkit.evaluation.evaluate import evaluate, heads_of
from deitkit.models.deit import DeiTOutput


def logits(n=57, classes=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, classes, generator=g) * 3  # noqa: E731
    return draw(), draw(), torch.randint(classes, (n,), generator=g)


def softmax(row):
    e = [math.exp(v) for v in row]
    return [v / sum(e) for v in e]


def naive(class_logits, distill_logits, labels):
    """The same numbers, one image and one class at a time."""
    top1 = top5 = top1_class = top1_distill = loss = 0
    for c, d, y in zip(class_logits.tolist(), distill_logits.tolist(), labels.tolist(), strict=True):
        joint = [(a + b) / 2 for a, b in zip(softmax(c), softmax(d), strict=True)]
        order = sorted(range(len(joint)), key=lambda k: -joint[k])
        top1 += order[0] == y
        top5 += y in order[:5]
        top1_class += c.index(max(c)) == y
        top1_distill += d.index(max(d)) == y
        loss -= math.log(joint[y])
    n = len(labels)
    return (100 * top1 / n, 100 * top1_class / n, 100 * top1_distill / n, 100 * top5 / n, loss / n)


def test_measure_agrees_with_a_loop():
    c, d, y = logits()
    m = metrics.measure(c, d, y)
    assert (m.top1, m.top1_class, m.top1_distill, m.top5, m.loss) == pytest.approx(naive(c, d, y), rel=1e-6)
    assert m.images == 57


def test_joint_adds_softmaxes_rather_than_averaging_logits():
    # Mean logits (-14, 1, -24.75) would pick class 1; the softmaxes' sums (.73, .65, .62) pick class 0.
    c, d = torch.tensor([[2.0, 1.0, -50.0]]), torch.tensor([[-30.0, 0.0, 0.5]])
    assert metrics.measure(c, d, torch.tensor([0])).top1 == 100.0


def test_a_single_head_has_no_distillation_accuracy():
    c, _, y = logits()
    m = metrics.measure(c, None, y)
    assert m.top1_distill is None and m.top1 == m.top1_class
    assert m.loss == pytest.approx(torch.nn.functional.cross_entropy(c, y).item(), rel=1e-6)
    assert m.to_dict()["top1_distill"] is None


def test_a_confident_miss_costs_a_finite_and_true_loss():
    c = torch.tensor([[1000.0, 0.0]])
    assert metrics.measure(c, c, torch.tensor([1])).loss == pytest.approx(1000.0)


def test_top5_with_two_classes_is_complete():
    c, d, y = logits(classes=2)
    assert metrics.measure(c, d, y).top5 == 100.0


@pytest.mark.parametrize("size", [8, 57])
def test_metrics_do_not_depend_on_the_batches(size):
    c, d, y = logits()
    batches = [(slice(i, i + size), y[i : i + size]) for i in range(0, 57, size)]
    seen = []
    found = evaluate(lambda rows: heads_of(DeiTOutput(c[rows], d[rows])), batches, seen.append)
    assert found.metrics() == metrics.measure(c, d, y)
    assert sum(seen) == 57 and torch.equal(found.labels, y)


def test_outputs_are_collected_by_name():
    batches = [(torch.ones(2), torch.zeros(2)), (torch.ones(3), torch.zeros(3))]
    found = evaluate(lambda x: {"twice": 2 * x, "half": x / 2}, batches)
    assert found.outputs["twice"].tolist() == [2.0] * 5 and found.outputs["half"].tolist() == [0.5] * 5


def test_nothing_to_measure_is_an_error():
    with pytest.raises(DeitkitError, match="no images"):
        evaluate(lambda batch: {}, [])
    with pytest.raises(DeitkitError, match="no images"):
        metrics.measure(torch.zeros(0, 3), None, torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("p, n", [(0.5, 100), (0.9, 40), (1.0, 10), (0.0, 10), (0.83, 5000)])
def test_wilson_bounds_solve_their_defining_equation(p, n):
    # The bounds are the accuracies q whose z-test against the observed p just passes.
    for bound in metrics.wilson_interval(p, n):
        q = bound / 100
        assert (p - q) ** 2 == pytest.approx(1.96**2 * q * (1 - q) / n, abs=1e-12)


def test_wilson_interval_of_no_images_says_nothing():
    assert metrics.wilson_interval(0.0, 0) == (0.0, 100.0)


def test_confusion_counts_rows_by_truth():
    table = metrics.confusion(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 1]), 4)
    assert table.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_balanced_loss_counts_every_class_alike():
    labels = torch.tensor([0] * 9 + [1])
    logits = torch.tensor([[2.0, 0.0]]).repeat(10, 1)
    found = metrics.measure(logits, None, labels)
    each = -logits[:1].double().log_softmax(1)[0]
    assert found.loss == pytest.approx(float(0.9 * each[0] + 0.1 * each[1]))
    assert found.balanced_loss == pytest.approx(float(each.mean()))


def test_the_interval_of_macro_f1_covers_it():
    """Of simulated classifiers whose macro-F1 is known: three classes of 100, 30 and 15 images."""
    rng, sizes = np.random.RandomState(0), np.array([100, 30, 15])
    chances = np.array([[0.85, 0.1, 0.05], [0.2, 0.75, 0.05], [0.2, 0.2, 0.6]])
    truth = metrics.macro_f1(torch.from_numpy((chances * sizes[:, None] * 10_000).round().astype(int)))
    covered = []
    for _ in range(300):
        drawn = torch.from_numpy(
            np.stack([rng.multinomial(n, p) for n, p in zip(sizes, chances, strict=True)])
        )
        low, high = metrics.macro_f1_interval(drawn)
        assert low <= metrics.macro_f1(drawn) <= high
        covered.append(low <= truth <= high)
    assert 0.92 <= np.mean(covered) <= 1.0
    assert metrics.macro_f1_interval(torch.tensor([[5, 0], [0, 5]]))[0] < 90  # five right ones are few
