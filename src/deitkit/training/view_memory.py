"""What frozen networks made of views that later epochs show again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import distributed
from ..config import ResolvedTrain
from ..data.loader import TrainingViews
from ..data.sampler import Sampler
from ..distillation.objective import Objective
from ..models import Student
from ..models.conv_stem import ConvStem
from ..teachers.teacher import TeacherOutput
from .frozen_stem import frozen_hybrid

_MOST_BYTES = 2e9


@dataclass(frozen=True)
class FrozenOutputs:
    """Of a batch: the output of a hybrid's stem (B, 192, h, w), and the teacher's, if it was asked."""

    stem: Tensor
    teacher: TeacherOutput | None

    def row(self, i: int) -> FrozenOutputs:
        """The outputs for one view, without the dimension of the batch."""
        teacher = self.teacher
        if teacher is not None:
            embedding = None if teacher.embedding is None else teacher.embedding[i]
            teacher = TeacherOutput(teacher.logits[i], (), embedding)
        return FrozenOutputs(self.stem[i], teacher)


class ViewMemory:
    """Outputs of the frozen stem and the teacher by the keys of views, without the teacher's feature maps.

    A view costs as many bytes as these tensors have, some 20 kB at 128 pixels.
    """

    def __init__(self) -> None:
        self._known: dict[int, FrozenOutputs] = {}

    def remember(self, keys: NDArray[np.uint64], outputs: FrozenOutputs) -> None:
        """Keeps the outputs for the views of `keys` (B,)."""
        self._known |= {key: outputs.row(i) for i, key in enumerate(keys.tolist())}

    def recall(self, keys: NDArray[np.uint64], *, taught: bool) -> FrozenOutputs | None:
        """The outputs for the views of `keys` (B,); None unless all are known.

        taught: whether the teacher's are wanted.
        """
        rows = [self._known.get(key) for key in keys.tolist()]
        known = [row for row in rows if row is not None and (row.teacher is not None or not taught)]
        if len(known) < len(rows):
            return None
        stem = torch.stack([row.stem for row in known])
        if not taught:
            return FrozenOutputs(stem, None)
        teachers = [row.teacher for row in known if row.teacher is not None]
        embeddings = [teacher.embedding for teacher in teachers if teacher.embedding is not None]
        logits = torch.stack([teacher.logits for teacher in teachers])
        return FrozenOutputs(stem, TeacherOutput(logits, (), torch.stack(embeddings) if embeddings else None))


def view_memory(
    student: Student, objective: Objective, views: TrainingViews, sampler: Sampler, train: ResolvedTrain
) -> ViewMemory | None:
    """A memory for a run in which epochs show views again; None if nothing would be remembered.

    That is so if the stem is trained, if more than a view decides what is made of it (mixing, several sizes,
    several processes), if the teacher's maps are learnt from, or if the memory would hold too much.
    """
    hybrid = frozen_hybrid(student)
    if hybrid is None or sampler.views is None or train.epochs <= sampler.views:
        return None
    mixed = views.augment.mixup > 0 or views.augment.cutmix > 0
    maps = objective.features is not None and bool(objective.features.blocks)
    several = views.device.type != "cpu" or distributed.world_size() > 1
    if mixed or maps or several or train.start_size is not None:
        return None
    height, width = hybrid.grid_size
    numbers = ConvStem.channels * height * width + hybrid.num_classes
    if objective.teacher is not None:
        numbers += objective.teacher.embedding_size
    return ViewMemory() if 4 * numbers * sampler.views * len(views.labels) <= _MOST_BYTES else None
