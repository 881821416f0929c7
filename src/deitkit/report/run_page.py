"""`report.html`: a run on one page, with everything inside it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..data.decode import UnreadableImage, open_rgb
from ..io import read_json, read_json_lines, write_text
from ..tasks import SCORES, SEPARATOR, THRESHOLD, Score, probability_column
from . import page

_WORST = 24  # mistakes shown as images
_LABELLED = 30  # classes up to which the confusion matrix names its rows


def write_report(run: Path) -> Path:
    """Reads the run folder and writes its `report.html`; returns the path."""
    results = read_json(run / "results.json")
    settings = read_json(run / "config.json")
    rows = _read_predictions(run / "predictions.csv")
    task, classes = results.get("task", "multiclass"), settings["classes"]
    mistakes = _mistakes(rows) if task == "multiclass" else _mistaken_labels(rows, classes)
    root = Path(settings["data"]["root"])
    content = page.render(
        "report.html.j2",
        name=run.name,
        results=results,
        settings=settings,
        task=task,
        score=SCORES[task],
        models=_models(results, SCORES[task].key),
        accuracy=page.svg(_accuracy_curve(run, results, SCORES[task])),
        loss=page.svg(_loss_curve(run)),
        confusion=page.svg(_confusion(results["confusion"], classes)) if task == "multiclass" else None,
        classes=_per_class(results, classes),
        mistakes=[m | {"thumbnail": _thumbnail(root / m["path"])} for m in mistakes[:_WORST]],
        skipped=read_json(run / "skipped.json"),
    )
    path = run / "report.html"
    write_text(path, content)
    return path


def _models(results: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Rows of the table of models: name, score, interval, params, speed."""
    student, teacher, baseline = results["student"], results["teacher"], results["baseline"]

    def row(name: str, facts: dict[str, Any], kind: str = "", head: str = "") -> dict[str, Any]:
        return {"name": name, "score": facts[key + head], "kind": kind} | {
            "interval": facts["interval"] if kind != "part" else None,
            "params": facts["params"] / 1e6,
            "speed": facts["images_per_s"],
        }

    rows = []
    if teacher:
        rows.append(row(f"Teacher: {teacher['name']}", teacher))
    rows.append(row(f"Student: DeiT {student['name']}", student, "main"))
    if student[f"{key}_distill"] is not None:
        rows.append(row("class head alone", student, "part", "_class"))
        rows.append(row("distillation head alone", student, "part", "_distill"))
    if baseline:
        rows.append(row("Control: no teacher", baseline))
    return rows


def _read_predictions(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _accuracy_curve(run: Path, results: dict[str, Any], score: Score) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel=f"{score.name} on validation, %")
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if "val" in line]
    key = "val_ema" if results["weights"] == "ema" else "val"
    epochs = [line["epoch"] for line in lines]
    for label, head, style in (
        ("joint", "", "-"),
        ("class head", "_class", ":"),
        ("distillation head", "_distill", "--"),
    ):
        values = [line[key][score.key + head] for line in lines]
        if all(v is not None for v in values):
            axes.plot(epochs, values, style, label=label, marker="." if len(epochs) == 1 else None)
    baseline = [line for line in read_json_lines(run / "baseline" / "metrics.jsonl") if "val" in line]
    if baseline:
        values = [max(line["val"][score.key], line["val_ema"][score.key]) for line in baseline]
        axes.plot([line["epoch"] for line in baseline], values, color="0.5", label="baseline")
    if results["teacher"]:
        axes.axhline(results["teacher"][score.key], color="tab:red", lw=1, label="teacher")
    axes.legend(frameon=False)
    return figure


def _loss_curve(run: Path) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel="training loss", yscale="log")
    lines = read_json_lines(run / "metrics.jsonl")
    for part in lines[0]["train"] if lines else ():
        having = [line for line in lines if part in line["train"]]  # guidance may end before the run
        label = "total" if part == "loss" else part
        axes.plot([line["epoch"] for line in having], [line["train"][part] for line in having], label=label)
    axes.legend(frameon=False)
    return figure


def _confusion(counts: list[list[int]], classes: list[str]) -> Figure:
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


def _per_class(results: dict[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """Accuracy of each class, or its average precision and F1, worst first."""
    if "confusion" in results:
        rows = [
            {"name": name, "images": sum(row), "score": 100 * row[k] / max(1, sum(row))}
            for k, (name, row) in enumerate(zip(classes, results["confusion"], strict=True))
        ]
    else:
        rows = [
            {"name": name, "images": row["images"], "score": row["ap"], "f1": row["f1"]}
            for name, row in zip(classes, results["per_class"], strict=True)
        ]
    # A class that no image shows has no average precision: it comes last.
    return sorted(rows, key=lambda r: (r["score"] is None, r["score"] or 0.0))


def _mistakes(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The wrong answers, the most confident first."""
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    return sorted(wrong, key=lambda row: -float(row["probability"]))


def _mistaken_labels(rows: list[dict[str, str]], classes: list[str]) -> list[dict[str, Any]]:
    """The images with a wrong label, each with its worst one and that one's probability, worst first."""
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
    """A image as a data URI of at most 160 pixels; empty where the file is gone."""
    try:
        image = open_rgb(path, at_least=160)
    except UnreadableImage:
        return ""
    image.thumbnail((160, 160))
    return page.data_uri(image)
