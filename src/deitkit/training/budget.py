"""How many epochs a run has: those of its settings, or as many as fit into its time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from .. import log
from ..errors import SettingError
from ..io import write_json
from ..run_folder import read_plan
from .session import Session
from .student_training import StudentTraining
from .trainer import Trainer

# Kept back from a budget for evaluation, speed, the report and a machine that slows down.
_RESERVE_SHARE, _RESERVE_SECONDS = 0.08, 15.0
_TIMED_STEPS, _STEPS_OF_A_RUN = 12, 100


def planned_epochs(out: Path, session: Session, trainings: Sequence[StudentTraining]) -> int:
    """The configured epochs; with a budget, as many as fit, measured on students that are thrown away.

    Writes `plan.json`, from which a resumed run takes its epochs. Raises SettingError if a budget is too
    short for one epoch.
    """
    saved = out / "plan.json"
    if saved.exists():
        return read_plan(out).epochs
    epochs, budget = session.config.train.epochs, session.config.train.budget_s
    if budget is not None:
        per_epoch = sum(_seconds_per_epoch(each) for each in trainings)
        spent = session.seconds
        left = budget * (1 - _RESERVE_SHARE) - _RESERVE_SECONDS - spent
        epochs = int(left / (per_epoch * 1.08))  # the rest for evaluation after epochs
        if epochs < 1:
            raise SettingError(
                f"a budget of {budget:.0f} s is too short: {spent:.0f} s are spent and one epoch takes "
                f"{per_epoch:.0f} s; give at least {spent + 3 * per_epoch + 30:.0f}s, with --resume to keep "
                "what is done"
            )
        log.info(f"{epochs} epochs of about {per_epoch:.1f} s fit into the budget")
        distillation, soft_labels = session.config.distillation, trainings[0].soft_labels
        if soft_labels is not None and distillation.distilled_epochs(epochs) > soft_labels.epochs():
            epochs = distillation.longest_run(soft_labels.epochs())
            log.info(f"soft labels are stored for {soft_labels.epochs()} epochs, so {epochs} are trained")
    write_json(saved, {"epochs": epochs})
    return epochs


def _seconds_per_epoch(training: StudentTraining) -> float:
    """The expected time of an average epoch: the median step of each phase, weighted by its length."""
    # One epoch of a small folder has too few steps for phases that end halfway: time a run of many.
    epochs = math.ceil(_STEPS_OF_A_RUN / training.sampler.steps_per_epoch)
    if training.soft_labels is not None:
        epochs = min(epochs, training.soft_labels.epochs())
    trainer = training.trainer(epochs)
    distillation, seconds = training.config.distillation, 0.0
    with trainer.memory_explained():
        for phase in trainer.schedule.phases(distillation.distill_until, distillation.feature_until):
            times = _step_times(trainer, phase)
            seconds += sorted(times)[len(times) // 2] * len(phase)
    return seconds / epochs


def _step_times(trainer: Trainer, phase: range) -> list[float]:
    """Seconds of some steps from the first of `phase` on."""
    times: list[float] = []
    while len(times) < _TIMED_STEPS:
        started = time.monotonic()
        epoch, done = divmod(phase.start, trainer.steps_per_epoch)
        for step, (batch, outputs) in zip(phase, trainer.prepared(epoch, done), strict=False):
            trainer.state.step = step
            trainer.step(batch, outputs)
            times.append(time.monotonic() - started)
            started = time.monotonic()
            if len(times) == _TIMED_STEPS:
                break
    return times
