"""What changes with the number of an update."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from deitkit.config import Config, DistillationConfig, TrainConfig
from deitkit.training.schedule import answered_at, guided_at, image_size_at, measured_after, phases

PLAIN = Config()
SAVING = replace(
    PLAIN,
    train=TrainConfig(start_size=(32, 48), start_share=0.75),
    distillation=DistillationConfig(distill_until=0.25, feature_until=0.5),
)


def test_views_are_small_for_the_first_share_only():
    assert [image_size_at(step, 8, SAVING) for step in range(8)] == [(32, 48)] * 6 + [None] * 2
    assert {image_size_at(step, 8, PLAIN) for step in range(8)} == {None}


def test_guidance_lasts_for_its_share():
    assert [guided_at(step, 8, SAVING) for step in range(8)] == [True] * 4 + [False] * 4
    assert all(guided_at(step, 8, PLAIN) for step in range(8))


def test_the_teachers_answers_last_for_their_share():
    assert [answered_at(step, 8, SAVING) for step in range(8)] == [True] * 2 + [False] * 6
    assert all(answered_at(step, 8, PLAIN) for step in range(8))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 101])
@pytest.mark.parametrize("config", [PLAIN, SAVING], ids=["plain", "saving"])
def test_within_a_phase_nothing_changes(steps, config):
    found = phases(steps, config)
    assert [step for phase in found for step in phase] == list(range(steps))
    of_step = (answered_at, guided_at, image_size_at)
    kinds = [{tuple(of(s, steps, config) for of in of_step) for s in phase} for phase in found]
    assert all(len(kind) == 1 for kind in kinds)
    assert all(a != b for a, b in itertools.pairwise(kinds))


@pytest.mark.parametrize("val_share", [0.02, 1 / 3, 4.0])
@pytest.mark.parametrize("epochs", [1, 3, 8, 60, 300])
def test_measuring_is_cheap_and_never_rare(epochs, val_share):
    measured = [epoch for epoch in range(epochs) if measured_after(epoch, epochs, val_share)]
    assert measured[-1] == epochs - 1
    assert len(measured) >= min(epochs, 4)
    # Two passes, each at a quarter of an update's cost, in epochs of training.
    cost = 0.5 * val_share * len(measured)
    assert len(measured) <= 7 or cost <= 0.05 * epochs + 0.5 * val_share
