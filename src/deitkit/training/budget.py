"""How many epochs a run has: those of its settings, or as many as fit into its budget of time."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

from .. import log
from ..config import Config
from ..errors import SettingError
from ..io import read_json, write_json
from .schedule import phases
from .trainer import Trainer

# Of a budget: kept back for evaluation, throughput, the report and a machine that slows down.
_RESERVE_SHARE, _RESERVE_SECONDS = 0.08, 15.0
_TIMED_UPDATES, _UPDATES_OF_A_RUN = 12, 100


def planned_epochs(
    out: Path, trainer: Trainer, baseline: Trainer | None, config: Config, started: float
) -> int:
    """The configured epochs; under a budget, as many as fit, measured on a student that is thrown away."""
    saved = out / "plan.json"
    if saved.exists():  # a resumed run keeps its plan
        return int(read_json(saved)["epochs"])
    epochs = config.train.epochs
    assert epochs is not None, "choose_student comes first"
    if config.train.budget_s is not None:
        per_epoch = 0.0
        for each in (trainer, baseline):
            if each is not None:
                probe = replace(each, model=copy.deepcopy(each.model))
                with probe.memory_explained():
                    per_epoch += _seconds_per_epoch(probe)
        spent = time.monotonic() - started
        left = config.train.budget_s * (1 - _RESERVE_SHARE) - _RESERVE_SECONDS - spent
        epochs = int(left / (per_epoch * 1.08))  # the rest for measuring after epochs
        if epochs < 1:
            raise SettingError(
                f"a budget of {config.train.budget_s:.0f} s is too short: {spent:.0f} s are spent and one "
                f"epoch takes {per_epoch:.0f} s; give at least {spent + 3 * per_epoch + 30:.0f}s, "
                "with --resume to keep what is done"
            )
        log.info(f"{epochs} epochs of about {per_epoch:.1f} s fit into the budget")
        distillation, labels = config.distillation, trainer.soft_labels
        if labels is not None and distillation.answered_epochs(epochs) > labels.epochs():
            epochs = distillation.longest_run(labels.epochs())
            log.info(f"labels are stored for {labels.epochs()} epochs, so {epochs} are trained")
    write_json(saved, {"epochs": epochs})
    return epochs


def _seconds_per_epoch(trainer: Trainer) -> float:
    """An epoch's expected time on a trainer that is thrown away after.

    The median of some real updates in each part of a run, weighted by how long the part is: a
    planned epoch stands for the whole run.
    """
    # An epoch of few updates is no part of a run in which the teacher goes half way: many of them are.
    epochs = math.ceil(_UPDATES_OF_A_RUN / trainer.steps_per_epoch)
    stored = trainer.soft_labels
    trainer.epochs = epochs if stored is None else min(epochs, stored.epochs())
    seconds = 0.0
    for steps in phases(trainer.total_steps, trainer.config):
        times: list[float] = []
        while len(times) < _TIMED_UPDATES:
            started = time.monotonic()
            first, done = divmod(steps.start, trainer.steps_per_epoch)
            for step, (batch, answers) in zip(steps, trainer.prepared(first, done), strict=False):
                trainer.state.step = step
                trainer.update(batch, answers)
                times.append(time.monotonic() - started)
                started = time.monotonic()
                if len(times) == _TIMED_UPDATES:
                    break
        seconds += sorted(times)[len(times) // 2] * len(steps)
    return seconds / trainer.epochs
