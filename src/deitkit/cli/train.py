"""`deitkit train`: trains, then prints a table and the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import log
from . import options as flags
from .interrupts import resumable
from .options import parse_length, renamed_flag, settings_of

if TYPE_CHECKING:
    from rich.table import Table

    from ..run_schema import RunResults


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one sub-folder per class, with train/ and val/, or with a labels.csv."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    student: flags.Student = None,
    image_size: flags.ImageSize = None,
    patch_size: flags.PatchSize = None,
    epochs: flags.Epochs = None,
    budget: flags.Budget = None,
    distillation: Annotated[
        str | None, typer.Option(help="Distillation loss, or none; see deitkit settings distillation.mode.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="auto, none, or a teacher as deitkit teacher list shows.")
    ] = None,
    teacher_size: Annotated[
        int | None,
        typer.Option(min=32, help="Size in pixels of what the teacher sees of the student's views."),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(help="balanced, accuracy or speed: what the recommended model is chosen for."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="top1, balanced or macro-f1: what weights and the recommended model are chosen by."
        ),
    ] = None,
    unlabeled: Annotated[
        str | None, typer.Option(help="Folder of unlabelled images for the teacher to label.")
    ] = None,
    group_by: flags.GroupBy = None,
    relabel: flags.Relabel = None,
    exclude: flags.Exclude = None,
    init: flags.Init = None,
    soft_labels: Annotated[
        str | None, typer.Option(help="Stored soft labels (deitkit label) instead of a live teacher.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A name from deitkit recipes; by the images, or the soft labels' own, by default."),
    ] = None,
    set_: flags.Settings = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    workers: flags.Workers = None,
    seed: flags.Seed = None,
    log_: flags.Log = None,
    max_broken: flags.MaxBroken = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the same student without a teacher.")
    ] = False,
    resume: flags.Resume = False,
    control: Annotated[bool, typer.Option("--control", hidden=True)] = False,
    labels: Annotated[str | None, typer.Option("--labels", hidden=True)] = None,
) -> None:
    """Train a distilled student on a folder of images."""
    named: dict[str, Any] = {
        "student.name": student,
        "student.image_size": image_size,
        "student.patch_size": patch_size,
        **parse_length(epochs, budget),
        "distillation.mode": distillation,
        "teacher.spec": teacher,
        "teacher.image_size": teacher_size,
        "train.prefer": prefer,
        "train.metric": metric,
        "teacher.trust_remote_code": trust_remote_code or None,
        "data.unlabeled": unlabeled,
        "data.group": group_by,
        "data.relabel": relabel,
        "data.exclude": exclude,
        "teacher.soft_labels": renamed_flag("--labels", labels, "--soft-labels", soft_labels),
        "student.initial_weights": init,
        "train.batch_size": batch_size,
        "train.device": device,
        "data.workers": workers,
        "train.seed": seed,
        "train.log": log_,
        "data.max_broken": max_broken,
        "train.baseline": renamed_flag("--control", control, "--baseline", baseline) or None,
    }
    settings = settings_of(named, set_)

    with log.activity("starting"):
        from ..training import run as job

    with resumable(resume):
        run = job.train(data, out, recipe=recipe, resume=resume, **settings)
    _print_summary(run.folder)


def _print_summary(run: Path) -> None:
    """The models of a run as a table, and its verdict."""
    from rich.console import Console

    from ..report.tables import test_scores
    from ..run_folder import REPORT, read_results

    results = read_results(run)
    console = Console()
    console.print(_models_table(results))
    first, _, rest = results.verdict.partition("\n")
    console.print(first, style="bold", markup=False)
    if rest:
        console.print(rest, markup=False)
    on_test = ", ".join(f"{name} {score:.1f} %" for name, score in test_scores(results))
    if on_test:
        console.print(f"on the test split: {on_test}", markup=False)
    console.print(f"report: {run / REPORT}", markup=False, soft_wrap=True)


def _models_table(results: RunResults) -> Table:
    """The models with their scores and 95 % intervals, in 80 columns: of three scores, below each."""
    from rich.table import Table

    from ..report.tables import interval_text, is_uneven, model_rows
    from ..tasks import SCORES

    column, three = SCORES[results.task].column, is_uneven(results)
    scores = (column, "balanced", "macro-F1", "params") if three else (column, "95 % interval", "parameters")
    table = Table("", *scores, "images/s")
    for row in model_rows(results):
        chosen, of = row.role is not None and row.role == results.recommended, row.result
        found = [(row.score, of.interval if of else None)]
        cost = [f"{of.params / 1e6:.1f} M", f"{of.images_per_s:.0f}"] if of else []
        if three and of:
            found.append((of.scores.get("balanced_accuracy"), of.balanced_interval))
            found.append((of.scores.get("macro_f1"), of.macro_f1_interval))
        cells = []
        for value, interval in found:
            shown, between = "" if value is None else f"{value:.1f}", interval_text(interval)
            cells += [f"{shown}\n{between.replace(' to ', '–')}".strip()] if three else [shown, between]
        # The models' names are in the report.
        name = row.name.partition(":")[0] if row.role else f"  {row.name}"
        table.add_row(name, *cells, *cost, style="bold" if chosen else None)
    return table
