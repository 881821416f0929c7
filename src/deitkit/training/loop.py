"""The training loop: flat, one optimizer update after the other, read from top to bottom."""

from __future__ import annotations

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import Config
from ..data.loader import ViewBatch, made_ahead
from ..data.plan import Batch, plan_epoch
from ..errors import DeitkitError
from ..labels.store import LabelStore
from ..model import DeiT
from ..tasks import Task
from ..teachers.teacher import Teacher, TeacherAnswer
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .ema import EMA
from .optim import create_optimizer, learning_rate
from .task import Guidance, training_loss

_CHECKPOINT_SECONDS = 300.0  # also within an epoch, so that a crash costs at most so much


class Interrupted(Exception):
    """A signal stopped the run after its state was saved."""


class Watcher(Protocol):
    """Is told how training goes."""

    def on_step(self, step: int, images: int) -> None: ...

    def on_epoch(self, line: dict[str, Any]) -> None: ...


@dataclass
class Trainer:
    """Trains one student. `evaluate(model)` gives the metrics of the weights in `model` as a dict."""

    config: Config
    model: DeiT
    make: Callable[[Batch], ViewBatch]
    num_images: int  # labelled ones
    normalise: Callable[[Tensor], Tensor]
    teacher: Teacher | None
    device: torch.device
    folder: Path
    evaluate: Callable[[DeiT], dict[str, Any]]
    name_of: Callable[[int], str]  # image index -> file, for a message
    labels: LabelStore | None = None  # stored answers, in place of a live teacher's
    num_unlabeled: int = 0  # of images that follow the labelled ones
    task: Task = "classes"
    epochs: int = 1
    workers: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # what a resumed run must share
    state: TrainingState = field(init=False)

    def __post_init__(self) -> None:
        distillation = self.config.distillation
        guidance: Guidance | None = None
        if self.teacher is not None and distillation.guidance > 0:
            torch.manual_seed(self.config.train.seed + 1)
            guidance = Guidance(self.model, self.teacher.card.map_channels).to(self.device)
        modules: list[nn.Module] = [self.model] if guidance is None else [self.model, guidance]
        optimizer = create_optimizer(modules, self.config.optim)
        self.state = TrainingState(
            self.model, guidance, EMA(self.model, self.config.optim.ema_decay), optimizer
        )
        self.steps_per_epoch = len(self._plan(0))

    def _plan(self, epoch: int) -> list[Batch]:
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

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def resume(self) -> int:
        """Continues from the newest checkpoint, if there is one; returns the updates already done."""
        load_checkpoint(self.folder / "checkpoints", self.state, self._facts())
        log = self.folder / "metrics.jsonl"
        if log.exists():  # lines of updates that the checkpoint does not know are made again
            whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            log.write_text("".join(line for line in whole if json.loads(line)["step"] <= self.state.step))
        return self.state.step

    def run(self, watchers: Sequence[Watcher]) -> None:
        """Trains to the end. Raises Interrupted on SIGINT and SIGTERM, after saving."""
        saved_at = time.monotonic()
        with _stop_requests() as stop:
            while self.state.step < self.total_steps:
                epoch, done = divmod(self.state.step, self.steps_per_epoch)
                sums: dict[str, float] = {}
                started, seen = time.monotonic(), 0
                for batch in made_ahead(self.make, self._plan(epoch)[done:], self.workers):
                    parts = self.update(batch)
                    seen += len(batch.indices)
                    for k, v in parts.items():
                        sums[k] = sums.get(k, 0.0) + v * len(batch.indices)
                    for watcher in watchers:
                        watcher.on_step(self.state.step, len(batch.indices))
                    if stop():
                        self._save()
                        raise Interrupted
                    if time.monotonic() - saved_at > _CHECKPOINT_SECONDS:
                        self._save()
                        saved_at = time.monotonic()
                seconds = time.monotonic() - started
                self._end_epoch(epoch, {k: v / seen for k, v in sums.items()}, seen, seconds, watchers)
                saved_at = time.monotonic()

    def update(self, batch: ViewBatch) -> dict[str, float]:
        """One optimizer update on a global batch, in micro-batches; returns the parts of its loss."""
        state, config = self.state, self.config
        # Stochastic depth draws from the global generator: seeded by the step, a resumed run agrees.
        torch.manual_seed((config.train.seed << 32) + state.step)
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
        micro = config.train.micro_batch_size or config.train.batch_size
        totals: dict[str, float] = {}
        labelled = batch.labelled_share
        parts = zip(batch.images.split(micro), batch.targets.split(micro), self._stored(micro), strict=False)
        for images, targets, stored in parts:
            share = len(images) / len(batch.images)
            for k, v in self._backward(images, targets, stored, share, labelled).items():
                totals[k] = totals.get(k, 0.0) + v
        if not math.isfinite(totals["loss"]):
            self._refuse(batch)
        if config.optim.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad)
        state.optimizer.step()
        state.ema.update(self.model, state.step)
        state.step += 1
        return totals

    def _stored(self, micro: int) -> Iterable[TeacherAnswer | None]:
        """The stored answers to this update's micro-batches; without any, None for each."""
        if self.labels is None:
            return itertools.repeat(None)
        answer = self.labels.answer(*divmod(self.state.step, self.steps_per_epoch), self.device)
        return [TeacherAnswer(logits, ()) for logits in answer.logits.split(micro)]

    def _backward(
        self, images: Tensor, targets: Tensor, stored: TeacherAnswer | None, share: float, labelled: float
    ) -> dict[str, float]:
        """Adds the gradients of a micro-batch, weighted by its share of the global batch."""
        guidance = self.state.guidance
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            answer = self.teacher(images) if self.teacher is not None else stored
            output = self.model(self.normalise(images), tokens_after=guidance.blocks if guidance else ())
            parts = training_loss(
                output,
                targets,
                answer,
                self.config.distillation,
                self.config.train,
                guidance=guidance,
                labelled_share=labelled,
                task=self.task,
            )
        (parts["loss"] * share).backward()
        return {k: v.item() * share for k, v in parts.items()}

    def _end_epoch(
        self, epoch: int, train: dict[str, float], seen: int, seconds: float, watchers: Sequence[Watcher]
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
        # About twenty measurements a run: enough for a curve, little enough not to cost an epoch.
        if (epoch + 1) % max(1, self.epochs // 20) == 0 or epoch + 1 == self.epochs:
            line["val"] = self.evaluate(self.model)
            with self.averaged_weights():
                line["val_ema"] = self.evaluate(self.model)
        # Before the checkpoint: a line too many is dropped when resuming, a lost one would stay lost.
        with open(self.folder / "metrics.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        self._save()
        for watcher in watchers:
            watcher.on_epoch(line)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model holds the moving average inside, and its own weights again after."""
        own = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.state.ema.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _facts(self) -> dict[str, Any]:
        return self.facts | {"epochs": self.epochs}

    def _save(self) -> None:
        save_checkpoint(self.folder / "checkpoints", self.state, self._facts())

    def _refuse(self, batch: ViewBatch) -> None:
        files = self.folder / "not-finite.json"
        files.write_text(json.dumps([self.name_of(i) for i in batch.indices], indent=1, ensure_ascii=False))
        last = sorted((self.folder / "checkpoints").glob("step-*.safetensors"))
        raise DeitkitError(
            f"the loss is not a finite number at step {self.state.step}; the batch's files are listed in "
            f"{files}, the last good checkpoint is {last[-1] if last else 'none yet'}; "
            "lower --set optim.lr, or set optim.clip_grad=1"
        )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question; a second signal acts as it did before."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: the caller owns the signals
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def seconds_per_step(trainer: Trainer, steps: Iterable[int]) -> float:
    """The median time of real updates, on a trainer that is thrown away after."""
    times = []
    plan = trainer._plan(0)
    for i in steps:
        started = time.monotonic()
        trainer.state.step = i % len(plan)  # stored labels know each batch by its step
        trainer.update(trainer.make(plan[i % len(plan)]))
        times.append(time.monotonic() - started)
    return sorted(times)[len(times) // 2]
