"""`deitkit teacher eval`: how good a teacher is on files, each seen with its own preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import log
from ..config import Config, dotted
from ..data.cache import refuse_many_unreadable
from ..data.decode import UnreadableImage, center_crop, open_rgb
from ..data.folder import scan
from ..data.image_set import ImageSet
from ..data.splits import eval_folder
from ..data.table import is_table
from ..errors import DataError
from ..inference.device import resolve_device
from ..run_folder import run_of_teacher
from ..teachers.fit import pretrained_head_teacher
from ..teachers.spec import check_spec, parse
from ..teachers.teacher import Teacher, TeacherMember
from .metrics import top_k, wilson_interval
from .run_images import without_training_images
from .throughput import images_per_s

_SPEED_BATCH = 32


def evaluate_teacher(
    spec: str, data: str | Path, *, device: str = "auto", batch_size: int = 32, **settings: Any
) -> dict[str, Any]:
    """Top-1 of a teacher as it is, over the classes of `data`: whole images, its own size and crop.

    `data` has one sub-folder per class, or val/ (or valid/, validation/) with these. settings as for
    `deitkit.train`; those of the section `teacher` count. Raises DeitkitError where the teacher does not
    know the classes.
    """
    changes = dotted(settings)
    config = Config().override({"teacher.spec": spec, **changes}).teacher
    check_spec(config.spec)
    folder = Path(data)
    if is_table(folder):
        raise DataError(
            f"teacher eval needs one class an image, and {folder} has several labels; "
            "deitkit teacher fit measures a teacher on such images"
        )
    images, notes = _unseen(scan(eval_folder(folder), folder, at_least=1), config.spec)
    for note in notes:
        log.info(note)
    where = resolve_device(device)
    teacher = pretrained_head_teacher(config, images.classes, student_size=None, device=where)
    logits: list[Tensor] = []
    whole_right, kept = 0, []
    skipped: list[tuple[str, str]] = []
    with log.progress_bar("evaluating", len(images)) as advance:
        for first in range(0, len(images), batch_size):
            pictures, labels = [], []
            for i in range(first, min(first + batch_size, len(images))):
                try:
                    pictures.append(open_rgb(images.full_path(i)))
                    labels.append(int(images.labels[i]))
                except UnreadableImage as error:
                    skipped.append((images.paths[i], error.reason))
            if pictures:
                answers = [
                    member.whole_answer(_pixels(member, pictures, where))[0] for member in teacher.members
                ]
                parts = [m.of_classes(a) for m, a in zip(teacher.members, answers, strict=True)]
                logits.append(teacher.joined(parts).cpu())
                whole_right += _right_of_all(teacher, answers[0].cpu(), torch.tensor(labels))
                kept += labels
            advance(min(batch_size, len(images) - first))
    refuse_many_unreadable(skipped, len(images))
    top1 = top_k(torch.cat(logits), torch.tensor(kept), 1)
    return {
        "teacher": teacher.card.name,
        "how": teacher.card.how,
        "images": len(kept),
        "classes": len(images.classes),
        "top1": top1,
        "interval": wilson_interval(top1 / 100, len(kept)),
        "top1_of_all_outputs": 100 * whole_right / len(kept) if len(teacher.members) == 1 else None,
        "outputs": answers[0].shape[1] if len(teacher.members) == 1 else None,
        "images_per_s": _speed(teacher, where),
        "backend": teacher.backend,
        "params": teacher.card.params,
        "preprocessing": [vars(member.preprocessing) for member in teacher.card.members],
        "skipped": [path for path, _ in skipped],
        "notes": notes,
    }


def _unseen(images: ImageSet, spec: str) -> tuple[ImageSet, list[str]]:
    """The images that a run did not fit its teacher on; of other fitted teachers a word of warning."""
    for member in parse(spec):
        if member.kind != "fitted":
            continue
        run = run_of_teacher(Path(member.rest))
        if run is not None:
            return without_training_images(run, images)
        return images, [f"{member.rest} may have been fitted on some of these images."]
    return images, []


def _pixels(member: TeacherMember, pictures: list[Image.Image], device: torch.device) -> Tensor:
    """(B, 3, H, W) in [0, 1], the way the teacher was trained to see whole images."""
    view = member.card.preprocessing
    rows = [center_crop(p, view.image_size, view.crop, interpolation=view.interpolation) for p in pictures]
    return torch.from_numpy(np.stack(rows)).to(device).float() / 255


def _right_of_all(teacher: Teacher, answer: Tensor, labels: Tensor) -> int:
    """How often the highest of all outputs of the first member is the right one."""
    columns = teacher.members[0].card.columns
    places = labels if columns is None else torch.tensor(columns)[labels]
    return int((answer.argmax(1) == places).sum())


def _speed(teacher: Teacher, device: torch.device) -> float:
    """Images a second at batch 32 and the first member's size, decoding left out."""
    size = teacher.card.members[0].preprocessing.image_size
    batch = torch.rand(_SPEED_BATCH, 3, *size, device=device)
    return images_per_s(lambda: teacher(batch), len(batch))
