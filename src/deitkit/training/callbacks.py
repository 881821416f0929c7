"""What is told how training goes: the terminal, and TensorBoard if it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .. import log
from ..tasks import Score


class Callback(Protocol):
    """Is told how training goes."""

    def on_step(self, step: int, images: int) -> None: ...

    def on_epoch(self, line: dict[str, Any]) -> None: ...


class EpochLines:
    """Advances a progress bar with every step and logs a line per epoch."""

    def __init__(self, advance: Callable[[int], None], epochs: int, score: Score):
        self.advance, self.epochs, self.score = advance, epochs, score

    def on_step(self, step: int, images: int) -> None:
        self.advance(images)

    def on_epoch(self, line: dict[str, Any]) -> None:
        text = f"epoch {line['epoch']:>3}/{self.epochs}  loss {line['train']['loss']:.3f}"
        for name, key in (("raw", "val"), ("ema", "val_ema")):
            if key in line:
                text += f"  {name} {self.score.say(line[key][self.score.key])}"
        log.info(f"{text}  {line['images_per_s']:.0f} images/s")


class TensorBoardLog:
    """Writes each epoch's numbers under their names, such as `train/loss` and `val/top1`."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def on_step(self, step: int, images: int) -> None:
        """Nothing: a curve over epochs is enough, and costs no time."""

    def on_epoch(self, line: dict[str, Any]) -> None:
        for group, content in line.items():
            values = content if isinstance(content, dict) else {group: content}
            for name, value in values.items():
                if value is not None:
                    tag = f"{group}/{name}" if isinstance(content, dict) else name
                    self._writer.add_scalar(tag, value, line["step"])
        self._writer.flush()


def tensorboard_logs(folder: Path) -> list[TensorBoardLog]:
    """One log in `folder` where TensorBoard is installed, else none."""
    return [TensorBoardLog(folder)] if importlib.util.find_spec("tensorboard") else []
