"""What fits into a time budget: how many images, how many epochs, whether a baseline.

A budget always ends in a usable run. What is planned is made smaller until it fits, by measuring a few steps
on students that are thrown away, and training stops at its deadline if the machine turns out slower.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import distributed, log
from ..evaluation.speed import wait_for_device
from ..io import write_json
from ..models import Student
from ..run_folder import read_plan

if TYPE_CHECKING:
    from .session import Session
    from .student_training import StudentTraining
    from .trainer import Trainer

# Kept back from a budget for evaluation, speed, the report and a machine that slows down.
_RESERVE_SHARE, _RESERVE_S, _MOST_RESERVE_SHARE = 0.08, 15.0, 0.28
_EVALUATION = 1.08  # of the time of an epoch's steps, with the evaluation after some epochs
_STEPS_OF_A_RUN = 100
_FEWEST_STEPS, _TIMED_STEPS = 3, 12  # timed in each phase of training
_TIMING_SHARE = 0.05  # of the budget, for timing
_FEWEST_WITH_BASELINE = 5  # epochs; with fewer, the time is better spent on the student alone
_EPOCH_SHARE = 0.4  # of the budget, that an epoch of the student alone may take


@dataclass(frozen=True)
class Budget:
    """Seconds that a job may take since `started`, on the monotonic clock."""

    seconds: float
    started: float

    @property
    def deadline(self) -> float:
        """When training has to end, so that evaluation and the report fit as well."""
        reserve = min(_RESERVE_S + _RESERVE_SHARE * self.seconds, _MOST_RESERVE_SHARE * self.seconds)
        return self.started + self.seconds - reserve

    @property
    def left(self) -> float:
        """Seconds until the deadline; 0 once it is over."""
        return max(0.0, self.deadline - time.monotonic())


@dataclass(frozen=True)
class Plan:
    """The length of a job. deadlines: when each training has to end, on the monotonic clock."""

    epochs: int
    baseline: bool
    deadlines: tuple[float | None, ...] = (None, None)


def affordable_images(budget_s: float, student: Student, device: torch.device) -> int:
    """The number of images on which an epoch leaves time for the rest of the job."""
    student = student.to(device).train()
    images = torch.randn(16, 3, *student.image_size, device=device)
    times = []
    for _ in range(2):
        started = time.monotonic()
        student(images).class_logits.sum().backward()
        wait_for_device()
        times.append(time.monotonic() - started)
    return max(1, int(_EPOCH_SHARE * budget_s * len(images) / min(times)))


def plan(out: Path, session: Session, trainings: Sequence[StudentTraining]) -> Plan:
    """The configured epochs; with a budget, as many as fit, and the baseline only if there is time.

    trainings: the student's, then the baseline's if one is asked for. Writes `plan.json`, which a resumed run
    follows, without deadlines.
    """
    saved = out / "plan.json"
    wanted = len(trainings) > 1
    known = distributed.from_main(lambda: read_plan(out) if saved.exists() else None)
    if known is not None:
        return Plan(known.epochs, wanted and not known.without_baseline)
    made = Plan(int(session.config.train.epochs), wanted)
    if session.budget is not None:
        with log.activity("timing an epoch"):
            made = _fitting(session.budget, session, trainings)
            epochs, baseline = distributed.from_main(lambda: (made.epochs, made.baseline))
            made = replace(made, epochs=epochs, baseline=baseline)
    if distributed.is_main():
        write_json(
            saved, {"epochs": made.epochs} | ({"without_baseline": True} if wanted > made.baseline else {})
        )
    return made


def _fitting(budget: Budget, session: Session, trainings: Sequence[StudentTraining]) -> Plan:
    """The plan for what is left of `budget`, and one line on it."""
    cuts = []
    times = [_epoch_times(each, budget) for each in trainings]
    epochs = _epochs_within(budget.left, times)
    if len(times) > 1 and epochs < _FEWEST_WITH_BASELINE:
        cuts.append("no baseline")
        times = times[:1]
        epochs = _epochs_within(budget.left, times)
    if times[0].again < times[0].new:  # a memory makes epochs cheap, but more of them do not help
        epochs = min(epochs, int(session.config.train.epochs))
    if epochs < 1:
        cuts.append("less than one epoch")
        epochs = 1
    else:
        each = sum(t.of(epochs) for t in times) / epochs
        one, several = f"1 epoch of about {each:.1f} s fits", f"{epochs} epochs of about {each:.1f} s fit"
        log.info(f"{one if epochs == 1 else several} into the budget")
    distillation, soft_labels = session.config.distillation, trainings[0].soft_labels
    if soft_labels is not None and distillation.distilled_epochs(epochs) > soft_labels.epochs():
        epochs = distillation.longest_run(soft_labels.epochs())
        log.info(f"soft labels are stored for {soft_labels.epochs()} epochs, so {epochs} are trained")
    if cuts:
        log.warning(f"the budget of {budget.seconds:.0f} s is short: {', '.join(cuts)}; a longer one helps")
    end = budget.deadline
    seconds = [each.of(epochs) for each in times]
    of_student = end - budget.left * sum(seconds[1:]) / sum(seconds)
    return Plan(epochs, len(times) > 1, (of_student, end))


@dataclass(frozen=True)
class _EpochTimes:
    """Seconds of an average epoch with new views, and of one whose views are shown again, after `views`."""

    new: float
    again: float
    views: float

    def of(self, epochs: int) -> float:
        """Seconds of so many epochs."""
        first = min(epochs, self.views)
        return self.new * first + self.again * (epochs - first)


def _epochs_within(seconds: float, times: Sequence[_EpochTimes]) -> int:
    """The most epochs of all trainings together that fit."""
    epochs = int(seconds / sum(each.new for each in times))
    while sum(each.of(epochs + 1) for each in times) <= seconds:
        epochs += 1
    return epochs


def _epoch_times(training: StudentTraining, budget: Budget) -> _EpochTimes:
    """Of an average epoch: the median step of each phase, weighted by its length."""
    # One epoch of a small folder has too few steps for phases that end halfway: time a run of many.
    sampler, views = training.sampler, training.sampler.views or math.inf
    epochs = math.ceil(_STEPS_OF_A_RUN / sampler.steps_per_epoch)
    if sampler.views is not None:
        epochs = max(epochs, sampler.views + 1)  # so that views are shown again
    if training.soft_labels is not None:
        epochs = min(epochs, training.soft_labels.epochs())
    trainer = training.trainer(epochs)
    distillation, limit = training.config.distillation, _TIMING_SHARE * budget.seconds
    new = again = 0.0
    with trainer.running():
        for phase in trainer.schedule.phases(distillation.distill_until, distillation.feature_until):
            steps = phase[: min(_TIMED_STEPS, int(min(views, _TIMED_STEPS)) * sampler.steps_per_epoch)]
            new += _step_time(trainer, steps, limit) * len(phase)
            if trainer.inputs.memory is not None:  # the same steps, whose views are known now
                again += _step_time(trainer, steps, limit) * len(phase)
    scale = _EVALUATION / epochs
    return _EpochTimes(scale * new, scale * (new if trainer.inputs.memory is None else again), views)


def _step_time(trainer: Trainer, steps: range, seconds: float) -> float:
    """The median of the steps, or of the first few of them if these have taken `seconds`."""
    times: list[float] = []
    while len(times) < len(steps):
        epoch, done = divmod(steps[len(times)], trainer.steps_per_epoch)
        started = time.monotonic()
        inputs = trainer.inputs.prepared(epoch, done)
        for step, (batch, outputs) in zip(steps[len(times) :], inputs, strict=False):
            trainer.state.step = step
            trainer.step(batch, outputs)
            times += distributed.largest(time.monotonic() - started)
            if len(times) >= _FEWEST_STEPS and sum(times) > seconds:
                return statistics.median_high(times)
            started = time.monotonic()
    return statistics.median_high(times)
