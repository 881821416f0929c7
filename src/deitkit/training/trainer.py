"""The training loop.

For every batch:  plan (image size, phase)  ->  views  ->  teacher outputs
                  ->  forward  ->  loss parts  ->  backward (per micro-batch)
                  ->  optimizer step  ->  moving average
After an epoch:   evaluate raw and averaged weights, log a line, save a checkpoint.

Randomness is a function of seed and step, so a run that was stopped and resumed ends, on a CPU, in the same
weights bit for bit as one that was not.

Under torchrun each process takes its rows of every batch, and their gradients are summed before the optimizer
step, so that a step is that of one process but for the order of the sums.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import distributed
from ..config import OptimConfig, ResolvedTrain
from ..data.loader import ViewBatch
from ..distillation.objective import PARTS, Objective, Phase
from ..errors import Interrupted, ResumeError, TrainingError
from ..io import write_json, write_text
from ..models import BatchRows, Student
from ..run_folder import METRICS
from ..teachers.teacher import TeacherOutput
from .callbacks import Callback, stop_requests
from .frozen_stem import fast_frozen_stem
from .optim import create_optimizer
from .schedule import Schedule
from .state import EMA, BestWeights, TrainingState, load_checkpoint, save_checkpoint
from .step_inputs import StepInputs, TeacherOutputs, TrainingData

_FITTED_IMAGES = 512  # that the projections of feature distillation are initialised on
_CHECKPOINT_SECONDS = 300.0  # a crash costs at most this much training
_COMPILED_FROM = 1000  # steps; compiling takes about a minute

T = TypeVar("T")


@dataclass(frozen=True)
class Validation:
    """How weights are evaluated during training: `evaluate(student)` on `num_images` images.

    chosen_by: the loss by which weights are kept, and training stops early.
    """

    evaluate: Callable[[Student], dict[str, Any]]
    num_images: int
    chosen_by: str = "loss"

    def loss(self, found: dict[str, Any]) -> float:
        """That loss of what `evaluate` found, or an older version, which knew one loss only."""
        loss: float = found.get(self.chosen_by, found["loss"])
        return loss


@dataclass(frozen=True)
class StepLosses:
    """The parts of a step's loss, still on the device.

    values: (M, P), a row per micro-batch and a column per name. shares: of the micro-batches. indices: of the
    batch's images.
    """

    step: int
    names: tuple[str, ...]
    values: Tensor
    shares: tuple[float, ...]
    indices: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        step: int,
        losses: Sequence[dict[str, Tensor]],
        shares: Sequence[float],
        indices: NDArray[np.int64],
    ) -> StepLosses:
        names = tuple(losses[0]) if losses else ()
        values = [torch.stack(list(parts.values())) for parts in losses]
        return cls(step, names, torch.stack(values) if values else torch.empty(0, 0), tuple(shares), indices)

    def read(self) -> dict[str, float]:
        """The parts over the global batch. Waits until the device has computed them."""
        rows = self.values.tolist()
        return {
            name: sum(row[i] * share for row, share in zip(rows, self.shares, strict=True))
            for i, name in enumerate(self.names)
        }


@dataclass
class _Epoch:
    """Sums over the steps of an epoch, or of what is left of one after a resume."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # a part of the loss may end within an epoch
    images: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, parts: dict[str, float], images: int) -> None:
        self.images += images
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * images
            self.counts[name] = self.counts.get(name, 0) + images

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}


class Trainer:
    """Trains one student for `train.epochs` epochs, with checkpoints in `folder`.

    identity: facts that a resumed run must share with its checkpoint. init_features: initialise the
    projections of feature distillation by regression, for a student that starts from trained weights.
    deadline: when to stop, on the monotonic clock, after one step at least.
    """

    def __init__(
        self,
        student: Student,
        objective: Objective,
        data: TrainingData,
        validation: Validation,
        *,
        train: ResolvedTrain,
        optim: OptimConfig,
        folder: Path,
        identity: dict[str, Any] | None = None,
        init_features: bool = False,
        deadline: float | None = None,
    ):
        self.student, self.objective, self.data, self.validation = student, objective, data, validation
        self.train, self.optim, self.folder = train, optim, folder
        self.device = data.views.device
        self.init_features, self.deadline = init_features, deadline
        self.late = False  # looked up once per step, so that the last line always has an evaluation
        self.schedule = Schedule(train.epochs, data.sampler.steps_per_epoch, train, optim)
        self.identity = (identity or {}) | {"epochs": train.epochs}

        features = objective.build(student, self.device)
        ema = EMA(student, optim.ema_decay)
        self.state = TrainingState(
            model=student,
            features=features,
            ema=ema,
            optimizer=create_optimizer(student, features, optim),
            best=BestWeights(ema.weights) if train.patience is not None else None,
        )
        self.inputs = StepInputs(student, objective, data, train=train, schedule=self.schedule)
        self._saved_at = time.monotonic()
        self._reads_late = self.device.type != "cpu"
        self._mixed_precision = self.device.type == "cuda"
        self._unread: StepLosses | None = None
        # In one graph: student, losses and the projections of feature distillation.
        compiled = self.device.type == "cuda" and self.total_steps >= _COMPILED_FROM
        self._parts_of_loss = torch.compile(self._parts, dynamic=False) if compiled else self._parts

    @property
    def total_steps(self) -> int:
        return self.schedule.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every step is done, or early stopping has run out of patience."""
        best, patience = self.state.best, self.train.patience
        out_of_patience = best is not None and patience is not None and best.waited >= patience
        return out_of_patience or self.late or self.state.step >= self.total_steps

    # The loop

    def resume(self) -> int:
        """Restores the newest checkpoint, if there is one; returns the steps already done."""
        load_checkpoint(self.folder / "checkpoints", self.state, self.identity)
        if distributed.from_main(lambda: self.state.step) != self.state.step:
            raise ResumeError(
                f"{self.folder} holds other checkpoints for the main process than for this one; "
                "choose an --out on storage that all hosts share"
            )
        if distributed.is_main():
            # Without the lines of epochs that come after the checkpoint.
            write_text(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in self.state.metrics))
        return self.state.step

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Trains to the end.

        Raises Interrupted on SIGINT, SIGTERM, SIGHUP or SIGUSR1, after saving; TrainingError if the loss is
        not finite or the device is out of memory.
        """
        self._saved_at = time.monotonic()
        with stop_requests() as stop, self.running():
            if self.state.step == 0:
                if distributed.is_main():
                    self.init_feature_projections()
                distributed.copy_from_main(self.state.tensors())
            else:
                self.inputs.remember_again(self.state.step)
            while not self.finished:
                epoch, done = divmod(self.state.step, self.steps_per_epoch)
                progress = _Epoch()
                for batch, teacher_outputs in self.inputs.prepared(epoch, done):
                    self._read(progress, self.update(batch, teacher_outputs))
                    for callback in callbacks:
                        callback.on_step(self.state.step, len(batch.indices))
                    late = self.deadline is not None and time.monotonic() >= self.deadline
                    stopped, self.late = distributed.any_of(stop(), late)
                    last, due = self.state.step % self.steps_per_epoch == 0, self._checkpoint_is_due()
                    if last or stopped or self.late or due:
                        self._read(progress, None)  # what is saved is known to be finite
                    if last:
                        continue  # saved below, with the evaluation that a resumed run would not repeat
                    if stopped:
                        self._stop()
                    if self.late:
                        break
                    if due:
                        self.save()
                self._end_epoch(epoch, progress, callbacks)
                if any(distributed.any_of(stop())):
                    self._stop()

    def _read(self, progress: _Epoch, losses: StepLosses | None) -> None:
        """Adds a step's losses to the epoch's: at once on a CPU; elsewhere those of the step before, which
        does not wait for this one. None adds what is left."""
        due, self._unread = [self._unread, losses], None
        if self._reads_late and losses is not None:
            self._unread = due.pop()
        for each in due:
            if each is not None:
                progress.add(self._finite(each), len(each.indices))

    def _finite(self, losses: StepLosses) -> dict[str, float]:
        """The parts of a step's loss. Raises TrainingError if it is not finite."""
        parts = losses.read()
        if not math.isfinite(parts["loss"]):
            self._refuse(losses)
        return parts

    def step(self, batch: ViewBatch, teacher_outputs: TeacherOutputs | None = None) -> dict[str, float]:
        """As `update`, and returns the parts of the loss. Raises TrainingError if it is not finite."""
        return self._finite(self.update(batch, teacher_outputs))

    def update(self, batch: ViewBatch, teacher_outputs: TeacherOutputs | None = None) -> StepLosses:
        """One optimizer step on a global batch, in micro-batches.

        Does not wait for the device, unless several processes share the batch.

        teacher_outputs: one per micro-batch; None asks the teacher now.
        """
        state, sizes = self.state, batch.split_sizes(self.train.micro_batch_size)
        if teacher_outputs is None:
            teacher_outputs = list(self.inputs.teacher_outputs(batch, state.step))

        # Apply the schedules.
        self._seed_step()
        for group in state.optimizer.param_groups:
            group["lr"] = group["lr_share"] * self.schedule.learning_rate(state.step)

        # Forward and backward.
        self.student.train()
        state.optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        shares: list[float] = []
        parts = zip(batch.images.split(sizes), batch.targets.split(sizes), teacher_outputs, strict=True)
        for i, (images, targets, teacher) in enumerate(parts):
            rows = self._rows_within(batch, i)
            if len(images) == 0:  # others compute it
                if not losses:
                    self._draw(images, rows)
                continue
            shares.append(len(images) / len(batch.indices))
            losses.append(self._backward(images, targets, teacher, shares[-1], batch.labelled_share, rows))
        found = StepLosses.of(state.step, losses, shares, batch.indices)
        if batch.rows is not None:
            found = self._sum_over_processes(found)

        # Update.
        if self.optim.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.optim.clip_grad)
        state.optimizer.step()

        # Average.
        state.ema.update(self.student, state.step)
        state.step += 1
        return found

    def _rows_within(self, batch: ViewBatch, i: int) -> BatchRows | None:
        """Where this process's rows begin in micro-batch `i` of a shared batch; None if it has them all."""
        if batch.rows is None:
            return None
        first = i * self.train.micro_batch_size
        size = min(self.train.micro_batch_size, len(batch.indices) - first)
        return BatchRows(max(0, batch.rows.start - first), size)

    @torch.no_grad()
    def _draw(self, images: Tensor, rows: BatchRows | None) -> None:
        """Passes over the random numbers of a micro-batch that others compute, as one process draws them."""
        self.student(self.inputs.seen(images), rows=rows)

    def _sum_over_processes(self, own: StepLosses) -> StepLosses:
        """Sums the gradients of all processes, and the parts of the loss. Waits for the device.

        A parameter without a gradient in any process keeps none, since an optimizer leaves it alone then. One
        sum and not DistributedDataParallel, which needs rows and the same parameters in every process.
        """
        totals = own.read()
        parameters = [p for group in self.state.optimizer.param_groups for p in group["params"]]
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        found = torch.tensor([totals.get(name, 0.0) for name in PARTS], device=self.device)
        names = torch.tensor([float(name in totals) for name in PARTS], device=self.device)
        distributed.sum_up([*gradients, used, found, names])
        for p, gradient, is_used in zip(parameters, gradients, used.tolist(), strict=True):
            p.grad = gradient if is_used else None
        present = names > 0
        known = tuple(name for name, there in zip(PARTS, present.tolist(), strict=True) if there)
        return replace(own, names=known, values=found[None, present], shares=(1.0,))

    def _backward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: TeacherOutput | None,
        share: float,
        labelled: float,
        rows: BatchRows | None,
    ) -> dict[str, Tensor]:
        """Adds the gradients of a micro-batch, weighted by its share of the batch; returns its losses."""
        # Compiled, the constants of `normalise` would be copied to the device in every step.
        seen, phase = self.inputs.seen(images), self.inputs.phase(self.state.step)
        parts = self._parts_of_loss(seen, targets, teacher, phase, labelled, rows)
        (parts["loss"] * share).backward()
        return {name: part.detach() for name, part in parts.items()}

    def _parts(
        self,
        images: Tensor,
        targets: Tensor,
        teacher: TeacherOutput | None,
        phase: Phase,
        labelled: float,
        rows: BatchRows | None,
    ) -> dict[str, Tensor]:
        """The forward pass of a micro-batch of normalised images: the parts of its loss."""
        blocks = self.objective.features.blocks if phase.features and self.objective.features else ()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed_precision):
            output = self.student(images, blocks, rows)
            return self.objective(output, targets, teacher, phase, labelled_share=labelled)

    @torch.no_grad()
    def init_feature_projections(self) -> None:
        """Initialises the projections of feature distillation by ridge regression on the first views.

        For maps only with trained initial weights: tokens that mean nothing yet learn better from random
        projections (docs/small-data.md).
        """
        features = self.objective.features
        if features is None or not self.inputs.phase(0).features:
            return
        if not self.init_features and not features.fit_from_scratch:
            return
        blocks = features.blocks
        self.student.train()  # patches are dropped and views are small, as in the steps to come
        self._seed_step()
        batches = itertools.islice(self.inputs.prepared(0), math.ceil(_FITTED_IMAGES / self.train.batch_size))
        with distributed.alone():  # whole batches
            self.objective.fit_features(
                (self.student(self.inputs.seen(images), tokens_after=blocks), teacher)
                for batch, outputs in _within(batches, self.deadline)
                for images, teacher in zip(
                    batch.images.split(self.train.micro_batch_size), outputs, strict=True
                )
            )

    def _seed_step(self) -> None:
        """Seeds stochastic depth and patch dropping by the step, so that a resumed run agrees."""
        torch.manual_seed((self.train.seed << 32) + self.state.step)

    # After an epoch

    def _end_epoch(self, epoch: int, progress: _Epoch, callbacks: Sequence[Callback]) -> None:
        """Evaluates, logs and saves."""
        seconds = time.monotonic() - progress.started
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.state.step,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "train": progress.means(),
            "token_cosine": self.student.token_cosine(),
            "images_per_s": progress.images / seconds,
            "seconds": seconds,
        }
        val_share = self.validation.num_images / self.data.sampler.num_images
        if self.late or self.schedule.evaluates_after(epoch, val_share):
            line["val"] = self.validation.evaluate(self.student)
            with self.holding(self.state.ema.weights):
                line["val_ema"] = self.validation.evaluate(self.student)
            if self.state.best is not None:
                self.state.best.update(self.validation.loss(line["val_ema"]), self.state.ema.weights)
        self.state.metrics.append(line)
        if distributed.is_main():
            with open(self.folder / METRICS, "a") as log:
                log.write(json.dumps(line) + "\n")
        if "val" in line or self._checkpoint_is_due():
            self.save()
        for callback in callbacks:
            callback.on_epoch(line)

    @contextmanager
    def holding(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Swaps `weights` into the student, and its own back at the end."""
        own = {k: v.clone() for k, v in self.student.state_dict().items()}
        self.student.load_state_dict(weights)
        try:
            yield
        finally:
            self.student.load_state_dict(own)

    def save(self) -> None:
        """Writes a checkpoint."""
        now = time.monotonic()
        self.state.seconds += now - self._saved_at
        self._saved_at = now
        if distributed.is_main():
            save_checkpoint(self.folder / "checkpoints", self.state, self.identity)

    def _stop(self) -> NoReturn:
        """Saves and raises Interrupted: in all processes at the same step, and once the state is there."""
        self.save()
        distributed.barrier()
        raise Interrupted

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS

    @contextmanager
    def running(self) -> Iterator[None]:
        """What steps run in: a frozen stem on its faster backend; and an out-of-memory error of the device
        becomes a TrainingError."""
        try:
            with fast_frozen_stem(self.student, self.device):
                yield
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the memory of {self.device} does not hold {self.train.micro_batch_size} images at a time; "
                "give a smaller train.micro_batch_size with --set, which changes no step, and another --out"
            ) from None

    def _refuse(self, losses: StepLosses) -> NoReturn:
        """Lists the files of a batch whose loss is not finite, and raises TrainingError."""
        files = self.folder / "not-finite.json"
        if distributed.is_main():
            write_json(files, [self.data.paths[i] for i in losses.indices])
        last = sorted((self.folder / "checkpoints").glob("step-*.safetensors"))
        raise TrainingError(
            f"the loss is not a finite number at step {losses.step}; the batch's files are listed in "
            f"{files}, the last good checkpoint is {last[-1] if last else 'none yet'}; "
            "lower --set optim.lr, or set optim.clip_grad=1"
        )


def _within(batches: Iterator[T], deadline: float | None) -> Iterator[T]:
    """The batches; with a deadline, those that are made in a fifth of the time until then, and the first."""
    end = math.inf if deadline is None else time.monotonic() + (deadline - time.monotonic()) / 5
    for batch in batches:
        yield batch
        if time.monotonic() > end:
            return
