"""The parts of the loss, weighted and summed as the settings say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from deitkit.config import DistillationConfig, TrainConfig
from deitkit.distillation import losses
from deitkit.distillation.objective import Objective, Phase
from deitkit.models.deit import DeiTOutput
from deitkit.teachers.teacher import TeacherOutput

PLAIN = TrainConfig(label_smoothing=0.0)


@pytest.fixture
def batch() -> tuple[DeiTOutput, torch.Tensor, TeacherOutput]:
    """Both heads' logits, soft targets and a teacher's outputs: six images, five classes."""
    g = torch.Generator().manual_seed(0)
    of_class, of_distill, teacher, targets = (2 * torch.randn(6, 5, generator=g) for _ in range(4))
    return DeiTOutput(of_class, of_distill), targets.softmax(-1), TeacherOutput(teacher, ())


DISTILLATION = {
    "hard": (DistillationConfig(mode="hard"), lambda s, t: losses.hard_distillation(s, t)),
    "hard, smoothed": (
        DistillationConfig(mode="hard", smoothing=0.1),
        lambda s, t: losses.hard_distillation(s, t, 0.1),
    ),
    "soft": (
        DistillationConfig(mode="soft", temperature=2.0),
        lambda s, t: losses.soft_distillation(s, t, 2.0),
    ),
    "soft, as the published code scales it": (
        DistillationConfig(mode="soft", temperature=2.0, reduction="batch_and_classes"),
        lambda s, t: losses.soft_distillation(s, t, 2.0) / 5,
    ),
    "soft, standardised": (
        DistillationConfig(mode="soft", temperature=2.0, standardise=True),
        lambda s, t: losses.soft_distillation(losses.standardise(s), losses.standardise(t), 2.0),
    ),
    "dist": (DistillationConfig(mode="dist", temperature=4.0), lambda s, t: losses.dist(s, t, 4.0)),
}


@pytest.mark.parametrize("name", DISTILLATION)
@pytest.mark.parametrize("token", ["distill", "class"])
def test_the_distillation_loss_is_the_configured_one(batch, name, token):
    output, targets, teacher = batch
    config, expected = DISTILLATION[name]
    objective = Objective(replace(config, token=token, alpha=0.3), PLAIN)
    parts = objective(output, targets, teacher)
    student = output.distill_logits if token == "distill" else output.class_logits
    base = losses.soft_target_cross_entropy(output.class_logits, targets)
    torch.testing.assert_close(parts["distill"], expected(student, teacher.logits))
    torch.testing.assert_close(parts["loss"], 0.7 * base + 0.3 * expected(student, teacher.logits))


def test_both_tokens_may_learn_from_the_teacher(batch):
    output, targets, teacher = batch
    config = DistillationConfig(mode="soft", token="both", alpha=0.6, temperature=2.0)
    parts = Objective(config, PLAIN)(output, targets, teacher)
    of_class, of_distill = (
        losses.soft_distillation(logits, teacher.logits, 2.0)
        for logits in (output.class_logits, output.distill_logits)
    )
    torch.testing.assert_close(parts["distill"], (of_class + of_distill) / 2)
    torch.testing.assert_close(parts["loss"], 0.4 * parts["class"] + 0.6 * parts["distill"])
    later = Objective(config, PLAIN)(output, targets, None, Phase(distill=False))
    by_labels = losses.soft_target_cross_entropy(output.distill_logits, targets)
    torch.testing.assert_close(later["distill"], (later["class"] + by_labels) / 2)


@pytest.mark.parametrize("mode", ["none", "soft", "hard", "dist"])
def test_without_a_teacher_only_the_labels_count(batch, mode):
    output, targets, teacher = batch
    config = DistillationConfig(mode=mode)
    parts = Objective(config, PLAIN)(output, targets, teacher if mode == "none" else None)
    assert set(parts) == {"loss", "class"}
    torch.testing.assert_close(parts["loss"], losses.soft_target_cross_entropy(output.class_logits, targets))


@pytest.mark.parametrize("token", ["distill", "class"])
def test_both_heads_learn_from_labels_once_distillation_stops(batch, token):
    output, targets, _ = batch
    targets[0] = 0.0  # a view without a label
    config = DistillationConfig(mode="soft", token=token, alpha=0.3)
    parts = Objective(config, PLAIN)(output, targets, None, Phase(distill=False), labelled_share=5 / 6)
    student = output.distill_logits if token == "distill" else output.class_logits
    of_class, of_student = (
        losses.soft_target_cross_entropy(logits[1:], targets[1:]) for logits in (output.class_logits, student)
    )
    torch.testing.assert_close(parts["distill"], of_student)
    torch.testing.assert_close(parts["loss"], 0.7 * of_class + 0.3 * of_student)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_both_multilabel_terms_are_binary_cross_entropies(batch, mode):
    """An image without labels counts in full: it shows none of the classes."""
    output, _, teacher = batch
    targets = torch.tensor([[1.0, 0, 1, 0, 0], [0.0] * 5]).repeat(3, 1)
    config = DistillationConfig(mode=mode, alpha=0.3, temperature=2.0, smoothing=0.1)
    train = TrainConfig(loss="bce", label_smoothing=0.2)
    parts = Objective(config, train, "multilabel")(output, targets, teacher)
    base = losses.multilabel_cross_entropy(output.class_logits, 0.8 * targets + 0.1)
    distill = {
        "soft": losses.soft_multilabel_distillation(output.distill_logits, teacher.logits, 2.0),
        "hard": losses.hard_multilabel_distillation(output.distill_logits, teacher.logits, 0.1),
    }[mode]
    torch.testing.assert_close(parts["class"], base)
    torch.testing.assert_close(parts["loss"], 0.7 * base + 0.3 * distill)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_takes_smoothed_targets_as_they_are(batch, smoothing):
    output, targets, _ = batch
    train = TrainConfig(loss="bce", label_smoothing=smoothing)
    parts = Objective(DistillationConfig(mode="none"), train)(output, targets, None)
    expected = losses.binary_cross_entropy(output.class_logits, losses.smooth(targets, smoothing))
    torch.testing.assert_close(parts["loss"], expected)


@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
def test_views_without_a_label_teach_the_distillation_head_only(batch, loss):
    output, _, teacher = batch
    targets = torch.eye(5)[[0, 1, 2, 3, 0, 1]]
    targets[4:] = 0
    config, train = DistillationConfig(mode="soft", alpha=0.3, temperature=2.0), TrainConfig(loss=loss)
    parts = Objective(config, train)(output, targets, teacher, labelled_share=4 / 6)
    alone = DeiTOutput(output.class_logits[:4], None)
    labelled = Objective(config, train)(alone, targets[:4], None)["class"]
    everything = losses.soft_distillation(output.distill_logits, teacher.logits, 2.0)
    assert parts["class"].item() == pytest.approx(labelled.item(), rel=1e-6)
    assert parts["loss"].item() == pytest.approx((0.7 * labelled + 0.3 * everything).item(), rel=1e-6)
