"""The lines of `metrics.jsonl` as TensorBoard curves, where TensorBoard is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


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
