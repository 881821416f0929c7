"""`deitkit pretrain`: pictures without labels in, a start for students out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .settings import settings_of
from .train import parse_length, stopped


def pretrain(
    folders: Annotated[list[Path], typer.Argument(help="Folders of images; labels are not looked at.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    student: Annotated[str | None, typer.Option(help="auto, nano, tiny, small or base.")] = None,
    image_size: Annotated[str | None, typer.Option(help="Pixels: N or HxW.")] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels: N or HxW.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole job, such as 10m.")] = None,
    teacher: Annotated[str | None, typer.Option(help="An ImageNet model, such as auto or timm:NAME.")] = None,
    init: Annotated[str | None, typer.Option(help="none, a run, a file, timm:NAME or hf:NAME.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images an update.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that prepare batches ahead.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
) -> None:
    """Learn from pictures without labels what an ImageNet teacher sees in them, as a start for students."""
    named: dict[str, Any] = {
        "student.name": student,
        "student.image_size": image_size,
        "student.patch_size": patch_size,
        **parse_length(epochs, budget),
        "teacher.spec": teacher,
        "student.init": init,
        "train.batch_size": batch_size,
        "train.device": device,
        "data.workers": workers,
        "train.seed": seed,
    }
    settings = settings_of(named, set_)

    from ..pretraining import pretrain as run_pretraining
    from ..training.loop import Interrupted

    try:
        run = run_pretraining(folders, out, resume=resume, **settings)
    except Interrupted:
        raise stopped(resume) from None
    print(run.results["verdict"])
