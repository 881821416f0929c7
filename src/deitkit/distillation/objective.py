"""What the student is trained on: labels, a teacher's logits and a teacher's feature maps.

    without a teacher:  loss = label loss
    with a teacher:     loss = (1 - alpha) label loss + alpha distillation loss + feature_weight feature loss

arXiv 2012.12877, equations 2 and 3; feature distillation is Locality Guidance, arXiv 2207.10026.

The label loss is taken on the class token. The distillation loss is taken on the distillation token; by
`distillation.token`, on the class token instead, or as the mean over both. From `distill_until` on, those
heads learn from labels too.
What uneven classes change: see `class_balance`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import DistillationConfig, TrainConfig
from ..models import DeiTOutput, Student
from ..soft_labels.store import SoftLabelStore
from ..tasks import Task
from ..teachers.teacher import Teacher, TeacherOutput
from .class_balance import NO_ADJUSTMENT, Adjustment
from .feature_distillation import EmbeddingDistillation, FeatureDistillation, MapDistillation
from .losses import DISTILLATION_LOSSES, label_loss

PARTS = ("loss", "class", "distill", "features")  # of the loss, as far as a step has them


@dataclass(frozen=True)
class Phase:
    """What a step learns from. uses_teacher: whether the teacher's outputs are needed at all."""

    distill: bool = True
    features: bool = False
    uses_teacher: bool = True


class Objective:
    """The parts of the loss of every step, with the teacher that they need.

    teacher: a live one; soft_labels: its stored outputs instead. Without either, only the label loss remains.
    adjustment: of logits, for uneven classes.
    """

    def __init__(
        self,
        config: DistillationConfig,
        train: TrainConfig,
        task: Task = "multiclass",
        *,
        teacher: Teacher | None = None,
        soft_labels: SoftLabelStore | None = None,
        adjustment: Adjustment = NO_ADJUSTMENT,
    ):
        self.config, self.train, self.task = config, train, task
        self.teacher, self.soft_labels, self.adjustment = teacher, soft_labels, adjustment
        self.features: FeatureDistillation | None = None

    def build(self, student: Student, device: torch.device) -> FeatureDistillation | None:
        """Moves what it needs to the device, and creates the projections of feature distillation, if used;
        they are trained with the student."""
        self.adjustment = self.adjustment.to(device)
        if self.teacher is not None and self.config.feature_weight > 0:
            torch.manual_seed(self.train.seed + 1)
            if self.config.features == "embedding":
                self.features = EmbeddingDistillation(student, self.teacher.embedding_size)
            else:
                self.features = MapDistillation(student, self.teacher.card.map_channels)
            self.features.to(device)
        return self.features

    @property
    def relates_images(self) -> bool:
        """Whether the loss of a micro-batch is no mean over its images."""
        return self.config.mode != "none" and DISTILLATION_LOSSES[self.config.mode].relates_images

    def phase(self, step: int, total_steps: int) -> Phase:
        """What step `step` (from 0) learns from: a pure function, so that a resumed run agrees."""
        distill = step < round(self.config.distill_until * total_steps)
        features = self.features is not None and step < round(self.config.feature_until * total_steps)
        return Phase(distill, features, uses_teacher=(self.config.alpha > 0 and distill) or features)

    def fit_features(self, outputs: Iterable[tuple[DeiTOutput, TeacherOutput | None]]) -> None:
        """Initialises the projections of feature distillation on the student's and teacher's outputs."""
        assert self.features is not None
        self.features.fit((student, teacher) for student, teacher in outputs if teacher is not None)

    def teacher_outputs(
        self,
        images: Tensor,
        sizes: list[int],
        phase: Phase,
        place: tuple[int, int],
        rows: range | None = None,
    ) -> Iterator[TeacherOutput | None]:
        """The teacher's outputs for each micro-batch of `images` (B, 3, H, W); None if the step uses none.

        sizes: of the micro-batches. place: epoch and step within it, which find the stored soft labels.
        rows: which of that step's views `images` are; None for all.
        """
        parts = images.split(sizes)
        if phase.uses_teacher and self.soft_labels is not None:
            logits = self.soft_labels.outputs(*place, images.device).logits
            own = logits if rows is None else logits[rows.start : rows.stop]
            yield from (TeacherOutput(part, ()) for part in own.split(sizes))
        elif phase.uses_teacher and self.teacher is not None:
            yield from (self.teacher(part) if len(part) else None for part in parts)
        else:
            yield from (None for _ in parts)

    def __call__(
        self,
        output: DeiTOutput,
        targets: Tensor,
        teacher: TeacherOutput | None,
        phase: Phase = Phase(),
        *,
        labelled_share: float = 1.0,
    ) -> dict[str, Tensor]:
        """The parts of the loss and their weighted sum, `loss`.

        targets: (B, K), soft. If multiclass, an unlabelled view has a row of zeros, and the label loss is
        the mean over the labelled views: `labelled_share` of the global batch.
        """
        parts = {"class": self._label_loss(output.class_logits, targets, labelled_share)}
        if self.config.mode == "none" or (phase.distill and teacher is None):
            return {"loss": parts["class"], **parts}
        terms = []
        for logits in self._taught(output):
            if phase.distill:
                assert teacher is not None
                terms.append(self._distillation_loss(logits, teacher.logits))
            else:
                terms.append(self._label_loss(logits, targets, labelled_share))
        parts["distill"] = terms[0] if len(terms) == 1 else torch.stack(terms).mean()
        total = (1 - self.config.alpha) * parts["class"] + self.config.alpha * parts["distill"]
        if phase.features and self.features is not None:
            assert teacher is not None
            parts["features"] = self.features(output, teacher)
            total = total + self.config.feature_weight * parts["features"]
        return {"loss": total, **parts}

    def _taught(self, output: DeiTOutput) -> list[Tensor]:
        """The logits, (B, K) each, that learn from the teacher."""
        if self.config.token == "class":
            return [output.class_logits]
        assert output.distill_logits is not None, "the distillation token needs a distilled student"
        if self.config.token == "distill":
            return [output.distill_logits]
        return [output.class_logits, output.distill_logits]

    def _label_loss(self, logits: Tensor, targets: Tensor, labelled_share: float) -> Tensor:
        loss = label_loss(
            _plus(logits, self.adjustment.labels),
            targets,
            self.train.loss,
            self.train.label_smoothing,
            multilabel=self.task == "multilabel",
        )
        return loss / (labelled_share or 1.0)

    def _distillation_loss(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        loss = DISTILLATION_LOSSES[self.config.mode]
        term = loss.multilabel if self.task == "multilabel" else loss.multiclass
        assert term is not None, "refused when the settings were resolved"
        return term(_plus(student_logits, self.adjustment.distillation), teacher_logits, self.config)


def _plus(logits: Tensor, adjustment: Tensor | None) -> Tensor:
    return logits if adjustment is None else logits.float() + adjustment
