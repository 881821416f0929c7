"""Callbacks of the training loop, the terminal's among them, and the signals that stop it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .. import log
from ..tasks import Score


class Callback(Protocol):
    """Called after every step and after every epoch."""

    def on_step(self, step: int, images: int) -> None: ...

    def on_epoch(self, line: dict[str, Any]) -> None: ...


class EpochLines:
    """Advances a progress bar with every step and logs a line per epoch.

    uses_teacher: whether a step learns from the teacher. name: of the model, if it is not the student.
    """

    def __init__(
        self,
        advance: Callable[[int], None],
        epochs: int,
        score: Score,
        uses_teacher: Callable[[int], bool],
        name: str = "",
    ):
        self.advance, self.epochs, self.score = advance, epochs, score
        self.uses_teacher, self.name = uses_teacher, f"{name} " if name else ""
        self.explained = bool(name)

    def on_step(self, step: int, images: int) -> None:
        self.advance(images)

    def on_epoch(self, line: dict[str, Any]) -> None:
        step, text = line["step"], f"{self.name}epoch {line['epoch']:>3}/{self.epochs}"
        if "val" in line:
            if not self.explained:
                self.explained = True
                log.info(
                    f"after an epoch: {self.score.name} on the validation images, of the weights as they "
                    "are and of their moving average; the better ones are kept at the end"
                )
            raw, averaged = (line[key][self.score.key] for key in ("val", "val_ema"))
            text += f"  {self.score.name} {raw:.1f} %, averaged {averaged:.1f} %"
        log.info(f"{text}  loss {line['train']['loss']:.3f}  {line['images_per_s']:.0f} images/s")
        if self.uses_teacher(step - 1) and not self.uses_teacher(step) and line["epoch"] < self.epochs:
            log.info("from here on the labels alone are learnt: the loss has fewer parts, and falls")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT, SIGTERM, SIGHUP or SIGUSR1 has arrived.

    A second signal has its usual effect.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has no SIGHUP and SIGUSR1
    try:
        for number in (int(getattr(signal, name)) for name in names if hasattr(signal, name)):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: the caller owns the signals
        before.clear()
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
