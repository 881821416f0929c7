"""The two tasks, one class per image or several labels, and the main metric of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class Score:
    """The main metric of a task, in percent.

    key: its name in results and metrics: `key` for the joint classifier, `key`_class and `key`_distill for
    the heads. name: for display.
    """

    key: str
    name: str

    @property
    def column(self) -> str:
        """The heading in a table."""
        return f"{self.name}, %"

    def say(self, value: float) -> str:
        """The value in a sentence: "91.2 %" for top-1, "mAP 91.2 %" for others."""
        return f"{value:.1f} %" if self.key == "top1" else f"{self.name} {value:.1f} %"


SCORES: dict[Task, Score] = {"multiclass": Score("top1", "top-1"), "multilabel": Score("map", "mAP")}
# By `train.metric`.
METRICS: dict[str, Score] = {
    "top1": SCORES["multiclass"],
    "balanced": Score("balanced_accuracy", "balanced accuracy"),
    "macro-f1": Score("macro_f1", "macro-F1"),
    "map": SCORES["multilabel"],
}
SCORE_NAMES = {score.key: score.name for score in METRICS.values()}
THRESHOLD = 0.5  # multilabel: labels with a higher probability are predicted
SEPARATOR = ";"  # between the labels of one image in text
