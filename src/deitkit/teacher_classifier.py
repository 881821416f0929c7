"""A fitted teacher put to use, for where it and not the student is the one to deploy."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .classifier import ImageClassifier
from .errors import SettingError
from .inference.device import resolve_inference_device
from .models.deit import probabilities_of
from .run_folder import TEACHER_FOLDER, holds_teacher, read_settings, run_of_teacher
from .soft_labels.manifest import FILE as MANIFEST
from .soft_labels.manifest import read_manifest
from .tasks import Task
from .teachers.saved import read_teacher
from .teachers.teacher import Teacher


def load_teacher(folder: str | Path, device: str = "auto", *, code: str | None = None) -> ImageClassifier:
    """The fitted teacher in `folder` as a classifier of images.

    A teacher kept by a run or by stored labels sees images as validation measured it there; one by itself
    takes its own input size and crop (of an ensemble, the first member's). code: python:MODULE:FUNCTION that
    the teacher may run; without it, a teacher that needs one is refused. Raises DeitkitError where there is
    none.
    """
    folder = Path(folder).resolve()  # of a link, and of ".", what is around it must be seen
    if not holds_teacher(folder):
        raise SettingError(f"{folder} holds no fitted teacher; give RUN/teacher of a run that kept one")
    where = resolve_inference_device(device)
    teacher = read_teacher(folder, device=where, code=[code] if code else ())
    own = teacher.card.members[0].preprocessing
    image_size, crop = _measured_view(folder) or (own.image_size, own.crop)
    task: Task = "multilabel" if teacher.card.multilabel else "multiclass"
    return ImageClassifier(
        classes=teacher.card.classes,
        task=task,
        image_size=image_size,
        crop=crop,
        device=where,
        backend=_TeacherBackend(teacher, task),
    )


def _measured_view(folder: Path) -> tuple[tuple[int, int], float] | None:
    """Height and width, and crop, of the validation views of what keeps the teacher in `folder`."""
    keeper = folder.parent
    if folder.name == TEACHER_FOLDER and (keeper / MANIFEST).exists():
        config = read_manifest(keeper).config
        return config.student.image_size, config.data.eval_crop
    run = run_of_teacher(folder)
    if run is None:
        return None
    view = read_settings(run)["preprocessing"]
    return tuple(view["image_size"]), view["crop"]


class _TeacherBackend:
    """Views (B, 3, H, W) in [0, 1] -> probabilities and logits, (B, K)."""

    def __init__(self, teacher: Teacher, task: Task):
        self.teacher, self.task = teacher, task

    @property
    def name(self) -> str:
        return self.teacher.backend

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        logits = self.teacher(views).logits
        return probabilities_of(logits, self.task), logits
