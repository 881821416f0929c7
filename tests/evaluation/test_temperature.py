import numpy as np
import pytest
import torch
from torch import Tensor

from deitkit.evaluation.calibration import calibration
from deitkit.evaluation.temperature import (
    FEWEST_IMAGES,
    calibrate,
    cross_fitted,
    fit_temperature,
    log_scores,
    nll,
    reliability,
)
from deitkit.models import DeiTOutput, joint_probabilities, tempered


def drawn(n: int, K: int, true_temperature: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, K) and labels drawn from their softmax at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, K, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / true_temperature).softmax(-1), 1, generator=generator)
    return logits, labels.flatten()


def two_heads(n: int, K: int = 5) -> DeiTOutput:
    generator = torch.Generator().manual_seed(1)
    return DeiTOutput(*(4 * torch.randn(n, K, generator=generator) for _ in range(2)))


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_that_the_labels_were_drawn_at_is_found(true):
    assert fit_temperature(*drawn(20_000, 6, true)) == pytest.approx(true, rel=0.05)


def test_agrees_with_a_search_over_a_grid():
    scores, labels = drawn(300, 4, 2.5)
    grid = np.exp(np.linspace(-1, 2, 3001))
    log_p = [(scores / t).log_softmax(-1)[torch.arange(300), labels].sum().item() for t in grid]
    penalised = [value - 0.5 * np.log(t) ** 2 / 0.5**2 for value, t in zip(log_p, grid, strict=True)]
    assert fit_temperature(scores, labels) == pytest.approx(grid[int(np.argmax(penalised))], rel=2e-3)


@pytest.mark.parametrize("seed", range(10))
def test_never_worse_than_a_temperature_of_1(seed):
    scores, labels = drawn(60, 3, [0.7, 1.0, 1.5][seed % 3], seed)
    assert nll(scores / fit_temperature(scores, labels), labels) <= nll(scores, labels)


def test_without_a_mistake_it_stays_far_from_certain():
    scores = 2.0 * torch.eye(3, dtype=torch.float64).repeat(30, 1)
    labels = torch.arange(3).repeat(30)
    assert 0.3 < fit_temperature(scores, labels) < 1


def test_few_images_keep_1():
    logits, labels = drawn(FEWEST_IMAGES - 1, 3, 4.0)
    found = calibrate(DeiTOutput(logits, None), labels)
    assert found.temperature == 1.0 and found.nll == found.nll_before and found.ece == found.ece_before


def test_calibrated_probabilities_lower_loss_and_error_on_other_images():
    logits, labels = drawn(2000, 5, 3.0)
    found = calibrate(DeiTOutput(logits, None), labels)
    others, their_labels = drawn(2000, 5, 3.0, seed=1)
    p = tempered(others.softmax(-1), found.temperature)
    assert calibration(p, their_labels).ece < 3 < calibration(others.softmax(-1), their_labels).ece
    assert nll(p.log(), their_labels) < nll(others, their_labels)
    assert found.ece < 3 < found.ece_before and found.nll < found.nll_before
    # What is promised for images that the temperature was not fitted on.
    assert found.nll == pytest.approx(nll(p.log(), their_labels), abs=0.1)


def test_a_temperature_that_does_not_help_other_images_is_not_kept():
    for seed in range(5):
        logits, labels = drawn(100, 3, 1.0, seed)
        found = calibrate(DeiTOutput(logits, None), labels)
        assert found.nll <= found.nll_before


def test_each_image_is_judged_by_the_other_images():
    scores, labels = drawn(100, 3, 3.0)
    found, label = cross_fitted(scores, labels), labels.clone()
    label[7] = (label[7] + 1) % 3
    torch.testing.assert_close(cross_fitted(scores, label)[7], found[7])


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_scores_are_those_of_the_joint_classifier(task):
    output = two_heads(40)
    scores = log_scores(output, task == "multilabel")
    p = scores.softmax(-1) if task == "multiclass" else scores.sigmoid()
    torch.testing.assert_close(p.float(), joint_probabilities(output, task))
    for T in (0.5, 3.0):
        expected = (scores / T).softmax(-1) if task == "multiclass" else (scores / T).sigmoid()
        found = tempered(joint_probabilities(output, task), T, task)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.7, 6.0])
def test_no_prediction_changes(temperature):
    p = joint_probabilities(two_heads(5000, 10))
    found = tempered(p, temperature)
    assert torch.equal(found.argsort(descending=True), p.argsort(descending=True))
    torch.testing.assert_close(found.sum(-1), torch.ones(5000))
    labels = joint_probabilities(two_heads(5000, 10), "multilabel")
    assert torch.equal(tempered(labels, temperature, "multilabel") > 0.5, labels > 0.5)


def test_a_temperature_of_1_leaves_every_bit_and_extremes_stay_numbers():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert tempered(p, 1.0) is p
    for T in (0.01, 100.0):
        for task in ("multiclass", "multilabel"):
            assert tempered(p, T, task).isfinite().all()


def test_multilabel_has_a_loss_and_no_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(200, 3, generator=generator)
    labels = (torch.rand(200, 3, generator=generator) < (logits / 2).sigmoid()).long()
    found = calibrate(DeiTOutput(logits, None), labels)
    assert 1.3 < found.temperature < 3
    assert found.ece is None and found.nll < found.nll_before


def test_a_student_has_temperatures_for_each_head_and_their_mean():
    labels = torch.randint(5, (400,), generator=torch.Generator().manual_seed(3))
    found = calibrate(two_heads(400), labels)
    assert set(found.head_temperatures) == {"class", "distill", "mean"}
    assert found.temperature > 1 and min(found.head_temperatures.values()) > 1
    assert calibrate(DeiTOutput(two_heads(400).class_logits, None), labels).head_temperatures == {}


def test_on_the_images_that_it_was_fitted_on_it_is_cross_fitted():
    logits, labels = drawn(500, 4, 3.0)
    output = DeiTOutput(logits, None)
    temperature = calibrate(output, labels).temperature
    here = reliability(output, labels, temperature, fitted_on_these=True)
    elsewhere = reliability(output, labels, temperature, fitted_on_these=False)
    assert here.cross_fitted and not elsewhere.cross_fitted
    assert elsewhere.nll < here.nll < here.nll_before == elsewhere.nll_before
