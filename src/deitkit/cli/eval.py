"""`deitkit eval`: a run measured on a folder, as tables, JSON, CSV or a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import log
from . import options as flags

if TYPE_CHECKING:
    from rich.table import Column, Table

    from ..evaluation.run_evaluation import Evaluation
    from ..evaluation.selective import OperatingPoint

_MOST_CONFUSED = 12  # classes up to which the confusion matrix is printed


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one sub-folder per class, with val/ (else test/, else train/), or with "
            "labels.csv; images that the run was trained on are left out."
        ),
    ],
    model: flags.Model = "recommended",
    part: Annotated[
        str | None, typer.Option(help="Rows of labels.csv: train, val or test; all by default.")
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Find the threshold at which this share of the answers is right, such as 0.99."),
    ] = None,
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge in each block.")] = 0,
    device: flags.Device = None,
    csv_: Annotated[
        Path | None, typer.Option("--csv", help="Write the prediction for each image to this file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the tables and the worst mistakes as a page.")
    ] = None,
    json_: flags.Json = False,
    teacher_code: flags.TeacherCode = None,
) -> None:
    """Measure a run on a folder: scores with intervals, each class, and which classes are confused."""
    import json

    with log.activity("starting"):
        from ..evaluation.run_evaluation import evaluate_folder
        from ..io import claim_file

    for file in (csv_, html):
        if file is not None:
            claim_file(file)
    found = evaluate_folder(
        run,
        data,
        model=model,
        device=device or "auto",
        merge=merge,
        part=part,
        code=teacher_code,
        csv_file=csv_,
        precision=precision,
    )
    if html is not None:
        from ..report.eval_page import write_evaluation

        with log.activity("writing the page"):
            write_evaluation(html, found, run=str(run), data=data)
    if json_:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_tables(found)
    for file in (csv_, html):
        if file is not None:
            log.info(f"written: {file}")


def _print_tables(found: Evaluation) -> None:
    from rich.console import Console

    console = Console()
    classes = sum(1 for row in found.per_class if row.images)
    console.print(f"{found.metrics.images} images, {classes} classes", highlight=False)
    console.print(_scores(found))
    if not found.learned:
        chance = "always naming one class" if found.task == "multiclass" else "a random order"
        console.print(
            f"The model is no better than {chance} ({found.chance:.1f} %): nothing was learnt about which "
            "class an image shows.",
            highlight=False,
        )
    for line in _calibration(found):
        console.print(line, highlight=False)
    console.print(_per_class(found))
    if found.operating_point is not None:
        for line in _threshold(found.operating_point):
            console.print(line, highlight=False)
        console.print(_answered(found.operating_point, found.classes))
    if found.confusion is not None and len(found.classes) <= _MOST_CONFUSED:
        console.print(_confusion(found.confusion, found.classes))


def _scores(found: Evaluation) -> Table:
    """The scores of each head, with their intervals."""
    from rich.table import Table

    from ..evaluation.metrics import MulticlassMetrics, uneven
    from ..evaluation.run_evaluation import HEAD_NAMES
    from ..report.tables import interval_text
    from ..tasks import SCORES

    score, metrics = SCORES[found.task], found.metrics.to_dict()
    table = Table("", _right(score.column), _right("95 % interval"))
    for head, interval in found.intervals.items():
        key = score.key if head == "joint" else f"{score.key}_{head}"
        table.add_row(
            HEAD_NAMES[head] if len(found.intervals) > 1 else "the model",
            f"{metrics[key]:.1f}",
            interval_text(interval),
        )
    if isinstance(found.metrics, MulticlassMetrics):
        if uneven([row.images for row in found.per_class]):
            for name, value, of in (
                ("balanced accuracy", found.metrics.balanced_accuracy, found.balanced_interval),
                ("macro-F1", found.metrics.macro_f1, found.macro_f1_interval),
            ):
                table.add_row(name, _percent(value), interval_text(of))
    else:
        table.add_row("micro F1 at 50 %", f"{found.metrics.f1_micro:.1f}", "")
        table.add_row("macro F1 at 50 %", f"{found.metrics.f1_macro:.1f}", "")
    return table


def _calibration(found: Evaluation) -> list[str]:
    """What the temperature does to the probabilities; nothing for a model without one."""
    measured = found.reliability
    if measured is None or measured.temperature == 1.0:
        return []
    errors = ""
    if measured.calibration is not None and measured.calibration_before is not None:
        before, after = measured.calibration_before.ece, measured.calibration.ece
        errors = f"calibration error {before:.1f} -> {after:.1f} points, "
    how = ", cross-fitted" if measured.cross_fitted else ""
    return [
        f"Probabilities at temperature {measured.temperature:.2f}{how}: {errors}"
        f"negative log-likelihood {measured.nll_before:.3f} -> {measured.nll:.3f}."
    ]


def _per_class(found: Evaluation) -> Table:
    """Precision, recall and F1 of each class; for a label its average precision too."""
    from rich.markup import escape
    from rich.table import Table

    from ..evaluation.metrics import wilson_interval
    from ..evaluation.multilabel import LabelMetrics
    from ..report.tables import interval_text

    multilabel = found.task == "multilabel"
    extra = ("average precision, %",) if multilabel else ()
    columns = ("images", *extra, "recall, %", "95 % interval", "precision, %", "F1, %")
    table = Table("label" if multilabel else "class", *map(_right, columns))
    for name, row in zip(found.classes, found.per_class, strict=True):
        interval = "" if row.recall is None else interval_text(wilson_interval(row.recall / 100, row.images))
        average = [_percent(row.ap)] if isinstance(row, LabelMetrics) else []
        scores = (_percent(row.recall), interval, _percent(row.precision), _percent(row.f1))
        table.add_row(escape(name), str(row.images), *average, *scores)
    return table


def _threshold(point: OperatingPoint) -> list[str]:
    """What to give `predict --threshold`, and what comes of it on these images."""
    from ..report.tables import interval_text

    if point.threshold is None or point.all.interval is None:
        return [
            f"No threshold reaches a precision of {point.target:.4g} % on these images; "
            "the most confident answers are wrong too often."
        ]
    # Rounded down, so that the image at the threshold is still answered.
    shown = math.floor(point.threshold * 10**6) / 10**6
    return [
        f"For a precision of {point.target:.4g} %: --threshold {shown:.6f} answers {point.all.share:.1f} % "
        f"of the images, {point.all.precision:.2f} % of them right (95 % interval "
        f"{interval_text(point.all.interval)}). Images that were not used to find it tell how well it holds."
    ]


def _answered(point: OperatingPoint, classes: tuple[str, ...]) -> Table:
    """What the threshold answers of each class."""
    from rich.markup import escape
    from rich.table import Table

    from ..report.tables import interval_text

    columns = ("images", "answered, %", "precision, %", "95 % interval")
    table = Table("predicted class", *map(_right, columns))
    for name, row in zip(classes, point.per_class, strict=True):
        scores = (_percent(row.share), _percent(row.precision), interval_text(row.interval))
        table.add_row(escape(name), str(row.images), *scores)
    return table


def _confusion(counts: list[list[int]], classes: tuple[str, ...]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("labelled \\ predicted", *(_right(escape(name)) for name in classes))
    for name, row in zip(classes, counts, strict=True):
        table.add_row(escape(name), *(str(n) if n else "·" for n in row))
    return table


def _right(heading: str) -> Column:
    from rich.table import Column

    return Column(heading, justify="right")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
