"""The tables that a training prints and its report shows: models, classes, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..evaluation.metrics import Interval, confusion, per_class, uneven, wilson_interval
from ..run_schema import ModelResult, Role, RunResults, role_name
from ..tasks import SCORES

Counts = Sequence[Sequence[int]]  # (K, K): a row per true class, a column per predicted class


@dataclass(frozen=True)
class ModelRow:
    """A model of a run. result: None for one head of the student."""

    name: str
    score: float | None
    role: Role | None = None
    result: ModelResult | None = None


@dataclass(frozen=True)
class ClassRow:
    """A class; in percent, None if it is not defined.

    score: recall, or average precision if multilabel. interval: of the recall, 95 %.
    """

    name: str
    images: int
    score: float | None
    precision: float | None
    recall: float | None
    f1: float | None

    @property
    def interval(self) -> Interval | None:
        return None if self.recall is None else wilson_interval(self.recall / 100, self.images)


def interval_text(interval: Interval | None) -> str:
    """A 95 % interval in percent; nothing for None."""
    return "" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}"


def model_rows(results: RunResults) -> list[ModelRow]:
    """The teacher, at each size, the student with each of its heads, and the baseline."""
    key, rows = SCORES[results.task].key, []
    names = {
        "teacher": "" if results.teacher is None else _teacher_name(results.teacher, results.models),
        "student": f"Student: DeiT {results.student.name}",
        "baseline": "Baseline: no teacher",
    }
    for role, model in results.models.items():
        name = names.get(role, role_name(role).capitalize())
        rows.append(ModelRow(name, model.scores.get(key), role, model))
        if role == "student" and model.scores.get(f"{key}_distill") is not None:
            rows.append(ModelRow("class head alone", model.scores.get(f"{key}_class")))
            rows.append(ModelRow("distillation head alone", model.scores[f"{key}_distill"]))
    return rows


def _teacher_name(teacher: ModelResult, models: Mapping[Role, ModelResult]) -> str:
    """With the pixels that it sees; one of that size beside it tells that it sees the student's, enlarged."""
    size = max(teacher.image_size) if teacher.image_size else None
    if size is None:
        seen = ""
    else:
        seen = " on the student's views" if f"teacher-{size}" in models else f" at {size} px"
    return f"Teacher{seen}: {teacher.name}"


def test_scores(results: RunResults) -> list[tuple[str, float]]:
    """The models that were measured on the test split, with their scores."""
    key = SCORES[results.task].key
    scores = {role_name(role): (model.test or {}).get(key) for role, model in results.models.items()}
    return [(name, score) for name, score in scores.items() if score is not None]


def is_uneven(results: RunResults) -> bool:
    """Whether balanced accuracy and macro-F1 are shown: for uneven classes, or if one was asked for."""
    if results.confusion is None:
        return False
    asked = results.comparison is not None and results.comparison.metric in ("balanced_accuracy", "macro_f1")
    return asked or uneven([sum(row) for row in results.confusion])


def shown_role(results: RunResults, rows: Sequence[Mapping[str, str]]) -> Role:
    """The model whose classes are shown: the recommended one, if its predictions are known."""
    role = results.recommended
    if role == "teacher" and results.task == "multiclass":
        return "teacher" if rows and all(row.get("teacher_prediction") for row in rows) else "student"
    return role if role in results.models and results.models[role].confusion is not None else "student"


def confusion_of(
    role: Role, results: RunResults, rows: Sequence[Mapping[str, str]], classes: Sequence[str]
) -> Counts | None:
    """The confusion matrix of a model; the teacher's from the rows of `predictions.csv`, if need be."""
    model = results.models.get(role)
    if role != "teacher" or (model is not None and model.confusion is not None):
        return model.confusion if model else None
    place = {name: k for k, name in enumerate(classes)}
    known = [row for row in rows if row["label"] in place and row["teacher_prediction"] in place]
    labels = torch.tensor([place[row["label"]] for row in known])
    predicted = torch.tensor([place[row["teacher_prediction"]] for row in known])
    counts: list[list[int]] = confusion(predicted, labels, len(classes)).tolist()
    return counts


def class_rows(results: RunResults, counts: Counts | None, classes: Sequence[str]) -> list[ClassRow]:
    """The classes, worst first; those that no image shows come last."""
    if counts is not None:
        found = zip(classes, per_class(torch.tensor(counts)), strict=True)
        rows = [ClassRow(name, c.images, c.recall, c.precision, c.recall, c.f1) for name, c in found]
    else:
        columns = ("ap", "precision", "recall", "f1")
        rows = [
            ClassRow(name, int(c["images"] or 0), *map(c.get, columns))
            for name, c in zip(classes, results.per_class or (), strict=True)
        ]
    return sorted(rows, key=lambda row: (row.score is None, row.score or 0.0))
