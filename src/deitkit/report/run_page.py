"""`report.html`: a run on one page, with everything inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..data.decode import UnreadableImage, open_rgb
from ..data.table import image_root
from ..evaluation.metrics import per_class, uneven
from ..io import read_json, read_json_lines, write_text
from ..run_folder import baseline_folder, read_predictions, read_results, read_skipped
from ..run_schema import ModelResult, Role, RunResults, probability_column
from ..tasks import SCORES, SEPARATOR, THRESHOLD, Score
from . import page

_WORST = 24  # mistakes shown as images
_LABELLED = 30  # classes up to which the confusion matrix names its rows


@dataclass(frozen=True)
class ModelRow:
    """A row of the table of models. result: None for one head of the student."""

    name: str
    score: float | None
    role: Role | None = None
    result: ModelResult | None = None


@dataclass(frozen=True)
class ClassRow:
    """A row of the table of classes; in percent, None if it is not defined."""

    name: str
    images: int
    score: float | None  # recall, or average precision if multilabel
    precision: float | None
    recall: float | None
    f1: float | None


def write_report(run: Path) -> Path:
    """Reads the run folder and writes its `report.html`; returns the path."""
    results = read_results(run)
    settings = read_json(run / "config.json")
    rows = read_predictions(run)
    task, classes = results.task, settings["classes"]
    mistakes = _mistakes(rows) if task == "multiclass" else _mistaken_labels(rows, classes)
    root = image_root(Path(settings["data"]["root"]))
    class_rows, confusion = _class_rows(results, classes), results.confusion
    content = page.render(
        "report.html.j2",
        name=run.name,
        results=results,
        settings=settings,
        task=task,
        score=SCORES[task],
        models=_model_rows(results),
        uneven=confusion is not None and uneven([row.images for row in class_rows]),
        accuracy=page.svg(_accuracy_curve(run, results, SCORES[task])),
        loss=page.svg(_loss_curve(run)),
        confusion=page.svg(_confusion(confusion, classes)) if confusion is not None else None,
        classes=class_rows,
        mistakes=[m | {"thumbnail": _thumbnail(root / m["path"])} for m in mistakes[:_WORST]],
        skipped=read_skipped(run),
    )
    path = run / "report.html"
    write_text(path, content)
    return path


def _model_rows(results: RunResults) -> list[ModelRow]:
    key = SCORES[results.task].key
    student, teacher, baseline = results.student, results.teacher, results.baseline
    rows = []
    if teacher is not None:
        rows.append(ModelRow(f"Teacher: {teacher.name}", teacher.scores[key], "teacher", teacher))
    rows.append(ModelRow(f"Student: DeiT {student.name}", student.scores[key], "student", student))
    if student.scores.get(f"{key}_distill") is not None:
        rows.append(ModelRow("class head alone", student.scores[f"{key}_class"]))
        rows.append(ModelRow("distillation head alone", student.scores[f"{key}_distill"]))
    if baseline is not None:
        rows.append(ModelRow("Baseline: no teacher", baseline.scores[key], "baseline", baseline))
    return rows


def _accuracy_curve(run: Path, results: RunResults, score: Score) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel=f"{score.name} on validation, %")
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if "val" in line]
    key = "val_ema" if results.weights == "ema" else "val"
    epochs = [line["epoch"] for line in lines]
    for label, head, style in (
        ("joint", "", "-"),
        ("class head", "_class", ":"),
        ("distillation head", "_distill", "--"),
    ):
        values = [line[key][score.key + head] for line in lines]
        if all(v is not None for v in values):
            axes.plot(epochs, values, style, label=label, marker="." if len(epochs) == 1 else None)
    baseline = [line for line in read_json_lines(baseline_folder(run) / "metrics.jsonl") if "val" in line]
    if baseline:
        values = [max(line["val"][score.key], line["val_ema"][score.key]) for line in baseline]
        axes.plot([line["epoch"] for line in baseline], values, color="0.5", label="baseline")
    if results.teacher is not None:
        axes.axhline(results.teacher.scores[score.key] or 0.0, color="tab:red", lw=1, label="teacher")
    axes.legend(frameon=False)
    return figure


def _loss_curve(run: Path) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel="training loss", yscale="log")
    lines = read_json_lines(run / "metrics.jsonl")
    for part in lines[0]["train"] if lines else ():
        having = [line for line in lines if part in line["train"]]  # distillation may end before the run
        label = "total" if part == "loss" else part
        axes.plot([line["epoch"] for line in having], [line["train"][part] for line in having], label=label)
    axes.legend(frameon=False)
    return figure


def _confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    side = min(9.0, 2.6 + 0.28 * len(classes))
    figure = Figure(figsize=(side + 0.6, side))
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _LABELLED:
        ticks = range(len(classes))
        axes.set_xticks(ticks, [page.plain(c) for c in classes], rotation=90)
        axes.set_yticks(ticks, [page.plain(c) for c in classes])
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                if n:
                    axes.text(
                        j,
                        i,
                        str(n),
                        ha="center",
                        va="center",
                        color="white" if shares[i][j] > 0.5 else "black",
                    )
    return figure


def _class_rows(results: RunResults, classes: Sequence[str]) -> list[ClassRow]:
    """The classes, worst first; those that no image shows come last."""
    if results.confusion is not None:
        found = zip(classes, per_class(torch.tensor(results.confusion)), strict=True)
        rows = [ClassRow(name, c.images, c.recall, c.precision, c.recall, c.f1) for name, c in found]
    else:
        rows = [
            ClassRow(
                name, int(c["images"] or 0), *(c.get(key) for key in ("ap", "precision", "recall", "f1"))
            )
            for name, c in zip(classes, results.per_class or (), strict=True)
        ]
    return sorted(rows, key=lambda row: (row.score is None, row.score or 0.0))


def _mistakes(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The wrong predictions, the most confident first."""
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    return sorted(wrong, key=lambda row: -float(row["probability"]))


def _mistaken_labels(rows: list[dict[str, str]], classes: list[str]) -> list[dict[str, Any]]:
    """The images with a wrong label, each with its worst label and the probability of that, worst first."""
    wrong = []
    for row in rows:
        true = set(row["label"].split(SEPARATOR))
        probabilities = {name: float(row[probability_column(name)]) for name in classes}
        worst = max(classes, key=lambda name: abs((name in true) - probabilities[name]))
        size = abs((worst in true) - probabilities[worst])
        if size > THRESHOLD:
            shown = {"prediction": worst, "probability": probabilities[worst], "size": size}
            wrong.append(row | shown | {"label": row["label"] or "none of the labels"})
    return sorted(wrong, key=lambda row: -row["size"])


def _thumbnail(path: Path) -> str:
    """An image as a data URI of at most 160 pixels; empty if the file is gone."""
    try:
        image = open_rgb(path, at_least=160)
    except UnreadableImage:
        return ""
    image.thumbnail((160, 160))
    return page.data_uri(image)
