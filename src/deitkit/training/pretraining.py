"""`deitkit.pretrain`: initial weights for students, learnt from unlabelled images and an ImageNet teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from .. import distributed, recipes
from ..config import DataConfig, dotted
from ..data.dataset import Dataset, Split
from ..data.image_set import ImageSet
from ..data.splits import Splits
from ..data.unlabeled import find_unlabeled
from ..errors import SettingError
from ..evaluation.evaluate import teacher_logits
from ..io import read_json, write_json
from ..keywords import Keywords
from ..models import VARIANTS
from ..run_folder import RESULTS, TEACHER_FOLDER, results_to_json
from ..run_schema import RunResults
from ..teachers.fit import pretrained_head_teacher
from ..teachers.saved import kept_teacher
from ..teachers.teacher import Teacher
from . import results
from .budget import plan
from .run import Run
from .session import open_session, refuse_other_images
from .student_training import StudentTraining
from .trackers import check_trackers

_HELD_OUT, _MOST_HELD_OUT = 0.02, 1000
_HOLDS_OUT = f"{100 * _HELD_OUT:.0f} % of the images, at most {_MOST_HELD_OUT}, are held out"
_PRETRAINED_HEAD = "the teacher uses its pretrained head"
# Settings without a meaning here, and why.
_UNUSED = {
    "train.balance": "labels are not used",
    "train.metric": "labels are not used",
    "train.baseline": "a baseline learns from labels alone",
    "data.train_fraction": "all images are used; give a folder with fewer",
    "data.eval_fraction": _HOLDS_OUT,
    "data.val_fraction": _HOLDS_OUT,
    "data.split": _HOLDS_OUT,
    "data.group": _HOLDS_OUT,
    "data.relabel": "labels are not used",
    "data.exclude": "all images are used",
    "data.unlabeled": "labels are not used; give that folder beside the others",
    "data.unlabeled_share": "labels are not used",
    "distillation.distill_until": "without labels nothing is left to learn after distillation",
    "teacher.soft_labels": "the teacher is live",
    "teacher.fit": _PRETRAINED_HEAD,
    "teacher.probe_views": _PRETRAINED_HEAD,
}


def pretrain(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str | None = None,
    resume: bool = False,
    **settings: Unpack[Keywords],
) -> Run:
    """Trains a student on all images under `folders`, at any depth, without their labels.

    The student learns the teacher's outputs over ImageNet's classes, and its feature maps or its embedding;
    `student.initial_weights` of other runs takes `out`. 2 % of the images, at most 1000, are held out; top-1
    is the share of them for which student and teacher predict the same class.

    recipe: None for `pretrain`, or `pretrain-hybrid` if the student is a hybrid. settings: as for
    `deitkit.train`. Raises a DeitkitError for anything the caller can fix, Interrupted if a signal stopped
    training after its state was saved.
    """
    out, changes, resume = Path(out), dotted(settings), resume or distributed.restarted()
    config = recipes.get(recipe or _recipe_for(changes)).override(changes)
    _refuse_unused(changes)
    if not config.has_live_teacher:
        raise SettingError("unlabelled images need a teacher to label them; give a --teacher")
    check_trackers(config.train.log)
    paths = [Path(folder) for folder in folders]
    session = open_session(config, partial(_split, paths), out=out, resume=resume)
    with distributed.main_first():
        teacher = kept_teacher(
            out / TEACHER_FOLDER,
            session.config.teacher,
            session.device,
            lambda: pretrained_head_teacher(
                session.config.teacher,
                None,
                student_size=session.config.view_size,
                device=session.device,
            ).unadjusted(),
        )
    dataset, measured = _labelled_by(teacher, session.dataset, session.device), None
    if distributed.is_main():
        refuse_other_images(out, dataset)
        session.dataset.write_lists(out)
        measured, _ = results.measure_teacher(teacher, dataset.val, session.device)

    student = StudentTraining.of(session, dataset, out, teacher)
    planned = plan(out, session, [student])
    root = paths[0] if len(paths) == 1 else out
    result = None if measured is None else measured.result
    trained = student.run(planned.epochs, result, root, resume, "pre-training", planned.deadlines[0])
    if trained is not None:
        found = results.assemble(trained, measured, None, dataset, session.seconds)
        write_json(out / RESULTS, results_to_json(_judged(found, out, dataset)))
    distributed.barrier()
    return Run(out, read_json(out / RESULTS))


def _recipe_for(changes: Mapping[str, Any]) -> str:
    student = VARIANTS.get(changes.get("student.name", ""))
    return "pretrain-hybrid" if student is not None and student.hybrid else "pretrain"


def _judged(found: RunResults, out: Path, dataset: Dataset) -> RunResults:
    """The results without what has no meaning for labels that are the teacher's."""
    return replace(
        found,
        confusion=None,  # a thousand classes squared
        teacher=None if found.teacher is None else replace(found.teacher, confusion=None),
        comparison=None,  # the labels are the teacher's
        recommended=None,
        verdict=f"Start students from it with --init {out}: it predicts the teacher's class for "
        f"{found.student.scores['top1']:.1f} % of {len(dataset.val.images)} held-out images.",
    )


def _refuse_unused(changes: Mapping[str, Any]) -> None:
    for key, why in _UNUSED.items():
        if key in changes:
            raise SettingError(f"pretrain does not use {key}: {why}; leave it out")


def _split(folders: Sequence[Path], config: DataConfig) -> Splits:
    """All images under `folders` without labels, some of them held out."""
    found, *others = (find_unlabeled(folder, ())[0] for folder in folders)
    for other in others:
        found = found.joined(other)
    order = np.random.RandomState(config.split_seed).permutation(len(found))
    held = min(_MOST_HELD_OUT, max(1, round(len(found) * _HELD_OUT)))
    if held == len(found):
        raise SettingError(f"{folders[0]} holds one image; give a folder with thousands")
    train, val = (found.subset(np.sort(part)) for part in (order[held:], order[:held]))
    return Splits(train, val, None, f"without labels, {held} held out, seed {config.split_seed}")


def _labelled_by(teacher: Teacher, opened: Dataset, device: torch.device) -> Dataset:
    """The dataset with the teacher's classes, and its predictions as labels of the held-out images."""
    predicted = distributed.from_main(lambda: teacher_logits(teacher, opened.val, device).argmax(1).numpy())
    classes = teacher.card.classes

    def named(images: ImageSet, labels: np.ndarray) -> ImageSet:
        return replace(images, labels=labels, classes=classes)

    pool = Split(named(opened.pool.images, opened.pool.images.labels), opened.pool.store)
    val = Split(named(opened.val.images, predicted), opened.val.store)
    splits = replace(opened.splits, train=pool.images, val=val.images)
    return replace(opened, splits=splits, train=pool, pool=pool, val=val)
