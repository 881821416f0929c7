"""What a person watching sees: sentences, bars with images/s and time left, a line an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .tasks import Score

_console = Console(stderr=True, highlight=False)


def say(sentence: str) -> None:
    """One line for the person at the terminal."""
    _console.print(sentence, markup=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` items; call the yielded function with how many were done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[rate]}"), console=_console, transient=True) as progress:
        task = progress.add_task(title, total=total, rate="")

        def advance(n: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, advance=n, rate=f"{speed:.0f} images/s" if speed else "")

        yield advance


class TrainingDisplay:
    """Shows a trainer's progress: the bar counts images, each epoch leaves a line."""

    def __init__(self, advance: Callable[[int], None], epochs: int, score: Score):
        self.advance, self.epochs, self.score = advance, epochs, score

    def on_step(self, step: int, images: int) -> None:
        self.advance(images)

    def on_epoch(self, line: dict[str, Any]) -> None:
        text = f"epoch {line['epoch']:>3}/{self.epochs}  loss {line['train']['loss']:.3f}"
        for name, key in (("raw", "val"), ("ema", "val_ema")):
            if key in line:
                text += f"  {name} {self.score.say(line[key][self.score.key])}"
        say(f"{text}  {line['images_per_s']:.0f} images/s")
