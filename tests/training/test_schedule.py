"""What changes during training, as a function of the step."""

from __future__ import annotations

import itertools

import pytest

from deitkit.config import DistillationConfig, OptimConfig, TrainConfig
from deitkit.distillation.objective import Objective, Phase
from deitkit.training.schedule import Schedule

PLAIN = (TrainConfig(), DistillationConfig())
SAVING = (
    TrainConfig(start_size=(32, 48), start_share=0.75),
    DistillationConfig(distill_until=0.25, feature_until=0.5),
)
Settings = tuple[TrainConfig, DistillationConfig]


def schedule(steps: int, train: TrainConfig) -> Schedule:
    """Of one step per epoch."""
    return Schedule(steps, 1, train, OptimConfig())


def phase(step: int, steps: int, distillation: DistillationConfig) -> Phase:
    """What a step learns from, with feature distillation."""
    objective = Objective(distillation, TrainConfig())
    objective.features = object()
    return objective.phase(step, steps)


def test_views_are_small_for_the_first_share_only():
    assert [schedule(8, SAVING[0]).image_size(step) for step in range(8)] == [(32, 48)] * 6 + [None] * 2
    assert {schedule(8, PLAIN[0]).image_size(step) for step in range(8)} == {None}


def test_feature_distillation_lasts_for_its_share():
    assert [phase(step, 8, SAVING[1]).features for step in range(8)] == [True] * 4 + [False] * 4
    assert all(phase(step, 8, PLAIN[1]).features for step in range(8))


def test_distillation_lasts_for_its_share():
    assert [phase(step, 8, SAVING[1]).distill for step in range(8)] == [True] * 2 + [False] * 6
    assert all(phase(step, 8, PLAIN[1]).distill for step in range(8))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 101])
@pytest.mark.parametrize("settings", [PLAIN, SAVING], ids=["plain", "saving"])
def test_within_a_phase_nothing_changes(steps: int, settings: Settings):
    train, distillation = settings
    planned = schedule(steps, train)
    found = planned.phases(distillation.distill_until, distillation.feature_until)
    assert [step for of_phase in found for step in of_phase] == list(range(steps))
    kinds = [{(phase(s, steps, distillation), planned.image_size(s)) for s in of_phase} for of_phase in found]
    assert all(len(kind) == 1 for kind in kinds)
    assert all(a != b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("val_share", [0.02, 1 / 3, 4.0])
@pytest.mark.parametrize("epochs", [1, 3, 8, 60, 300])
def test_evaluation_is_cheap_and_never_rare(epochs, val_share):
    planned = schedule(epochs, TrainConfig())
    measured = [epoch for epoch in range(epochs) if planned.evaluates_after(epoch, val_share)]
    assert measured[-1] == epochs - 1
    assert len(measured) >= min(epochs, 4)
    # Two passes, each at a quarter of the cost of training, in epochs of training.
    cost = 0.5 * val_share * len(measured)
    assert len(measured) <= 7 or cost <= 0.05 * epochs + 0.5 * val_share
