"""What each step of training is given: views, and what the teacher makes of them, made ahead of the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed, log
from ..config import ResolvedTrain
from ..data.loader import SideStreams, TrainingViews, ViewBatch, prefetch
from ..data.sampler import Batch, Sampler
from ..distillation.objective import Objective, Phase
from ..models import Student
from ..models.conv_stem import ConvStem
from ..preprocessing import normalise
from ..teachers.teacher import TeacherOutput
from .frozen_stem import frozen_hybrid
from .schedule import Schedule
from .view_memory import FrozenOutputs, view_memory

TeacherOutputs = Sequence[TeacherOutput | None]  # one per micro-batch


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on. workers: threads that make batches ahead. paths: of the images, for messages."""

    views: TrainingViews
    sampler: Sampler
    workers: int
    paths: Sequence[str]


@dataclass(frozen=True)
class _StepViews:
    """The views of a step, and what frozen networks make of them if that is known."""

    step: int
    planned: Batch
    batch: ViewBatch
    known: FrozenOutputs | None = None


class StepInputs:
    """The batches of a run, in order, each with the outputs that its step learns from.

    memory: what frozen networks made of views that later epochs show again, or None.
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        data: TrainingData,
        *,
        train: ResolvedTrain,
        schedule: Schedule,
    ):
        self.student, self.objective, self.data = student, objective, data
        self.train, self.schedule = train, schedule
        self.memory = view_memory(student, objective, data.views, data.sampler, train)
        self._device = data.views.device
        self._streams = SideStreams()

    # Planning

    def phase(self, step: int) -> Phase:
        """What a step learns from."""
        return self.objective.phase(step, self.schedule.total_steps)

    def learns_from_teacher(self, step: int) -> bool:
        """Whether there is a teacher, live or stored, that a step learns from."""
        taught = self.objective.teacher is not None or self.objective.soft_labels is not None
        return taught and self.phase(step).uses_teacher

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of an epoch, with the size of their views; without unlabelled images once no teacher
        is asked about them."""
        first, batches = epoch * self.schedule.steps_per_epoch, []
        for step, batch in enumerate(self.data.sampler.epoch(epoch), first):
            if not self.phase(step).uses_teacher:
                batch = batch.below(self.data.sampler.num_images)
            batches.append(
                replace(batch, image_size=self.schedule.image_size(step), rows=self._rows(len(batch.indices)))
            )
        return batches

    def _rows(self, size: int) -> range | None:
        """This process's rows of a batch; None if there is one process.

        Whole pairs, which may be mixed, and whole micro-batches if the loss relates their images.
        """
        if distributed.world_size() == 1:
            return None
        micro = self.train.micro_batch_size if self.objective.relates_images else 1
        return distributed.share(size, unit=math.lcm(2, micro))

    @cached_property
    def _batch_sizes(self) -> list[tuple[int, int]]:
        """All views, and labelled views, of each batch of an epoch; the same in every epoch."""
        labelled = self.data.sampler.num_images
        return [(len(b.indices), len(b.below(labelled).indices)) for b in self.data.sampler.epoch(0)]

    def views_before(self, step: int) -> int:
        """Number of views in the first `step` steps."""
        sizes = self._batch_sizes
        return sum(sizes[i % len(sizes)][0 if self.phase(i).uses_teacher else 1] for i in range(step))

    # Making

    def seen(self, views: Tensor) -> Tensor:
        """What the student is given of views (B, 3, H, W) in [0, 1]: at its size, normalised.

        What `prepared` gives with a memory has been through that and the stem.
        """
        if views.shape[1] == ConvStem.channels:
            return views
        if self.data.views.image_size != self.student.image_size:  # the teacher sees more
            views = F.interpolate(views, self.student.image_size, mode="bilinear", antialias=True)
        return normalise(views)

    def prepared(self, epoch: int, done: int = 0) -> Iterator[tuple[ViewBatch, TeacherOutputs]]:
        """The batches of an epoch after the first `done`, each with the teacher's outputs.

        A thread runs the teacher on the next batch while the student learns from this one. On a CPU two small
        networks side by side use the cores better than one after the other (docs/speed.md); on a GPU the
        teacher, or the copy of stored soft labels, has a stream of its own, and neither waits for the other.
        """
        stored_ahead = self.objective.soft_labels is not None and self._device.type == "cuda"
        ahead = self.objective.teacher is not None or stored_ahead or self.memory is not None
        workers = max(1, self.data.workers) if ahead else self.data.workers
        first = epoch * self.schedule.steps_per_epoch + done
        made = prefetch(self._made, enumerate(self.plan(epoch)[done:], first), workers)

        def with_outputs(views: _StepViews) -> tuple[ViewBatch, TeacherOutputs]:
            return self._streams.run(self._device, lambda: self._with_outputs(views))

        yield from prefetch(with_outputs, made, 1) if ahead else map(self._with_outputs, made)

    def _made(self, at: tuple[int, Batch]) -> _StepViews:
        """The views of a step; without images if it is known what the frozen networks make of them."""
        step, planned = at
        if self.memory is not None:
            known = self.memory.recall(planned.keys, taught=self._asks_teacher(step))
            if known is not None:
                return _StepViews(step, planned, self.data.views.without_images(planned), known)
        return _StepViews(step, planned, self.data.views.make(planned))

    def _with_outputs(self, views: _StepViews) -> tuple[ViewBatch, TeacherOutputs]:
        """A step's batch and the teacher's outputs; with a memory, the stem's output in place of images."""
        batch, known = views.batch, views.known
        if self.memory is None:
            return batch, list(self.teacher_outputs(batch, views.step))
        if known is None:
            known = self._frozen_outputs(batch, views.step)
            self.memory.remember(views.planned.keys, known)
        if self._asks_teacher(views.step):
            assert known.teacher is not None
            outputs: TeacherOutputs = known.teacher.split(batch.split_sizes(self.train.micro_batch_size))
        else:
            outputs = list(self.teacher_outputs(batch, views.step))
        return replace(batch, images=known.stem), outputs

    @torch.no_grad()
    def _frozen_outputs(self, batch: ViewBatch, step: int) -> FrozenOutputs:
        """What the stem and, if the step asks it, the teacher make of a batch."""
        hybrid, teacher = frozen_hybrid(self.student), None
        assert hybrid is not None
        if self._asks_teacher(step):
            teacher = TeacherOutput.cat([t for t in self.teacher_outputs(batch, step) if t is not None])
        return FrozenOutputs(hybrid.through_stem(self.seen(batch.images)), teacher)

    def _asks_teacher(self, step: int) -> bool:
        """Whether a step needs a live teacher's outputs."""
        return self.objective.teacher is not None and self.phase(step).uses_teacher

    def remember_again(self, step: int) -> None:
        """Fills the memory, if there is one, with what the first `step` steps have put into it.

        In the batches of the first epochs, as before: in others, outputs could differ in their last bits.
        """
        views = self.data.sampler.views
        if self.memory is None or views is None:
            return
        epoch, done = divmod(step, self.schedule.steps_per_epoch)
        with log.activity("making the views of the first epochs again"):
            for e in range(min(views, epoch + 1)):
                steps = self.schedule.steps_per_epoch if e < epoch else done
                for _ in itertools.islice(self.prepared(e), steps):
                    pass

    def teacher_outputs(self, batch: ViewBatch, step: int) -> Iterable[TeacherOutput | None]:
        """The teacher's outputs for each micro-batch of a step; None if the step uses none."""
        place = divmod(step, self.schedule.steps_per_epoch)
        sizes = batch.split_sizes(self.train.micro_batch_size)
        return self.objective.teacher_outputs(batch.images, sizes, self.phase(step), place, batch.rows)
