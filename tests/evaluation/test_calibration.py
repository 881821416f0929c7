import numpy as np
import pytest
import torch

from deitkit.evaluation.calibration import calibration


def naive_ece(probabilities, labels, num_bins):
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for i in range(num_bins):
        inside = (confidence > i / num_bins) & (confidence <= (i + 1) / num_bins)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return 100 * error


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_agrees_with_numpy(num_bins):
    g = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(400, 5, generator=g)).softmax(-1).double()
    labels = torch.randint(5, (400,), generator=g)
    found = calibration(p, labels, num_bins)
    assert found.ece == pytest.approx(naive_ece(p.numpy(), labels.numpy(), num_bins))
    assert sum(b.images for b in found.bins) == 400 and len(found.bins) == num_bins
    assert found.confidence == pytest.approx(100 * p.max(-1).values.mean().item())
    mean = sum(b.images * b.top1 for b in found.bins) / 400
    assert found.top1 == pytest.approx(mean)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    p = torch.eye(4)
    assert calibration(p, torch.arange(4)).ece == 0
    assert calibration(p, (torch.arange(4) + 1) % 4).ece == pytest.approx(100)
    assert calibration(p, torch.arange(4)).bins[-1].images == 4


def test_an_edge_belongs_to_the_bin_below():
    p = torch.tensor([[0.6, 0.4], [0.8, 0.2]], dtype=torch.float64)
    found = calibration(p, torch.tensor([0, 0]), 5)
    assert [b.images for b in found.bins] == [0, 0, 1, 1, 0]


def test_gaps_of_opposite_sign_in_one_bin_cancel_and_in_two_bins_do_not():
    # 70 % sure and always right; 90 % sure and right in half of the cases.
    p = torch.tensor([[0.7, 0.3]] * 2 + [[0.9, 0.1]] * 2)
    labels = torch.tensor([0, 0, 0, 1])
    assert calibration(p, labels, 15).ece == pytest.approx(100 * (0.5 * 0.3 + 0.5 * 0.4), abs=1e-4)
    assert calibration(p, labels, 1).ece == pytest.approx(100 * abs(0.8 - 0.75), abs=1e-4)


def test_random_guesses_made_with_modesty_are_calibrated():
    rng = np.random.default_rng(0)
    p = torch.from_numpy(rng.dirichlet(np.ones(3), 20_000))
    labels = (p.cumsum(1) < torch.from_numpy(rng.random((20_000, 1)))).sum(1).clamp(max=2)
    assert calibration(p, labels).ece < 1.5
