"""`deitkit train`: flags in, a run out, a small table at the end."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DeitkitError
from .settings import settings_of

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h` or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise DeitkitError(f"--budget {text!r} is no time; give one such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]


def parse_length(epochs: int | None, budget: str | None) -> dict[str, Any]:
    """`--epochs` or `--budget` as settings; raises DeitkitError where both are given."""
    if epochs is not None and budget is not None:
        raise DeitkitError("--epochs and --budget both say how long to train; give one of them")
    return {"train.epochs": epochs, "train.budget_s": parse_budget(budget) if budget else None}


def stopped(resume: bool) -> typer.Exit:
    """What ends a verb whose work a signal stopped, after the command that goes on was printed."""
    command = " ".join(sys.argv if resume else [*sys.argv, "--resume"])
    print(f"stopped and saved; to go on: {command}", file=sys.stderr)
    return typer.Exit(130)


def train(
    data: Annotated[
        Path,
        typer.Argument(help="Folder with a sub-folder per class, with train/ and val/, or with labels.csv."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    student: Annotated[str | None, typer.Option(help="auto, nano, tiny, small or base.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: N or HxW.")] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels: N or HxW.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole job, such as 10m.")] = None,
    distillation: Annotated[str | None, typer.Option(help="none, soft, hard or dist.")] = None,
    teacher: Annotated[str | None, typer.Option(help="auto, none, or one of deitkit teacher list.")] = None,
    unlabeled: Annotated[
        str | None, typer.Option(help="Folder of images without labels, for the teacher to answer.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="auto, none, a run, a file, timm:NAME or hf:NAME.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Stored answers (deitkit label) in place of a live teacher.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="One that deitkit recipes lists [small-data, or the labels'].")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images an update.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that prepare batches ahead.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Also train without a teacher.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Train a distilled student on a folder of images."""
    named: dict[str, Any] = {
        "student.name": student,
        "student.image_size": image_size,
        "student.patch_size": patch_size,
        **parse_length(epochs, budget),
        "distillation.mode": distillation,
        "teacher.spec": teacher,
        "data.unlabeled": unlabeled,
        "teacher.labels": labels,
        "student.init": init,
        "train.batch_size": batch_size,
        "train.device": device,
        "data.workers": workers,
        "train.seed": seed,
        "train.control": control or None,
    }
    settings = settings_of(named, set_)

    from .. import job
    from ..training.loop import Interrupted

    try:
        run = job.train(data, out, recipe=recipe, resume=resume, **settings)
    except Interrupted:
        raise stopped(resume) from None
    _print_summary(run.results, run.report)


def _print_summary(results: dict[str, Any], report: Path) -> None:
    """The small table at the end of a training."""
    from rich.console import Console
    from rich.table import Table

    from ..tasks import SCORES

    score = SCORES[results["task"]]
    table = Table("", score.column, "parameters", "images/s")

    def row(name: str, facts: dict[str, Any], head: str = "") -> None:
        speed = f"{facts['images_per_s']:.0f}"
        table.add_row(name, f"{facts[score.key + head]:.1f}", f"{facts['params'] / 1e6:.1f} M", speed)

    student = results["student"]
    if results["teacher"]:
        row(f"teacher, {results['teacher']['name']}", results["teacher"])
    row(f"student {student['name']}, joint", student)
    if student[f"{score.key}_distill"] is not None:
        row("  class head", student, "_class")
        row("  distillation head", student, "_distill")
    if results["control"]:
        row("control, no teacher", results["control"])
    console = Console()
    console.print(table)
    console.print(results["verdict"], markup=False)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
