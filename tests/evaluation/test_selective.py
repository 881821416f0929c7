import pytest
import torch

from deitkit.errors import SettingError
from deitkit.evaluation.selective import operating_point, risk_coverage, threshold_for


def naive_threshold(confidence, right, precision):
    """The lowest confidence from which up the share of right answers suffices."""
    found = [
        c for c in confidence.tolist() if right[confidence >= c].double().mean().item() >= precision - 1e-12
    ]
    return min(found, default=None)


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_search_over_all_thresholds(precision, seed):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(60, generator=generator).mul(20).round().div(20)  # with ties
    right = torch.rand(60, generator=generator) < confidence
    assert threshold_for(confidence, right, precision) == naive_threshold(confidence, right, precision)


def test_images_of_one_confidence_are_answered_together():
    confidence, right = torch.tensor([0.9, 0.9, 0.5]), torch.tensor([True, False, True])
    assert threshold_for(confidence, right, 0.9) is None
    assert threshold_for(confidence, right, 0.6) == 0.5


def test_an_operating_point_counts_all_images_and_each_predicted_class():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
    found = operating_point(p, torch.tensor([0, 0, 1, 1]), 1.0)
    assert found.threshold == pytest.approx(0.7) and found.target == 100
    assert (found.all.images, found.all.answered, found.all.share, found.all.precision) == (4, 3, 75, 100)
    assert [(c.images, c.answered) for c in found.per_class] == [(3, 2), (1, 1)]
    assert found.all.interval is not None and found.all.interval[0] < 100


def test_a_precision_out_of_reach_answers_nothing():
    found = operating_point(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([1, 0]), 0.9)
    assert found.threshold is None and found.all.answered == 0 and found.all.precision is None


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.01, float("nan")])
def test_a_precision_is_a_share(precision):
    with pytest.raises(SettingError, match="--precision"):
        operating_point(torch.eye(2), torch.arange(2), precision)


def test_the_curve_ends_with_all_images():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200, generator=generator)
    right = torch.rand(200, generator=generator) < confidence
    curve = risk_coverage(confidence, right)
    assert len(curve) == 20 and curve[-1].share == 100
    assert curve[-1].precision == pytest.approx(100 * right.double().mean().item())
    for point in curve:
        answered = confidence >= point.threshold
        assert point.share == pytest.approx(100 * answered.double().mean().item())
        assert point.precision == pytest.approx(100 * right[answered].double().mean().item())


def test_one_image_has_a_curve():
    assert len(risk_coverage(torch.tensor([0.7]), torch.tensor([True]))) == 1
