"""Logits adjusted for uneven classes."""

from __future__ import annotations

import pytest
import torch

from deitkit.config import DistillationConfig, TrainConfig
from deitkit.distillation.class_balance import Adjustment, adjustment
from deitkit.distillation.losses import hard_distillation, soft_distillation, soft_target_cross_entropy
from deitkit.distillation.objective import Objective, Phase
from deitkit.models.deit import DeiTOutput
from deitkit.teachers.teacher import TeacherOutput

COUNTS = torch.tensor([900, 90, 10])
LOG_SHARES = torch.tensor([0.9, 0.09, 0.01]).log()
PLAIN = TrainConfig(label_smoothing=0.0)


@pytest.mark.parametrize(
    ("balance", "labels", "soft"),
    [("none", None, None), ("loss", 1.0, 1.0), ("sampler", None, 1.0), ("sqrt-sampler", None, 0.5)],
)
def test_what_is_added_to_logits(balance, labels, soft):
    found = adjustment(balance, COUNTS, "soft", fitted_teacher=True)
    for tensor, times in ((found.labels, labels), (found.distillation, soft)):
        assert (tensor is None) == (times is None)
        if times is not None:
            torch.testing.assert_close(tensor, times * LOG_SHARES)
    assert adjustment(balance, COUNTS, "soft", fitted_teacher=False).distillation is None
    # Hard decisions are labels, whoever makes them.
    hard = adjustment(balance, COUNTS, "hard", fitted_teacher=False)
    assert (hard.distillation is None) == (labels is None) and hard.distillation is hard.labels


def test_a_class_without_an_image_stays_finite():
    found = adjustment("loss", torch.tensor([5, 0]), "soft", fitted_teacher=True)
    assert found.labels is not None and found.labels.isfinite().all()


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_each_head_sees_what_its_labels_need(mode):
    g = torch.Generator().manual_seed(0)
    of_class, of_distill, teacher = (2 * torch.randn(8, 3, generator=g) for _ in range(3))
    targets = torch.eye(3)[torch.arange(8) % 3]
    output, found = DeiTOutput(of_class, of_distill), adjustment("loss", COUNTS, mode, fitted_teacher=True)
    objective = Objective(DistillationConfig(mode=mode, temperature=2.0), PLAIN, adjustment=found)
    parts = objective(output, targets, TeacherOutput(teacher, ()))
    expected = soft_target_cross_entropy(of_class + LOG_SHARES, targets)
    torch.testing.assert_close(parts["class"], expected)
    uneven = of_distill + LOG_SHARES
    if mode == "soft":
        expected = soft_distillation(uneven, teacher, 2.0)
    else:
        expected = hard_distillation(uneven, teacher)
    torch.testing.assert_close(parts["distill"], expected)
    # From distill_until on that head learns from labels too.
    later = objective(output, targets, None, Phase(distill=False))
    torch.testing.assert_close(later["distill"], soft_target_cross_entropy(of_distill + LOG_SHARES, targets))


def test_without_a_correction_nothing_changes():
    output = DeiTOutput(torch.randn(4, 3).requires_grad_(), torch.randn(4, 3))
    targets, teacher = torch.eye(3)[[0, 1, 2, 0]], TeacherOutput(torch.randn(4, 3), ())
    config = DistillationConfig(mode="soft")
    ours = Objective(config, PLAIN, adjustment=Adjustment())(output, targets, teacher)
    theirs = Objective(config, PLAIN)(output, targets, teacher)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_both_heads_come_to_even_answers_where_images_tell_nothing():
    """Of 900, 90 and 10 images that look alike, neither head prefers a class, and without it both do."""
    targets = torch.eye(3).repeat_interleave(COUNTS, 0)
    knows_shares = TeacherOutput(LOG_SHARES.expand(1000, 3), ())

    def trained(balance: str) -> torch.Tensor:
        heads = torch.zeros(2, 3, requires_grad=True)
        found = adjustment(balance, COUNTS, "soft", fitted_teacher=True)
        objective = Objective(DistillationConfig(mode="soft", temperature=1.0), PLAIN, adjustment=found)
        optimizer = torch.optim.LBFGS([heads], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = objective(DeiTOutput(*(h.expand(1000, 3) for h in heads)), targets, knows_shares)["loss"]
            value.backward()
            return value

        optimizer.step(loss)
        return heads.detach().softmax(1)

    torch.testing.assert_close(trained("loss"), torch.full((2, 3), 1 / 3), atol=0.01, rtol=0)
    torch.testing.assert_close(trained("none"), LOG_SHARES.exp().expand(2, 3), atol=0.01, rtol=0)
