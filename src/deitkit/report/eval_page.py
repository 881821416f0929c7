"""The page of `deitkit eval --html`: an evaluation with everything inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..evaluation.metrics import MulticlassMetrics, uneven, wilson_interval
from ..evaluation.multilabel import LabelMetrics
from ..evaluation.run_evaluation import HEAD_NAMES, Evaluation
from ..io import create_folder, write_text
from ..tasks import SCORES
from . import page
from .figures import confusion_figure, reliability_figure, risk_coverage_figure, thumbnail

_WORST = 24  # mistakes shown


def write_evaluation(path: Path, found: Evaluation, *, run: str, data: Path) -> None:
    """Writes `found`, of the model in `run` on the images in `data`, as the page `path`."""
    counts = found.confusion
    content = page.render(
        "eval.html.j2",
        name=run,
        data=data,
        found=found,
        score=SCORES[found.task],
        scores=_scores(found),
        classes=_classes(found),
        multilabel=found.task == "multilabel",
        confusion=page.svg(confusion_figure(counts, found.classes)) if counts is not None else None,
        reliability=page.svg(figure) if (figure := _reliability(found)) is not None else None,
        risk_coverage=page.svg(risk_coverage_figure(found.risk_coverage)) if found.risk_coverage else None,
        mistakes=[(m, thumbnail(m.file)) for m in found.mistakes[:_WORST]],
    )
    create_folder(path.parent)
    write_text(path, content)


def _reliability(found: Evaluation) -> Figure | None:
    """Before and after calibration; one panel for a model at temperature 1, none if multilabel."""
    measured = found.reliability
    if measured is None or measured.calibration is None or measured.calibration_before is None:
        return None
    if measured.temperature == 1.0:
        return reliability_figure({"error": measured.calibration})
    return reliability_figure({"before": measured.calibration_before, "calibrated": measured.calibration})


def _scores(found: Evaluation) -> list[tuple[str, float | None, Any]]:
    """(name, value, interval or None) of each score."""
    score, values = SCORES[found.task], found.metrics.to_dict()
    rows: list[tuple[str, float | None, Any]] = []
    for head, interval in found.intervals.items():
        key = score.key if head == "joint" else f"{score.key}_{head}"
        of = f", {HEAD_NAMES[head]}" if len(found.intervals) > 1 else ""
        rows.append((f"{score.name}{of}", values[key], interval))
    if isinstance(found.metrics, MulticlassMetrics):
        if uneven([row.images for row in found.per_class]):
            rows.append(("balanced accuracy", found.metrics.balanced_accuracy, found.balanced_interval))
            rows.append(("macro-F1", found.metrics.macro_f1, found.macro_f1_interval))
    else:
        rows.append(("micro F1 at 50 %", found.metrics.f1_micro, None))
        rows.append(("macro F1 at 50 %", found.metrics.f1_macro, None))
    return rows


def _classes(found: Evaluation) -> list[dict[str, Any]]:
    """Each class that has images, in the order of the model's classes."""
    rows = []
    for name, row in zip(found.classes, found.per_class, strict=True):
        interval = None if row.recall is None else wilson_interval(row.recall / 100, row.images)
        ap = row.ap if isinstance(row, LabelMetrics) else None
        if row.images:
            rows.append({"name": name, "row": row, "interval": interval, "ap": ap})
    return rows
