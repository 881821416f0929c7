"""What a classifier answers: one class an image, or any number of labels; and the number that scores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class Score:
    """The main metric of a task, in percent.

    key: in results and metrics, `key` of both heads together, `key`_class and `key`_distill of each.
    name: for people. column: its heading in a table.
    """

    key: str
    name: str

    @property
    def column(self) -> str:
        return f"{self.name}, %"

    def say(self, value: float) -> str:
        """The value in a sentence: "91.2 %", which is understood as top-1, or "mAP 91.2 %"."""
        return f"{value:.1f} %" if self.key == "top1" else f"{self.name} {value:.1f} %"


SCORES: dict[Task, Score] = {"multiclass": Score("top1", "top-1"), "multilabel": Score("map", "mAP")}
THRESHOLD = 0.5  # of several labels, those more probable hold
SEPARATOR = ";"  # between labels in one cell of a table


def probability_column(name: str) -> str:
    """The heading of a class's probabilities in a table of several labels an image."""
    return f"p({name})"
