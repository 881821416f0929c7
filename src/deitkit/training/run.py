"""`deitkit.train`: a folder of images in, a run folder with a distilled student out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import log, recipes
from ..config import Config, ResolvedConfig, dotted
from ..data.dataset import Dataset, find_splits
from ..data.splits import refuse_out_among_classes
from ..distillation.objective import Objective
from ..errors import SettingError
from ..evaluation.evaluate import evaluate_student
from ..io import read_json_lines, write_json
from ..models import DeiTOutput, Student
from ..report.run_page import write_report
from ..run_folder import TEACHER_FOLDER
from ..soft_labels.replay import refuse_other_views
from ..soft_labels.store import SoftLabelStore, open_soft_labels
from ..soft_labels.student_config import student_settings
from ..tasks import SCORES
from ..teachers.teacher import Teacher
from . import results
from .budget import planned_epochs
from .callbacks import EpochLines, tensorboard_logs
from .resolve import create_student
from .session import Session, open_session, refuse_other_images, saved_config
from .trainer import Trainer, TrainingData, Validation

BASELINE_FOLDER = "baseline"  # in a run's folder


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the content of `results.json`."""

    folder: Path
    results: dict[str, Any]

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def train(
    data: str | Path, out: str | Path, *, recipe: str | None = None, resume: bool = False, **settings: Any
) -> Run:
    """Trains a student on the images in `data` and writes the run folder `out`.

    recipe: a name; None is small-data, or the recipe of `teacher.soft_labels`. settings: "section.key",
    written section__key as in `train__epochs=30`, to value; they override the recipe. Raises a DeitkitError
    for anything the caller can fix, Interrupted if a signal stopped training after its state was saved.
    """
    return train_config(
        Path(data), Path(out), _config(Path(out), recipe, resume, dotted(settings)), resume=resume
    )


def _config(out: Path, recipe: str | None, resume: bool, changes: dict[str, Any]) -> Config:
    """The recipe with `changes`; with stored soft labels, the settings that those decide."""
    soft_labels = changes.get("teacher.soft_labels")
    if not soft_labels:
        return recipes.get(recipe or Config().recipe).override(changes)
    saved = saved_config(out, resume)
    if saved is not None:  # more epochs may have been stored since
        changes = {"train.epochs": saved.train.epochs} | changes
    return student_settings(open_soft_labels(Path(soft_labels)), recipe, changes)


def train_config(data: Path, out: Path, config: Config, *, resume: bool) -> Run:
    """`train` with all settings in one Config."""
    _check_teaching(config)
    refuse_out_among_classes(data, out)
    session = open_session(config, partial(find_splits, data), out=out, resume=resume)
    refuse_other_images(out, session.dataset)
    session.dataset.write_lists(out)

    # The teacher, live or stored.
    soft_labels = _open_soft_labels(session)
    teacher = session.open_teacher(out)
    teacher_facts, by_teacher = None, None
    if soft_labels is not None:
        teacher_facts = soft_labels.manifest.teacher | {"folder": str(soft_labels.folder / TEACHER_FOLDER)}
    if teacher is not None:
        teacher_facts, by_teacher = results.measure_teacher(teacher, session.dataset.val, session.device)
    if teacher_facts is not None:
        results.say_teacher(teacher_facts, session.dataset.val)

    # The student and, if asked for, the baseline.
    student = Training.of(session, session.dataset, out, teacher, soft_labels)
    baseline = Training.baseline_of(session, out / BASELINE_FOLDER) if config.train.baseline else None
    epochs = planned_epochs(out, session, [each for each in (student, baseline) if each is not None])
    trained, output = student.run(epochs, teacher_facts, data, resume, "training")
    if baseline is not None:
        found, _ = baseline.run(epochs, None, data, resume, "training the baseline")
        trained["baseline"] = found["student"]
        write_json(baseline.folder / "results.json", {"student": found["student"]})

    # What came out.
    assembled = results.assemble(trained, teacher_facts, session.dataset, session.seconds)
    results.write_predictions(out / "predictions.csv", session.dataset.val.images, output, by_teacher)
    write_json(out / "results.json", assembled)
    write_report(out)
    return Run(out, assembled)


def _check_teaching(config: Config) -> None:
    """Raises SettingError for a teacher that nothing would be learnt from."""
    if config.distillation.mode == "none" and config.teacher.spec not in ("auto", "none"):
        raise SettingError(
            f"the teacher {config.teacher.spec!r} would teach nothing, since distillation is off; "
            "add --distillation hard or soft, or leave the teacher out"
        )
    if config.train.baseline and not config.has_live_teacher and not config.teacher.soft_labels:
        log.info("without a teacher the baseline is the same training again: leave out --baseline")


def _open_soft_labels(session: Session) -> SoftLabelStore | None:
    """The stored soft labels of the settings, verified, and of these very views; None if there are none."""
    folder, dataset = session.config.teacher.soft_labels, session.dataset
    if folder is None:
        return None
    store, num_images = open_soft_labels(Path(folder)), len(dataset.pool.images)
    store.manifest.refuse_other_data(store.folder, dataset.fingerprint, num_images, dataset.classes)
    refuse_other_views(store, session.views().make)
    with log.progress_bar("checking the soft labels", store.epochs() * store.shards) as advance:
        store.verify(store.epochs(), advance)
    return store


@dataclass(frozen=True)
class Training:
    """One student to train in `folder`, before the number of epochs is known.

    config: the session's, with distillation switched off where nothing can be learnt from it. create: makes
    the student; every call gives the same weights.
    """

    session: Session
    dataset: Dataset
    config: ResolvedConfig
    folder: Path
    teacher: Teacher | None
    soft_labels: SoftLabelStore | None
    create: Callable[[], Student]
    identity: dict[str, Any]

    @classmethod
    def of(
        cls,
        session: Session,
        dataset: Dataset,
        folder: Path,
        teacher: Teacher | None,
        soft_labels: SoftLabelStore | None = None,
    ) -> Training:
        """The session's student, distilled from a live `teacher` or from `soft_labels`."""
        config = session.config
        if teacher is None and soft_labels is None:
            config = _without_teacher(config)
        elif teacher is not None and config.distillation.feature_weight > 0 and not teacher.card.map_channels:
            log.info(f"feature distillation is off: the teacher {teacher.card.name} has no feature maps")
            config = config.override({"distillation.feature_weight": 0.0})
        identity = {"data": dataset.fingerprint, "settings": config.affects_results()}
        if soft_labels is not None:
            identity["labels"] = soft_labels.id

        def create() -> Student:
            return create_student(config, len(dataset.classes))[0]

        return cls(session, dataset, config, folder, teacher, soft_labels, create, identity)

    @classmethod
    def baseline_of(cls, session: Session, folder: Path) -> Training:
        """The same student trained on labels alone."""
        return cls.of(session, session.dataset, folder, None)

    def trainer(self, epochs: int) -> Trainer:
        """A new trainer of a new student, for so many epochs."""
        config, dataset = self.config, self.dataset
        self.folder.mkdir(parents=True, exist_ok=True)
        objective = Objective(
            config.distillation,
            config.train,
            dataset.task,
            teacher=self.teacher,
            soft_labels=self.soft_labels,
        )
        views = self.session.views(dataset)
        sampler = dataset.sampler(config.train, config.data, unlabeled=objective.distilled)
        val, device = dataset.val, self.session.device
        return Trainer(
            self.create().to(device),
            objective,
            TrainingData(views, sampler, config.data.workers, dataset.pool.images.paths),
            Validation(lambda m: evaluate_student(m, val, device).metrics().to_dict(), len(val.images)),
            train=replace(config.train, epochs=epochs),
            optim=config.optim,
            folder=self.folder,
            identity=self.identity,
            init_features=config.student.initial_weights != "none",
        )

    def run(
        self, epochs: int, teacher_facts: dict[str, Any] | None, data: Path, resume: bool, title: str
    ) -> tuple[dict[str, Any], DeiTOutput]:
        """Trains, writes `config.json` and the weights; returns what was measured, and validation logits."""
        trainer = self.trainer(epochs)
        plan = {
            "epochs": epochs,
            "steps": trainer.total_steps,
            "why_student": self.session.config.reasons,
        }
        described = results.describe_run(
            self.config, self.dataset, trainer.student, teacher_facts, plan, data
        )
        write_json(self.folder / "config.json", described)
        return train_and_measure(trainer, self.config.student.name, self.dataset, resume, title)


def _without_teacher(config: ResolvedConfig) -> ResolvedConfig:
    """The same training on labels alone."""
    return replace(config, distillation=replace(config.distillation, mode="none", feature_weight=0.0))


def train_and_measure(
    trainer: Trainer, name: str, dataset: Dataset, resume: bool, title: str
) -> tuple[dict[str, Any], DeiTOutput]:
    """Trains to the end, keeps the better of raw and averaged weights, measures and saves them."""
    epochs = trainer.schedule.epochs
    done = trainer.resume() if resume else 0
    with log.progress_bar(title, trainer.views_before(trainer.total_steps)) as advance:
        advance(trainer.views_before(done))
        terminal = EpochLines(advance, epochs, SCORES[dataset.task])
        trainer.run([terminal, *tensorboard_logs(trainer.folder / "tensorboard")])
    share_done = trainer.state.step / trainer.total_steps
    if share_done < 1:
        log.info(
            f"stopped after {round(share_done * epochs)} of {epochs} epochs: {trainer.train.patience} "
            "evaluations without a lower validation loss"
        )
    weights = _keep_better_weights(trainer)
    trainer.student.fold_layer_scale()
    results.save_model(trainer.folder / "model.safetensors", trainer.student)
    facts, output = results.measure_student(trainer.student, name, dataset, trainer.device)
    images, seconds = trainer.views_before(trainer.state.step), trainer.state.seconds
    speed = {
        "seconds": seconds,
        "images_per_s": images / seconds,
        "epochs": round(epochs * share_done),
        "images": images,
    }
    return {"student": facts, "train": speed, "weights": weights}, output


def _keep_better_weights(trainer: Trainer) -> str:
    """Leaves the better weights in the student, by validation loss, which is less noisy than top-1."""
    last = read_json_lines(trainer.folder / "metrics.jsonl")[-1]
    raw, averaged = last["val"]["loss"], last["val_ema"]["loss"]
    if trainer.state.best is not None:
        averaged = trainer.state.best.loss
    if averaged <= raw:
        trainer.student.load_state_dict(trainer.state.averaged)
        return "ema"
    return "raw"
