"""`report.html`: a run on one page, with everything inside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..data.decode import UnreadableImage, open_rgb
from . import page

_WORST = 24  # mistakes shown as pictures
_LABELLED = 30  # classes up to which the confusion matrix names its rows


def write_report(run: Path) -> Path:
    """Reads the run folder and writes its `report.html`; returns the path."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = _read_predictions(run / "predictions.csv")
    content = page.render(
        "report.html.j2",
        name=run.name,
        results=results,
        settings=settings,
        models=_models(results),
        accuracy=page.svg(_accuracy_curve(run, results)),
        loss=page.svg(_loss_curve(run)),
        confusion=page.svg(_confusion(results["confusion"], settings["classes"])),
        classes=_per_class(results["confusion"], settings["classes"]),
        mistakes=_mistakes(rows, Path(settings["data"]["root"])),
        skipped=json.loads((run / "skipped.json").read_text(encoding="utf-8")),
    )
    path = run / "report.html"
    path.write_text(content, encoding="utf-8")
    return path


def _models(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of models: name, top1, interval, params, speed."""
    student, teacher, control = results["student"], results["teacher"], results["control"]

    def row(name: str, facts: dict[str, Any], top1: float, kind: str, interval: Any = None) -> dict[str, Any]:
        return {"name": name, "top1": top1, "kind": kind, "interval": interval} | {
            "params": facts["params"] / 1e6,
            "speed": facts["images_per_s"],
        }

    rows = []
    if teacher:
        rows.append(row(f"Teacher: {teacher['name']}", teacher, teacher["top1"], "", teacher["interval"]))
    rows.append(
        row(f"Student: DeiT {student['name']}", student, student["top1"], "main", student["interval"])
    )
    if student["top1_distill"] is not None:
        rows.append(row("class head alone", student, student["top1_class"], "part"))
        rows.append(row("distillation head alone", student, student["top1_distill"], "part"))
    if control:
        rows.append(row("Control: no teacher", control, control["top1"], "", control["interval"]))
    return rows


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _read_predictions(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _accuracy_curve(run: Path, results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel="top-1 on validation, %")
    lines = [line for line in _read_lines(run / "metrics.jsonl") if "val" in line]
    key = "val_ema" if results["weights"] == "ema" else "val"
    epochs = [line["epoch"] for line in lines]
    heads = [
        ("joint", "top1", "-"),
        ("class head", "top1_class", ":"),
        ("distillation head", "top1_distill", "--"),
    ]
    for label, name, style in heads:
        values = [line[key][name] for line in lines]
        if all(v is not None for v in values):
            axes.plot(epochs, values, style, label=label, marker="." if len(epochs) == 1 else None)
    control = [line for line in _read_lines(run / "control" / "metrics.jsonl") if "val" in line]
    if control:
        values = [max(line["val"]["top1"], line["val_ema"]["top1"]) for line in control]
        axes.plot([line["epoch"] for line in control], values, color="0.5", label="control")
    if results["teacher"]:
        axes.axhline(results["teacher"]["top1"], color="tab:red", lw=1, label="teacher")
    axes.legend(frameon=False)
    return figure


def _loss_curve(run: Path) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="epoch", ylabel="training loss", yscale="log")
    lines = _read_lines(run / "metrics.jsonl")
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


def _per_class(counts: list[list[int]], classes: list[str]) -> list[dict[str, Any]]:
    """Accuracy of each class, worst first."""
    rows = [
        {"name": name, "images": sum(row), "top1": 100 * row[k] / max(1, sum(row))}
        for k, (name, row) in enumerate(zip(classes, counts, strict=True))
    ]
    return sorted(rows, key=lambda r: r["top1"])


def _mistakes(rows: list[dict[str, str]], root: Path) -> list[dict[str, str]]:
    """The most confident wrong answers, with a thumbnail each."""
    wrong = [row for row in rows if row["label"] != row["prediction"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    return [row | {"thumbnail": _thumbnail(root / row["path"])} for row in wrong[:_WORST]]


def _thumbnail(path: Path) -> str:
    """A picture as a data URI of at most 160 pixels; empty where the file is gone."""
    try:
        image = open_rgb(path, at_least=160)
    except UnreadableImage:
        return ""
    image.thumbnail((160, 160))
    return page.data_uri(image)
