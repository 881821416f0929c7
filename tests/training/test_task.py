"""The loss of a step, put together."""

from __future__ import annotations

import pytest
import torch

from deitkit import losses
from deitkit.config import DistillationConfig
from deitkit.model import DeiTOutput
from deitkit.teachers.teacher import TeacherAnswer
from deitkit.training.task import training_loss


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def test_views_without_a_label_teach_the_distillation_head_only():
    output, answer = DeiTOutput(logits(0), logits(1)), TeacherAnswer(logits(2), ())
    targets = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    targets[4:] = 0
    config = DistillationConfig(mode="soft", alpha=0.3, temperature=2.0)
    parts = training_loss(output, targets, answer, config, smoothing=0.1, guidance=None, labelled_share=4 / 6)
    labelled = losses.soft_target_cross_entropy(output.class_logits[:4], losses.smooth(targets[:4], 0.1))
    everything = losses.soft_distillation(output.distill_logits, answer.logits, 2.0)
    assert parts["class"].item() == pytest.approx(labelled.item(), rel=1e-6)
    assert parts["loss"].item() == pytest.approx((0.7 * labelled + 0.3 * everything).item(), rel=1e-6)
