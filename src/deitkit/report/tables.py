"""The tables that a training prints and its report shows: models, classes, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..evaluation.metrics import confusion, per_class, uneven
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
    """A class; in percent, None if it is not defined. score: recall, or average precision if multilabel."""

    name: str
    images: int
    score: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def model_rows(results: RunResults) -> list[ModelRow]:
    """The teacher, at each size, the student with each of its heads, and the baseline."""
    key = SCORES[results.task].key
    student, teacher, baseline = results.student, results.teacher, results.baseline
    rows = []
    if teacher is not None:
        rows.append(ModelRow(f"Teacher: {teacher.name}", teacher.scores.get(key), "teacher", teacher))
    for role, model in results.candidates.items():
        rows.append(ModelRow(role_name(role).capitalize(), model.scores.get(key), role, model))
    rows.append(ModelRow(f"Student: DeiT {student.name}", student.scores.get(key), "student", student))
    if student.scores.get(f"{key}_distill") is not None:
        rows.append(ModelRow("class head alone", student.scores.get(f"{key}_class")))
        rows.append(ModelRow("distillation head alone", student.scores[f"{key}_distill"]))
    if baseline is not None:
        rows.append(ModelRow("Baseline: no teacher", baseline.scores.get(key), "baseline", baseline))
    return rows


def test_scores(results: RunResults) -> list[tuple[str, float]]:
    """The models that were measured on the test split, with their scores."""
    key = SCORES[results.task].key
    measured: dict[str, Mapping[str, float | None] | None] = {"student": results.test}
    others = {"teacher": results.teacher, **results.candidates, "baseline": results.baseline}
    measured |= {role: model.test for role, model in others.items() if model is not None}
    found = [(role_name(role), scores[key]) for role, scores in measured.items() if scores]
    return [(name, score) for name, score in found if score is not None]


def is_uneven(results: RunResults) -> bool:
    """Whether the classes of the validation images are uneven, so that balanced accuracy is shown."""
    return results.confusion is not None and uneven([sum(row) for row in results.confusion])


def shown_role(results: RunResults, rows: Sequence[Mapping[str, str]]) -> Role:
    """The model whose classes are shown: the recommended one, if its predictions are known."""
    if results.recommended == "teacher" and results.task == "multiclass":
        return "teacher" if rows and all(row.get("teacher_prediction") for row in rows) else "student"
    candidate = results.candidates.get(results.recommended or "")
    if candidate is not None and candidate.confusion is not None:
        return results.recommended or ""
    known = results.recommended == "baseline" and results.baseline is not None
    return "baseline" if known and results.baseline and results.baseline.confusion else "student"


def confusion_of(
    role: Role, results: RunResults, rows: Sequence[Mapping[str, str]], classes: Sequence[str]
) -> Counts | None:
    """The confusion matrix of a model, the teacher's from the rows of `predictions.csv`."""
    if role == "baseline":
        return results.baseline.confusion if results.baseline else None
    if role == "student":
        return results.confusion
    if role in results.candidates:
        return results.candidates[role].confusion
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
