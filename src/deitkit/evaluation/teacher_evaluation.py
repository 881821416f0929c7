"""`deitkit teacher eval`: a teacher measured on whole images, with its own preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import log
from ..config import Config, dotted
from ..data.decode import center_crop, open_rgb
from ..data.image_set import ImageSet
from ..data.splits import eval_images
from ..errors import DataError
from ..inference.device import resolve_device
from ..preprocessing import Preprocessing
from ..teachers.fit import pretrained_head_teacher
from ..teachers.spec import check_spec, parse
from ..teachers.teacher import Teacher, TeacherMember
from .evaluate import Outputs, evaluate
from .metrics import Interval, top_k, wilson_interval
from .run_images import FileBatches, without_training_images
from .speed import images_per_s

_SPEED_BATCH = 32


@dataclass(frozen=True)
class TeacherEvaluation:
    """A teacher on labelled images.

    top1, interval: in percent, over the classes. top1_of_all_outputs, outputs: over all outputs of its head,
    and how many there are; None for an ensemble. preprocessing: of each member. skipped: files that could not
    be read.
    """

    teacher: str
    how: str
    images: int
    classes: int
    top1: float
    interval: Interval
    top1_of_all_outputs: float | None
    outputs: int | None
    images_per_s: float
    backend: str
    params: int
    preprocessing: tuple[Preprocessing, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of `deitkit teacher eval --json`."""
        return dataclasses.asdict(self)


def evaluate_teacher(
    spec: str, data: str | Path, *, device: str = "auto", batch_size: int = 32, **settings: Any
) -> TeacherEvaluation:
    """Top-1 of a teacher with its pretrained or fitted head on whole images, at its own size and crop.

    data: a folder with one sub-folder per class, or val/ (or valid/, validation/) with these. settings: as
    for `deitkit.train`; only the section `teacher` counts. Raises WeightsError if the teacher does not know
    the classes.
    """
    changes = dotted(settings)
    config = Config().override({"teacher.spec": spec, **changes}).teacher
    check_spec(config.spec)
    folder = Path(data)
    labelled = eval_images(folder)
    if labelled.task == "multilabel":
        raise DataError(
            f"teacher eval needs one class per image, and {folder} is multilabel; "
            "deitkit teacher fit measures a teacher on such images"
        )
    images, notes = _unseen(labelled, config.spec)
    for note in notes:
        log.info(note)
    where = resolve_device(device)
    teacher = pretrained_head_teacher(config, images.classes, student_size=None, device=where)
    with log.progress_bar("evaluating", len(images)) as advance:
        files = FileBatches(images, open_rgb, batch_size, advance)
        found = evaluate(_predictor(teacher, where), files, advance)
    n, whole = len(found.labels), found.outputs.get("all_outputs")
    top1 = top_k(found.outputs["logits"], found.labels, 1)
    return TeacherEvaluation(
        teacher=teacher.card.name,
        how=teacher.card.how,
        images=n,
        classes=len(images.classes),
        top1=top1,
        interval=wilson_interval(top1 / 100, n),
        top1_of_all_outputs=None if whole is None else _top1_of_all(teacher, whole, found.labels),
        outputs=None if whole is None else whole.shape[1],
        images_per_s=_speed(teacher, where),
        backend=teacher.backend,
        params=teacher.card.params,
        preprocessing=tuple(member.preprocessing for member in teacher.card.members),
        skipped=tuple(path for path, _ in files.skipped),
        notes=tuple(notes),
    )


def _unseen(images: ImageSet, spec: str) -> tuple[ImageSet, list[str]]:
    """The images that a run's teacher was not fitted on; for other fitted teachers a note."""
    for member in parse(spec):
        if member.source != "fitted":
            continue
        return without_training_images(Path(member.model), images)
    return images, []


def _predictor(teacher: Teacher, device: torch.device) -> Callable[[list[Image.Image]], Outputs]:
    """Whole images -> `logits` of the classes, and `all_outputs` of a teacher with one member."""

    def predict(images: list[Image.Image]) -> Outputs:
        answers = [member.all_outputs(_pixels(member, images, device))[0] for member in teacher.members]
        class_logits = [m.class_logits(a) for m, a in zip(teacher.members, answers, strict=True)]
        whole = {"all_outputs": answers[0]} if len(answers) == 1 else {}
        return {"logits": teacher.combine(class_logits), **whole}

    return predict


def _pixels(member: TeacherMember, images: list[Image.Image], device: torch.device) -> Tensor:
    """(B, 3, H, W) in [0, 1], with the member's own preprocessing of whole images."""
    view = member.card.preprocessing
    rows = [center_crop(i, view.image_size, view.crop, interpolation=view.interpolation) for i in images]
    return torch.from_numpy(np.stack(rows)).to(device).float() / 255


def _top1_of_all(teacher: Teacher, outputs: Tensor, labels: Tensor) -> float:
    """Percent of images whose class is the highest of all outputs (n, ...) of the one member."""
    columns = teacher.members[0].card.columns
    places = labels if columns is None else torch.tensor(columns)[labels]
    return 100 * int((outputs.argmax(1) == places).sum()) / len(labels)


def _speed(teacher: Teacher, device: torch.device) -> float:
    """Images per second at batch 32 and the first member's size, without decoding."""
    size = teacher.card.members[0].preprocessing.image_size
    batch = torch.rand(_SPEED_BATCH, 3, *size, device=device)
    return images_per_s(lambda: teacher(batch), len(batch))
