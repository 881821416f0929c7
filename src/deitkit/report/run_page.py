"""`report.html`: a run on one page, with everything inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..classifier import load_folder
from ..data.decode import UnreadableImage
from ..data.image_inputs import NamedImage
from ..data.stored import ImageFile
from ..data.survey import effect_sentence
from ..errors import DeitkitError
from ..evaluation.explanation import explain_views, methods_of
from ..evaluation.run_images import image_finder
from ..evaluation.selective import risk_coverage
from ..io import write_text
from ..run_folder import (
    REPORT,
    TEACHER_FOLDER,
    baseline_folder,
    candidate_folder,
    read_calibration,
    read_duplicates,
    read_info,
    read_metrics,
    read_predictions,
    read_results,
    read_skipped,
    refuse_untrained,
)
from ..run_schema import Role, RunResults, probability_column, role_name
from ..tasks import METRICS, SCORE_NAMES, SCORES, SEPARATOR, THRESHOLD, Score
from . import page
from .figures import SIDE, confusion_figure, risk_coverage_figure, thumbnail
from .overlay import overlay, view_image
from .tables import class_rows, confusion_of, is_uneven, model_rows, shown_role, test_scores

_MOST_SAMPLED, _SAMPLES = 24, 3  # classes shown with images, and images of each
_WORST = 24  # mistakes shown as images
_NAMES = {metric.key: metric.name for metric in METRICS.values()}


def write_report(run: Path) -> Path:
    """Reads the run folder and writes its `report.html`; returns the path."""
    results, info, rows = read_results(run), read_info(run), read_predictions(run)
    duplicates = read_duplicates(run)
    refuse_untrained(run, info)
    assert info.data is not None
    task, score = results.task, SCORES[results.task]
    role = shown_role(results, rows)
    counts = confusion_of(role, results, rows, info.classes)
    if role in results.candidates:
        rows = read_predictions(candidate_folder(run, role))
    mistakes = _mistakes(rows, role) if task == "multiclass" else _mistaken_labels(rows, info.classes)
    image_of = image_finder(Path(info.data.root or ""))
    mistakes = mistakes[:_WORST]
    evidence = _evidence(_folder_of(role, run), mistakes, image_of)
    content = page.render(
        "report.html.j2",
        name=run.name,
        run=run,
        results=results,
        info=info,
        settings=info.config.to_dict() if info.config is not None else {},
        task=task,
        score=score,
        models=model_rows(results),
        test_scores=test_scores(results),
        uneven=is_uneven(results),
        metric=_NAMES[results.comparison.metric] if results.comparison else score.name,
        shown=role,
        shown_name=role_name(role),
        front=page.svg(front) if (front := _front_figure(results, score)) is not None else None,
        accuracy=page.svg(_accuracy_curve(run, results, score)),
        loss=page.svg(_loss_curve(run)),
        confusion=page.svg(confusion_figure(counts, info.classes)) if counts is not None else None,
        classes=class_rows(results, counts, info.classes),
        samples=_samples(rows, info.classes, image_of) if task == "multiclass" else [],
        mistakes=[
            m | {"thumbnail": thumbnail(image_of(m["path"])), "evidence": shown}
            for m, shown in zip(mistakes, evidence, strict=True)
        ],
        calibration=read_calibration(_folder_of(role, run)),
        risk_coverage=page.svg(curve) if (curve := _risk_coverage(rows, role)) is not None else None,
        skipped=read_skipped(run),
        duplicates=duplicates,
        effect=None if duplicates is None else effect_sentence(duplicates),
    )
    path = run / REPORT
    write_text(path, content)
    return path


def _folder_of(role: Role, run: Path) -> Path:
    """Where a model of the run, and what it was calibrated to, is kept."""
    folders = {"student": run, "teacher": run / TEACHER_FOLDER, "baseline": baseline_folder(run)}
    return folders[role] if role in folders else candidate_folder(run, role)


def _risk_coverage(rows: list[dict[str, str]], role: Role) -> Figure | None:
    """The curve of a model of `predictions.csv`; None if its probabilities are not there."""
    if role == "baseline":
        return None
    of = "teacher_" if role == "teacher" else ""
    known = [row for row in rows if row.get(f"{of}probability")]
    if not known:
        return None
    confidence = torch.tensor([float(row[f"{of}probability"]) for row in known])
    right = torch.tensor([row["label"] == row[f"{of}prediction"] for row in known])
    return risk_coverage_figure(risk_coverage(confidence, right))


def _samples(
    rows: list[dict[str, str]], classes: Sequence[str], image_of: Callable[[str], ImageFile]
) -> list[dict[str, Any]]:
    """Each class with its number of validation images, and some of them; of many classes the first."""
    found = []
    for name in classes[:_MOST_SAMPLED]:
        written = name.encode("utf-8", "backslashreplace").decode()  # as in predictions.csv
        paths = [row["path"] for row in rows if row["label"] == written]
        shown = [thumbnail(image_of(path)) for path in paths[:_SAMPLES]]
        found.append({"name": name, "images": len(paths), "thumbnails": [image for image in shown if image]})
    return found


def _accuracy_curve(run: Path, results: RunResults, score: Score) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(ylabel=f"{score.name} on validation, %")
    page.epoch_axis(axes)
    averaged = results.weights == "ema"
    lines = [(line.epoch, line.val_ema if averaged else line.val) for line in read_metrics(run)]
    measured = [(epoch, scores) for epoch, scores in lines if scores is not None]
    epochs = [epoch for epoch, _ in measured]
    for label, head, style in (
        ("joint", "", "-"),
        ("class head", "_class", ":"),
        ("distillation head", "_distill", "--"),
    ):
        values = [v for _, scores in measured if (v := scores.get(score.key + head)) is not None]
        if len(values) == len(epochs):
            axes.plot(epochs, values, style, label=label, marker="." if len(epochs) == 1 else None)
    best = []
    for line in read_metrics(baseline_folder(run)):
        if line.val is not None and line.val_ema is not None:
            best.append((line.epoch, max(line.val[score.key] or 0.0, line.val_ema[score.key] or 0.0)))
    if best:
        axes.plot(*zip(*best, strict=True), color="0.5", label="baseline")
    if results.teacher is not None:
        axes.axhline(results.teacher.scores[score.key] or 0.0, color="tab:red", lw=1, label="teacher")
    page.legend_above(axes, columns=3)
    return figure


def _front_figure(results: RunResults, score: Score) -> Figure | None:
    """What the models are compared by over speed, of every model; None for fewer than three."""
    metric = results.comparison.metric if results.comparison is not None else score.key
    intervals = {"balanced_accuracy": "balanced_interval", "macro_f1": "macro_f1_interval"}
    interval = intervals.get(metric, "interval")
    points = [
        (model.images_per_s, value, role, getattr(model, interval) or (value, value))
        for role, model in results.models.items()
        if (value := model.scores.get(metric)) is not None and model.images_per_s > 0
    ]
    if len(points) < 3:
        return None
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(
        xlabel="images/s", ylabel=f"{SCORE_NAMES[metric]} on validation, %", xscale="log"
    )
    for i, (speed, value, role, (low, high)) in enumerate(sorted(points)):
        chosen = role == results.recommended
        color, weight = ("tab:red", "bold") if chosen else ("tab:blue", "normal")
        error = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(speed, value, error, fmt="o", color=color, elinewidth=1)
        # Neighbours' names are above and below, so that they do not cover each other.
        axes.annotate(
            role_name(role).removeprefix("teacher at "),
            (speed, value),
            (6, 4 if i % 2 else -11),
            textcoords="offset points",
            fontsize=8,
            color=color,
            weight=weight,
        )
    axes.margins(x=0.3, y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _loss_curve(run: Path) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(ylabel="training loss", yscale="log")
    page.epoch_axis(axes)
    lines = read_metrics(run)
    for part in lines[0].train if lines else ():
        having = [line for line in lines if part in line.train]  # distillation may end before the run
        label = "total" if part == "loss" else part
        marker = "." if len(lines) == 1 else None
        axes.plot([x.epoch for x in having], [x.train[part] for x in having], label=label, marker=marker)
    page.legend_above(axes)
    return figure


def _mistakes(rows: list[dict[str, str]], role: Role) -> list[dict[str, Any]]:
    """The wrong predictions of a model, the most confident first."""
    of = "teacher_" if role == "teacher" else ""
    wrong: list[dict[str, Any]] = [
        {**row, "prediction": row[f"{of}prediction"], "probability": row.get(f"{of}probability") or None}
        for row in rows
        if row["label"] != row[f"{of}prediction"]
    ]
    return sorted(wrong, key=lambda row: -float(row["probability"] or 0.0))


def _evidence(
    folder: Path, mistakes: list[dict[str, Any]], image_of: Callable[[str], ImageFile]
) -> list[str]:
    """For each mistake of the model in `folder`, what it took for the predicted class, as a data URI.

    Empty for an image that is gone, and for a model that cannot be explained here.
    """
    shown = [""] * len(mistakes)
    if not mistakes:
        return shown
    try:
        classifier = load_folder(folder, "cpu", backend="pytorch")
        methods_of(classifier)
    except DeitkitError:
        return shown
    written = {name.encode("utf-8", "backslashreplace").decode(): name for name in classifier.classes}
    views = [classifier.view_or_error(NamedImage(m["path"], image_of(m["path"]))) for m in mistakes]
    known = [
        (i, view, written[m["prediction"]])
        for i, (m, view) in enumerate(zip(mistakes, views, strict=True))
        if not isinstance(view, UnreadableImage) and m["prediction"] in written
    ]
    labels, pixels = [label for _, _, label in known], [view for _, view, _ in known]
    try:
        found = explain_views(classifier, [""] * len(known), pixels, labels)
    except DeitkitError:
        return shown
    for (i, view, _), explained in zip(known, found, strict=True):
        shown[i] = page.data_uri(overlay(view_image(view, SIDE), explained.map()))
    return shown


def _mistaken_labels(rows: list[dict[str, str]], classes: Sequence[str]) -> list[dict[str, Any]]:
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
