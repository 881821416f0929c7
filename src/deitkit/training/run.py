"""`deitkit.train`: a folder of images in, a run folder with a distilled student out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from .. import distributed, log, recipes
from ..config import Config, dotted, flatten
from ..data.dataset import find_splits
from ..data.image_set import ImageSet
from ..data.near_duplicates import duplicates_of
from ..data.splits import Splits, refuse_out_among_classes
from ..data.survey import effect_sentence, leak_warning, survey, with_effect
from ..errors import SettingError
from ..io import read_json, write_json
from ..keywords import Keywords
from ..models import DeiTOutput, joint_probabilities
from ..report.run_page import write_report
from ..run_folder import (
    BASELINE_FOLDER,
    DUPLICATES,
    RESULTS,
    model_to_json,
    read_duplicates,
    results_to_json,
)
from ..soft_labels.manifest import read_manifest
from ..soft_labels.replay import refuse_other_views
from ..soft_labels.store import SoftLabelStore, open_soft_labels
from ..soft_labels.student_config import student_settings
from ..teachers.teacher import Teacher
from . import results
from .budget import plan
from .resolve import recipe_for
from .run_files import write_calibrated, write_validation
from .session import Session, open_session, refuse_other_images, saved_config
from .student_training import StudentTraining
from .teacher_sizes import measure_teacher_sizes
from .trackers import check_trackers

# Settings that a resumed run does not take from the one before.
_OF_A_MACHINE = {"data.workers", "data.cache_gb"}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the content of `results.json`."""

    folder: Path
    results: dict[str, Any]

    def __repr__(self) -> str:
        return f"Run: {self.folder}\n{self.results['verdict']}"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def train(
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | None = None,
    resume: bool = False,
    **settings: Unpack[Keywords],
) -> Run:
    """Trains a student on the images in `data` and writes the run folder `out`.

    recipe: a name; None is the recipe of `teacher.soft_labels`, or else the one that suits the images, see
    `recipe_for`. settings: "section.key", written section__key as in `train__epochs=30`, to value; they
    override the recipe. Raises a DeitkitError for anything the caller can fix, Interrupted if a signal
    stopped training after its state was saved.
    """
    out, changes, resume = Path(out), dotted(settings), resume or distributed.restarted()
    saved = distributed.from_main(lambda: saved_config(out, resume))
    config = distributed.from_main(lambda: _config(recipe, saved, changes))

    def suited(splits: Splits, device: torch.device) -> Config:
        return recipes.get(recipe_for(changes, splits, device)).override(changes)

    if resume and saved is None and distributed.is_main() and not distributed.restarted():
        log.warning(f"{out} holds no run to resume, so that a new one begins")
    named = recipe is not None or saved is not None or bool(changes.get("teacher.soft_labels"))
    return train_config(Path(data), out, config, resume=resume, choose=None if named else suited)


def _config(recipe: str | None, saved: Config | None, changes: dict[str, Any]) -> Config:
    """The recipe, or that of the run to resume, with `changes`; with stored soft labels, the settings that
    those decide."""
    soft_labels = changes.get("teacher.soft_labels")
    if not soft_labels:
        if saved is not None and recipe is None:  # its own settings, unless others are given
            kept = flatten(saved.to_dict()).items()
            own = {key: value for key, value in kept if "." in key and key not in _OF_A_MACHINE}
            return recipes.get(saved.recipe).override(own | changes)
        return recipes.get(recipe or Config().recipe).override(changes)
    if saved is not None:  # more epochs may have been stored since
        changes = {"train.epochs": saved.train.epochs} | changes
    return student_settings(open_soft_labels(Path(soft_labels)), recipe, changes)


def train_config(
    data: Path,
    out: Path,
    config: Config,
    *,
    resume: bool,
    choose: Callable[[Splits, torch.device], Config] | None = None,
) -> Run:
    """`train` with all settings in one Config. choose: as for `open_session`."""
    _check_teaching(config)
    check_trackers(config.train.log)
    refuse_out_among_classes(data, out)
    session = open_session(config, partial(find_splits, data), out=out, resume=resume, choose=choose)
    dataset = session.dataset
    leaking: frozenset[str] = frozenset()
    if distributed.is_main():
        refuse_other_images(out, dataset)
        dataset.write_lists(out)
        leaking = _write_duplicates(out, session, resume)

    # The teacher, live or stored.
    soft_labels = _open_soft_labels(session)
    with log.activity("opening the teacher"), distributed.main_first():  # which fits it; the others read it
        teacher = session.open_teacher(out)
    teachers = _Teachers()
    if distributed.is_main():
        teachers = _measure_teachers(session, out, teacher, soft_labels)
    result = teachers.measured.result if teachers.measured is not None else None

    # The student and, if asked for, the baseline.
    student = StudentTraining.of(session, dataset, out, teacher, soft_labels)
    baseline = StudentTraining.baseline_of(session, out / BASELINE_FOLDER) if config.train.baseline else None
    planned = plan(out, session, [each for each in (student, baseline) if each is not None])
    epochs, (deadline, of_baseline) = planned.epochs, planned.deadlines
    log.info(f"plan: {student.planned(epochs, result)}")
    if baseline is not None and planned.baseline:
        log.info(f"and {baseline.planned(epochs, None)}, to compare")
    trained = student.run(epochs, result, data, resume, "training", deadline)
    trained_baseline = None
    if baseline is not None and planned.baseline:
        title = "training the baseline"
        trained_baseline = baseline.run(epochs, None, data, resume, title, of_baseline)

    # What came out.
    if trained is not None:
        _write_results(out, session, teachers, trained, trained_baseline, leaking)
    distributed.barrier()
    return Run(out, read_json(out / RESULTS))


@dataclass(frozen=True)
class _Teachers:
    """What is known of the teacher. logits: (n, K) on validation. others: the same at other sizes."""

    measured: results.Measured | None = None
    logits: Tensor | None = None
    others: Mapping[str, results.Measured] = field(default_factory=dict)


def _measure_teachers(
    session: Session, out: Path, teacher: Teacher | None, soft_labels: SoftLabelStore | None
) -> _Teachers:
    """Measures the teacher, live or as its soft labels were stored, and at the sizes of its own."""
    dataset, measured, logits = session.dataset, None, None
    if soft_labels is not None:
        measured = results.stored_teacher(soft_labels)
    if teacher is not None:
        with log.activity("evaluating the teacher"):
            val, test = session.for_teacher(dataset.val), dataset.test and session.for_teacher(dataset.test)
            measured, logits = results.measure_teacher(teacher, val, session.device, test)
    if measured is not None:
        results.log_teacher(measured.result, dataset.val)
    return _Teachers(measured, logits, measure_teacher_sizes(session, out, measured))


def _write_results(
    out: Path,
    session: Session,
    teachers: _Teachers,
    trained: results.TrainedStudent,
    baseline: results.TrainedStudent | None,
    leaking: frozenset[str],
) -> None:
    """Compares the models, and writes the results, the predictions and the report.

    leaking: paths of validation images that training images show too.
    """
    dataset, teacher = session.dataset, teachers.measured
    if baseline is not None:
        write_calibrated(out / BASELINE_FOLDER, dataset.val.images, baseline.output)
    with log.activity("measuring speed"):
        found = results.assemble(
            trained,
            teacher,
            None if baseline is None else baseline.measured,
            dataset,
            session.seconds,
            others=teachers.others,
            prefer=session.config.train.prefer,
            metric=session.config.train.metric,
        )
    if found.baseline is not None:
        write_json(out / BASELINE_FOLDER / RESULTS, {"student": model_to_json(found.baseline)})
    of_teacher = None
    if teachers.logits is not None and teacher is not None:
        of_teacher = DeiTOutput(teachers.logits, None, embedding=teacher.embedding)
    val = dataset.val.images
    write_validation(out, val, trained.output, of_teacher)
    _write_effect(out, val, joint_probabilities(trained.output, val.task), leaking)
    write_json(out / RESULTS, results_to_json(found))
    with log.activity("writing the report"):
        write_report(out)


def _write_duplicates(out: Path, session: Session, resume: bool) -> frozenset[str]:
    """Counts the images that show the same, and warns of those that training and measuring share.

    Returns the paths of the latter. A resumed run has counted them before.
    """
    splits, counts = session.splits, read_duplicates(out) if resume else None
    if counts is None or counts.leaking_paths is None:
        duplicates = splits.duplicates or duplicates_of(splits.everything, session.config.data)
        counts = survey(splits, duplicates).counts()
        write_json(out / DUPLICATES, asdict(counts))
    warning = leak_warning(counts, len(splits.val), splits.held_out)
    if warning:
        log.warning(warning)
    return frozenset(counts.leaking_paths or ())


def _write_effect(out: Path, val: ImageSet, joint: Tensor, leaking: frozenset[str]) -> None:
    """Adds to the counts what the images that show the same do to the student's accuracy, and says it."""
    counts = read_duplicates(out)
    if counts is None or val.task == "multilabel":
        return
    right = joint.argmax(1).cpu().numpy() == val.labels
    counts = with_effect(counts, right, np.array([path in leaking for path in val.paths], bool))
    write_json(out / DUPLICATES, asdict(counts))
    sentence = effect_sentence(counts)
    if sentence:
        log.info(sentence)


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
    manifest, num_images = read_manifest(Path(folder)), len(dataset.pool.images)
    manifest.refuse_other_data(Path(folder), dataset.fingerprint, num_images, dataset.classes)
    store = SoftLabelStore(Path(folder), manifest, dataset.class_shares(manifest.config.train.balance))
    refuse_other_views(store, session.views().make)
    if distributed.is_main():
        with log.progress_bar("checking the soft labels", store.epochs() * store.shards) as advance:
            store.verify(store.epochs(), advance)
    return store
