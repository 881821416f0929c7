"""One student trained in one folder, from settings to measured weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .. import distributed, log
from ..config import ResolvedConfig
from ..data.dataset import Dataset, Split
from ..data.sampler import Sampler
from ..distillation.class_balance import Adjustment, adjustment
from ..distillation.objective import Objective
from ..evaluation.evaluate import evaluate_student
from ..io import write_json
from ..models import Student
from ..run_schema import ModelResult, TrainingResult
from ..soft_labels.store import SoftLabelStore
from ..tasks import METRICS
from ..teachers.teacher import Teacher
from . import results
from .callbacks import EpochLines
from .frozen_stem import frozen_hybrid
from .resolve import create_student
from .run_files import describe_run, save_model
from .session import Session
from .step_inputs import TrainingData
from .trackers import trackers
from .trainer import Trainer, Validation

# The validation loss that goes with each `train.metric`: for both that count all classes alike, so does it.
_CHOSEN_BY = {"top1": "loss", "balanced": "balanced_loss", "macro-f1": "balanced_loss", "map": "loss"}


@dataclass(frozen=True)
class StudentTraining:
    """One student to train in `folder`, before the number of epochs is known.

    config: the session's, with distillation switched off where nothing can be learnt from it. create: makes
    the student; every call gives the same weights. name: how the lines of its epochs begin, if it is not the
    student.
    """

    session: Session
    dataset: Dataset
    config: ResolvedConfig
    folder: Path
    teacher: Teacher | None
    soft_labels: SoftLabelStore | None
    create: Callable[[], Student]
    identity: dict[str, Any]
    name: str = ""

    @classmethod
    def of(
        cls,
        session: Session,
        dataset: Dataset,
        folder: Path,
        teacher: Teacher | None,
        soft_labels: SoftLabelStore | None = None,
    ) -> StudentTraining:
        """The session's student, distilled from a live `teacher`, unadjusted, or from `soft_labels`."""
        config = session.config
        teacher = None if teacher is None else teacher.unadjusted()
        if teacher is None and soft_labels is None:
            config = _without_teacher(config)
        elif teacher is not None and config.distillation.feature_weight > 0:
            by_maps = config.distillation.features == "maps"
            if not (teacher.card.map_channels if by_maps else teacher.embedding_size):
                what = "feature maps" if by_maps else "embedding"
                log.info(f"feature distillation is off: the teacher {teacher.card.name} has no {what}")
                config = config.override({"distillation.feature_weight": 0.0})
        identity = {"data": dataset.fingerprint, "settings": config.affects_results()}
        if soft_labels is not None:
            identity["labels"] = soft_labels.id

        def create() -> Student:
            return create_student(config, len(dataset.classes))[0]

        return cls(session, dataset, config, folder, teacher, soft_labels, create, identity)

    @classmethod
    def baseline_of(cls, session: Session, folder: Path) -> StudentTraining:
        """The same student trained on labels alone."""
        return replace(cls.of(session, session.dataset, folder, None), name="baseline")

    def planned(self, epochs: int, teacher: ModelResult | None) -> str:
        """What is going to be trained, in words."""
        student, distillation = self.config.student, self.config.distillation
        what = f"the {self.name}" if self.name else f"the student ({student.name})"
        told = f"{epochs} epoch{'s' if epochs > 1 else ''} of {what}"
        if distillation.mode == "none":
            return f"{told}, learning from the labels"
        by = teacher.name if teacher is not None else "a teacher"
        taught = distillation.distilled_epochs(epochs)
        if taught >= epochs:
            return f"{told}, taught by {by}"
        return f"{told}, taught by {by} for the first {taught} and learning from the labels alone after that"

    @property
    def sampler(self) -> Sampler:
        """The batches of every epoch; with unlabelled images only if a teacher labels them."""
        taught = self.teacher is not None or self.soft_labels is not None
        return self.dataset.sampler(self.config.train, self.config.data, unlabeled=taught)

    @property
    def adjustment(self) -> Adjustment:
        """What is added to logits in the losses, for uneven classes."""
        if self.config.train.balance == "none":
            return Adjustment()
        counts = torch.from_numpy(self.dataset.train.images.counts())
        if self.teacher is not None:
            fitted = self.teacher.card.fitted
        else:
            fitted = self.soft_labels is not None and self.soft_labels.from_fitted_teacher
        balance, mode = self.config.train.balance, self.config.distillation.mode
        return adjustment(balance, counts, mode, fitted_teacher=fitted)

    def trainer(self, epochs: int, deadline: float | None = None) -> Trainer:
        """A new trainer of a new student, for so many epochs."""
        config, dataset = self.config, self.dataset
        self.folder.mkdir(parents=True, exist_ok=True)
        student = self.create().to(self.session.device)
        objective = Objective(
            config.distillation,
            config.train,
            dataset.task,
            teacher=self.teacher,
            soft_labels=self.soft_labels,
            adjustment=self.adjustment,
        )
        views = self.session.views(dataset)
        val, device = dataset.val, self.session.device
        stem_outputs: list[Tensor] | None = [] if frozen_hybrid(student) is not None else None
        return Trainer(
            student,
            objective,
            TrainingData(views, self.sampler, config.data.workers, dataset.pool.images.paths),
            Validation(
                partial(_evaluated, val=val, device=device, stem_outputs=stem_outputs),
                len(val.images),
                _CHOSEN_BY[config.train.metric],
            ),
            train=replace(config.train, epochs=epochs),
            optim=config.optim,
            folder=self.folder,
            identity=self.identity,
            init_features=config.student.initial_weights != "none",
            deadline=deadline,
        )

    def run(
        self,
        epochs: int,
        teacher: ModelResult | None,
        data: Path,
        resume: bool,
        title: str,
        deadline: float | None = None,
    ) -> results.TrainedStudent | None:
        """Trains until `deadline` at most, measures, and writes `config.json` and the weights.

        Returns None in a process that is not the main one, which leaves measuring to it.
        """
        trainer = self.trainer(epochs, deadline)
        plan = {
            "epochs": epochs,
            "steps": trainer.total_steps,
            "why_student": self.session.config.reasons,
        }
        if distributed.is_main():
            described = describe_run(self.config, self.dataset, trainer.student, teacher, plan, data)
            write_json(self.folder / "config.json", described)
        lines = self.name
        return train_and_measure(trainer, self.config.student.name, self.dataset, resume, title, lines)


def _evaluated(
    student: Student, *, val: Split, device: torch.device, stem_outputs: list[Tensor] | None
) -> dict[str, Any]:
    """The metrics of a student; each process evaluates its share of the images."""
    found = evaluate_student(student, val, device, shared=True, stem_outputs=stem_outputs)
    return distributed.from_main(lambda: found.metrics().to_dict())


def _without_teacher(config: ResolvedConfig) -> ResolvedConfig:
    """The same training on labels alone."""
    return replace(config, distillation=replace(config.distillation, mode="none", feature_weight=0.0))


def train_and_measure(
    trainer: Trainer, name: str, dataset: Dataset, resume: bool, title: str, lines: str = ""
) -> results.TrainedStudent | None:
    """Trains to the end, keeps the better of raw and averaged weights, measures and saves them.

    title: of the progress bar. lines: how the lines of epochs begin. Returns None in a process that is not
    the main one.
    """
    epochs = trainer.schedule.epochs
    done = trainer.resume() if resume else 0
    with log.progress_bar(title, trainer.inputs.views_before(trainer.total_steps)) as advance:
        advance(trainer.inputs.views_before(done))
        terminal = EpochLines(
            advance, epochs, METRICS[trainer.train.metric], trainer.inputs.learns_from_teacher, lines
        )
        settings = trainer.identity.get("settings", {})
        names = trainer.train.log if distributed.is_main() else ()
        with trackers(names, trainer.folder, settings) as curves:
            trainer.run([terminal, *curves])
    if not distributed.is_main():
        return None
    share_done = trainer.state.step / trainer.total_steps
    if share_done < 1:
        why = f"{trainer.train.patience} evaluations without a lower validation loss"
        if trainer.late:
            why = "the time budget is used up; --resume trains the rest"
        of = "the only epoch" if epochs == 1 else f"{epochs} epochs"
        log.info(f"stopped after {share_done * epochs:.2g} of {of}: {why}")
    weights = keep_better_weights(trainer)
    trainer.student.fold_layer_scale()
    save_model(trainer.folder / "model.safetensors", trainer.student)
    with log.activity("evaluating"):
        measured, output = results.measure_student(trainer.student, name, dataset, trainer.device)
    images, seconds = trainer.inputs.views_before(trainer.state.step), trainer.state.seconds
    cost = TrainingResult(
        seconds=seconds,
        images_per_s=images / seconds,
        epochs=max(1, round(epochs * share_done)),
        images=images,
    )
    return results.TrainedStudent(measured, output, cost, weights)


def keep_better_weights(trainer: Trainer) -> Literal["ema", "raw"]:
    """Leaves the better weights in the student, by validation loss, which is less noisy than a score."""
    last = trainer.state.metrics[-1]
    raw, averaged = trainer.validation.loss(last["val"]), trainer.validation.loss(last["val_ema"])
    if trainer.state.best is not None:
        averaged = trainer.state.best.loss
    if averaged <= raw:
        trainer.student.load_state_dict(trainer.state.averaged)
        return "ema"
    return "raw"
