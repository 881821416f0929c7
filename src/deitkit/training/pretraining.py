"""A start for students: what an ImageNet teacher says of images without labels, learnt beforehand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import log, recipes
from ..config import dotted
from ..data.dataset import Dataset, Split, open_data
from ..data.folder import find_unlabeled
from ..data.image_set import ImageSet
from ..data.splits import Splits
from ..errors import SettingError
from ..evaluation.evaluate import evaluate_teacher
from ..inference.device import resolve_device
from ..io import write_json
from ..ranges import refuse_out_of_range
from ..run_folder import TEACHER_FOLDER
from ..teachers.fit import pretrained_head_teacher
from ..teachers.saved import kept_teacher
from ..teachers.spec import check_spec
from ..teachers.teacher import Teacher
from . import results
from .budget import planned_epochs
from .run import Run, begun_run, claim_folder, create_trainer, refuse_other_images, train_one
from .student import choose_student, resolve_initial_weights

_HELD_OUT, _MOST_HELD_OUT = 0.02, 1000
_HOLDS_OUT = f"{100 * _HELD_OUT:.0f} % of the images, at most {_MOST_HELD_OUT}, are held out"
_OWN_HEAD = "the teacher answers with the head that its weights came with"
# Settings that mean nothing without labels, and why.
_WITHOUT_USE = {
    "train.baseline": "a baseline would learn from labels alone",
    "data.train_fraction": "it learns from all images; give a folder with fewer",
    "data.eval_fraction": _HOLDS_OUT,
    "data.val_fraction": _HOLDS_OUT,
    "data.split": _HOLDS_OUT,
    "data.unlabeled": "no image's label is looked at; give that folder beside the others",
    "data.unlabeled_share": "no image's label is looked at",
    "distillation.distill_until": "without labels nothing is left to learn once the answers end",
    "teacher.soft_labels": "a live teacher answers",
    "teacher.fit": _OWN_HEAD,
    "teacher.probe_views": _OWN_HEAD,
}


def pretrain(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str = "pretrain",
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Trains a student on all images under `folders`, at any depth, without their labels.

    The student learns the teacher's answers over ImageNet's classes and, by guidance, its feature maps;
    `student.initial_weights` of other runs takes `out`. A fiftieth of the images, at most 1000, is held out: what
    is called top-1 is there how often student and teacher name the same class. settings as for
    `deitkit.train`. Raises DeitkitError for anything the caller can mend, Interrupted when a signal
    stopped training after its state was saved.
    """
    started = time.monotonic()
    out = Path(out)
    changes = dotted(settings)
    config = recipes.get(recipe).override(changes)
    _refuse_without_use(changes)
    refuse_out_of_range(config)
    if config.distillation.mode == "none" or config.teacher.spec == "none":
        raise SettingError("images without labels need a teacher to answer them; give a --teacher")
    device = resolve_device(config.train.device)
    check_spec(config.teacher.spec)
    splits = _split([Path(folder) for folder in folders], config.data.split_seed)
    config, why = choose_student(config, splits, device)
    saved = begun_run(out, resume)
    config = resolve_initial_weights(config, saved)
    claim_folder(out, config, saved)
    log.info(f"{len(splits.train)} images, and {len(splits.val)} held out")
    log.info(why)
    opened = open_data(splits, config)
    size = config.student.image_size
    teacher = kept_teacher(
        out / TEACHER_FOLDER,
        config.teacher,
        device,
        lambda: pretrained_head_teacher(config.teacher, None, student_size=size, device=device),
    )
    data = _answered(opened, teacher, device)
    refuse_other_images(out, data)
    opened.write_lists(out)
    facts, _ = results.measure_teacher(teacher, data.val, device)
    trainer = create_trainer(out, config, data, teacher, device)
    epochs = planned_epochs(out, trainer, None, config, started)
    plan = {"epochs": epochs, "steps": epochs * trainer.steps_per_epoch, "why_student": why}
    root = Path(*folders) if len(folders) == 1 else out
    write_json(out / "config.json", results.describe_run(config, data, trainer.model, facts, plan, root))
    trained, _ = train_one(trainer, epochs, data, device, resume, "pre-training")
    found = results.assemble(trained, facts, data, time.monotonic() - started)
    found["verdict"] = (
        f"Start students from it with --init {out}: it names the teacher's class on "
        f"{found['student']['top1']:.1f} % of {len(data.val.images)} images that were held out."
    )
    del found["confusion"]  # a thousand classes squared
    write_json(out / "results.json", found)
    return Run(out, found)


def _refuse_without_use(changes: Mapping[str, Any]) -> None:
    for key, why in _WITHOUT_USE.items():
        if key in changes:
            raise SettingError(f"pretrain has no use for {key}: {why}; leave it out")


def _split(folders: Sequence[Path], seed: int) -> Splits:
    found, *others = (find_unlabeled(folder, ())[0] for folder in folders)
    for other in others:
        found = found.joined(other)
    order = np.random.RandomState(seed).permutation(len(found))  # a frozen stream, as for other splits
    held = min(_MOST_HELD_OUT, max(1, round(len(found) * _HELD_OUT)))
    if held == len(found):
        raise SettingError(f"{folders[0]} holds one image; give a folder with thousands")
    train, val = (found.subset(np.sort(part)) for part in (order[held:], order[:held]))
    return Splits(train, val, None, f"without labels, {held} held out, seed {seed}")


def _answered(opened: Dataset, teacher: Teacher, device: torch.device) -> Dataset:
    """All images to learn from, and the held-out ones with the teacher's classes as labels."""
    said = evaluate_teacher(teacher, opened.val, device).argmax(1).numpy()
    classes = teacher.card.classes

    def named(images: ImageSet, labels: np.ndarray) -> ImageSet:
        return replace(images, labels=labels, classes=classes)

    pool = Split(named(opened.pool.images, opened.pool.images.labels), opened.pool.store)
    val = Split(named(opened.val.images, said), opened.val.store)
    splits = replace(opened.splits, train=pool.images, val=val.images)
    return replace(opened, splits=splits, train=pool, pool=pool, val=val)
