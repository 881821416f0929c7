"""The training loop: flat, one optimizer update after the other, read from top to bottom."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.loader import ViewBatch, prefetch
from ..data.sampler import Batch, plan_epoch
from ..distillation.feature_distillation import FeatureDistillation
from ..distillation.objective import training_loss
from ..errors import Interrupted, TrainingError
from ..io import write_json, write_text
from ..models import DeiT, Student
from ..soft_labels.store import SoftLabelStore
from ..tasks import Task
from ..teachers.teacher import Teacher, TeacherOutput
from .best import BestWeights
from .callbacks import Callback
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .ema import EMA
from .optim import create_optimizer, learning_rate
from .schedule import answered_at, guided_at, image_size_at, measured_after
from .signals import stop_requests

_FITTED_IMAGES = 512  # that the first projections of guidance are fitted on
# Also between measurements and within an epoch, so that a crash costs at most so much.
_CHECKPOINT_SECONDS = 300.0


Answers = Iterable[TeacherOutput | None]  # of a teacher, one a micro-batch


@dataclass
class Trainer:
    """Trains one student. `evaluate(model)` gives the metrics of the weights in `model` as a dict."""

    config: Config
    model: Student
    make: Callable[[Batch], ViewBatch]
    num_images: int  # labelled ones
    normalise: Callable[[Tensor], Tensor]
    teacher: Teacher | None
    device: torch.device
    folder: Path
    evaluate: Callable[[Student], dict[str, Any]]
    path_of: Callable[[int], str]  # image index -> file, for a message
    soft_labels: SoftLabelStore | None = None  # a teacher's answers, in place of a live one's
    num_unlabeled: int = 0  # of images that follow the labelled ones
    num_val: int = 0  # images that `evaluate` measures on
    task: Task = "multiclass"
    epochs: int = 1
    workers: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # what a resumed run must share
    state: TrainingState = field(init=False)
    _saved_at: float = field(init=False, default=0.0)  # on the monotonic clock

    def __post_init__(self) -> None:
        distillation = self.config.distillation
        guidance: FeatureDistillation | None = None
        if self.teacher is not None and distillation.feature_weight > 0:
            assert isinstance(self.model, DeiT)
            torch.manual_seed(self.config.train.seed + 1)
            guidance = FeatureDistillation(self.model, self.teacher.card.map_channels).to(self.device)
        modules: list[nn.Module] = [self.model] if guidance is None else [self.model, guidance]
        optimizer = create_optimizer(modules, self.config.optim)
        ema = EMA(self.model, self.config.optim.ema_decay)
        best = BestWeights(ema.weights) if self.config.train.patience is not None else None
        self.state = TrainingState(self.model, guidance, ema, optimizer, best)
        self.steps_per_epoch = len(self._planned(0))

    def plan(self, epoch: int) -> list[Batch]:
        """The batches of an epoch (from 0), each with the size of its views."""
        first = epoch * self.steps_per_epoch
        return [
            replace(
                batch if self._taught(step) else batch.below(self.num_images),
                image_size=image_size_at(step, self.total_steps, self.config),
            )
            for step, batch in enumerate(self._planned(epoch), first)
        ]

    def _planned(self, epoch: int) -> list[Batch]:
        train = self.config.train
        return plan_epoch(
            self.num_images,
            batch_size=train.batch_size,
            repeats=self.config.data.repeats,
            seed=train.seed,
            epoch=epoch,
            num_unlabeled=self.num_unlabeled,
            unlabeled_share=self.config.data.unlabeled_share,
        )

    def views_before(self, step: int) -> int:
        """Views of the first `step` updates. Batches are as large in every epoch."""
        batches = self._planned(0)
        whole = [len(batch.indices) for batch in batches]
        labelled = [len(batch.below(self.num_images).indices) for batch in batches]
        return sum((whole if self._taught(i) else labelled)[i % len(batches)] for i in range(step))

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every update is done, or the run's patience is at an end."""
        best, patience = self.state.best, self.config.train.patience
        out_of_patience = best is not None and patience is not None and best.waited >= patience
        return out_of_patience or self.state.step >= self.total_steps

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The moving average; of a run that may stop early, the best that was measured."""
        return self.state.ema.weights if self.state.best is None else self.state.best.weights

    def resume(self) -> int:
        """Continues from the newest checkpoint, if there is one; returns the updates already done."""
        load_checkpoint(self.folder / "checkpoints", self.state, self._facts())
        log = self.folder / "metrics.jsonl"
        if log.exists():  # lines of updates that the checkpoint does not know are made again
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = (line for line in lines if line.endswith("\n"))
            write_text(log, "".join(line for line in whole if json.loads(line)["step"] <= self.state.step))
        return self.state.step

    def run(self, callbacks: Sequence[Callback]) -> None:
        """Trains to the end.

        Raises Interrupted on SIGINT and SIGTERM, after saving; DeitkitError where the loss is not finite or
        the device's memory does not suffice.
        """
        self._saved_at = time.monotonic()
        with stop_requests() as stop, self.memory_explained():
            if self.state.step == 0:
                self.fit_guidance()
            while not self.finished:
                epoch, done = divmod(self.state.step, self.steps_per_epoch)
                sums: dict[str, float] = {}
                counts: dict[str, int] = {}  # a part of the loss may end within an epoch
                started, seen = time.monotonic(), 0
                for batch, answers in self.prepared(epoch, done):
                    parts = self.update(batch, answers)
                    seen += len(batch.indices)
                    for k, v in parts.items():
                        sums[k] = sums.get(k, 0.0) + v * len(batch.indices)
                        counts[k] = counts.get(k, 0) + len(batch.indices)
                    for callback in callbacks:
                        callback.on_step(self.state.step, len(batch.indices))
                    if self.state.step % self.steps_per_epoch == 0:
                        continue  # saved with the epoch's measurement, which a resumed run would not make
                    if stop():
                        self._save()
                        raise Interrupted
                    if self._checkpoint_is_due():
                        self._save()
                seconds = time.monotonic() - started
                self._end_epoch(epoch, {k: v / counts[k] for k, v in sums.items()}, seen, seconds, callbacks)
                if stop():
                    self._save()
                    raise Interrupted

    @contextmanager
    def memory_explained(self) -> Iterator[None]:
        """Raises DeitkitError inside where the device's memory does not suffice."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the memory of {self.device} does not hold {self.micro_batch_size} images at a time; give a "
                "smaller train.micro_batch_size with --set, which changes no update, and another --out"
            ) from None

    def prepared(self, epoch: int, done: int = 0) -> Iterator[tuple[ViewBatch, Answers]]:
        """The batches of an epoch after the first `done`, each with what the teacher says of it.

        On a CPU a thread asks the teacher about the next batch while the student learns from this one:
        two small networks side by side use the cores better than one after the other (docs/speed.md).
        """
        ahead = self.teacher is not None and self.device.type == "cpu"
        workers = max(1, self.workers) if ahead else self.workers
        views = enumerate(
            prefetch(self.make, self.plan(epoch)[done:], workers), epoch * self.steps_per_epoch + done
        )
        if ahead:
            yield from prefetch(lambda at: (at[1], list(self.answers(at[1], at[0]))), views, 1)
        else:
            yield from ((batch, self.answers(batch, step)) for step, batch in views)

    def answers(self, batch: ViewBatch, step: int) -> Answers:
        """What the teacher says of each micro-batch of update `step`; None where its loss reads nothing."""
        parts = batch.images.split(self.micro_batch_size)
        taught = self._taught(step)
        if taught and self.soft_labels is not None:
            answer = self.soft_labels.outputs(*divmod(step, self.steps_per_epoch), self.device)
            yield from (TeacherOutput(logits, ()) for logits in answer.logits.split(self.micro_batch_size))
        elif taught and self.teacher is not None:
            yield from map(self.teacher, parts)
        else:
            yield from (None for _ in parts)

    @torch.no_grad()
    def fit_guidance(self) -> None:
        """Lets guidance begin from projections that suit the student's start, on the first views.

        Tokens that mean nothing yet are better taught through random ones (docs/small-data.md).
        """
        guidance = self.state.guidance
        if guidance is None or self.config.student.initial_weights == "none" or not self._guided(0):
            return
        self.model.train()  # patches are dropped and views are small as in the updates
        self._seed_update()
        batches = math.ceil(_FITTED_IMAGES / self.config.train.batch_size)
        guidance.fit(
            (self.model(self.normalise(images), tokens_after=guidance.blocks), answer)
            for batch, answers in itertools.islice(self.prepared(0), batches)
            for images, answer in zip(batch.images.split(self.micro_batch_size), answers, strict=True)
            if answer is not None
        )

    def _seed_update(self) -> None:
        """Seeds what stochastic depth and patch dropping draw from by the step, so a resumed run agrees."""
        torch.manual_seed((self.config.train.seed << 32) + self.state.step)

    def _answered(self, step: int) -> bool:
        return answered_at(step, self.total_steps, self.config)

    def _guided(self, step: int) -> bool:
        return guided_at(step, self.total_steps, self.config)

    def _taught(self, step: int) -> bool:
        """Whether update `step` reads anything of a teacher's."""
        answered = self.config.distillation.alpha > 0 and self._answered(step)
        return answered or (self.state.guidance is not None and self._guided(step))

    @property
    def micro_batch_size(self) -> int:
        """Images a forward pass."""
        return self.config.train.micro_batch_size or self.config.train.batch_size

    def update(self, batch: ViewBatch, answers: Answers | None = None) -> dict[str, float]:
        """One optimizer update on a global batch, in micro-batches; returns the parts of its loss.

        answers: of the teacher, one a micro-batch; None asks it now.
        """
        state, config = self.state, self.config
        self._seed_update()
        rate = learning_rate(
            state.step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=config.train.batch_size,
            config=config.optim,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        state.optimizer.zero_grad(set_to_none=True)
        micro, shares, losses = self.micro_batch_size, [], []
        answers = self.answers(batch, state.step) if answers is None else answers
        for images, targets, answer in zip(
            batch.images.split(micro), batch.targets.split(micro), answers, strict=True
        ):
            shares.append(len(images) / len(batch.images))
            parts = self._backward(images, targets, answer, shares[-1], batch.labelled_share)
            losses.append(torch.stack(list(parts.values())).detach())
        # Read once an update: each reading waits for the device.
        rows = torch.stack(losses).tolist()
        totals = {
            k: sum(row[i] * share for row, share in zip(rows, shares, strict=True))
            for i, k in enumerate(parts)
        }
        if not math.isfinite(totals["loss"]):
            self._refuse(batch)
        if config.optim.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad)
        state.optimizer.step()
        state.ema.update(self.model, state.step)
        state.step += 1
        return totals

    def _backward(
        self, images: Tensor, targets: Tensor, answer: TeacherOutput | None, share: float, labelled: float
    ) -> dict[str, Tensor]:
        """Adds the gradients of a micro-batch, weighted by its share of the global batch; its losses."""
        guidance = self.state.guidance if self._guided(self.state.step) else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.model(self.normalise(images), tokens_after=guidance.blocks if guidance else ())
            parts = training_loss(
                output,
                targets,
                answer,
                self.config.distillation,
                self.config.train,
                guidance=guidance,
                answered=self._answered(self.state.step),
                labelled_share=labelled,
                task=self.task,
            )
        (parts["loss"] * share).backward()
        return parts

    def _end_epoch(
        self, epoch: int, train: dict[str, float], seen: int, seconds: float, callbacks: Sequence[Callback]
    ) -> None:
        line: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": self.state.step,
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "train": train,
            "token_cosine": self.model.token_cosine(),
            "images_per_s": seen / seconds,
            "seconds": seconds,
        }
        if measured_after(epoch, self.epochs, self.num_val / self.num_images):
            line["val"] = self.evaluate(self.model)
            with self.holding(self.state.ema.weights):
                line["val_ema"] = self.evaluate(self.model)
            if self.state.best is not None:
                self.state.best.note(line["val_ema"]["loss"], self.state.ema.weights)
        # Before the checkpoint: a line too many is dropped when resuming, a lost one would stay lost.
        with open(self.folder / "metrics.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        if "val" in line or self._checkpoint_is_due():
            self._save()
        for callback in callbacks:
            callback.on_epoch(line)

    @contextmanager
    def holding(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """The model holds `weights` inside, and its own again after."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _facts(self) -> dict[str, Any]:
        return self.facts | {"epochs": self.epochs}

    def _checkpoint_is_due(self) -> bool:
        return time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._saved_at
        self._saved_at = now
        save_checkpoint(self.folder / "checkpoints", self.state, self._facts())

    def _refuse(self, batch: ViewBatch) -> None:
        files = self.folder / "not-finite.json"
        write_json(files, [self.path_of(i) for i in batch.indices])
        last = sorted((self.folder / "checkpoints").glob("step-*.safetensors"))
        raise TrainingError(
            f"the loss is not a finite number at step {self.state.step}; the batch's files are listed in "
            f"{files}, the last good checkpoint is {last[-1] if last else 'none yet'}; "
            "lower --set optim.lr, or set optim.clip_grad=1"
        )
