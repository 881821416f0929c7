"""`deitkit label`: a teacher's answers to every view of many epochs, stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags
from .parsing import settings_of


def label(
    data: Annotated[
        Path, typer.Argument(help="Folder with one sub-folder per class, or with train/ and val/.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the labels; one with labels is added to.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to hold, those already there included.")],
    teacher: Annotated[str | None, typer.Option(help="auto, or one of deitkit teacher list.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Whose augmentation and batches, of those that deitkit recipes lists.")
    ] = None,
    image_size: flags.ImageSize = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Probabilities a view to keep; 10 by default.")
    ] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Keep only the teacher's decision.")] = False,
    set_: flags.Settings = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    workers: flags.Workers = None,
    seed: flags.Seed = None,
) -> None:
    """Store a teacher's answers once, for many students; the same command goes on after a stop."""
    named = {
        "student.image_size": image_size,
        "teacher.spec": teacher,
        "train.batch_size": batch_size,
        "train.device": device,
        "data.workers": workers,
        "train.seed": seed,
    }
    settings = settings_of(named, set_)

    from ..training.labelling import label as run

    try:
        store = run(data, out, epochs=epochs, recipe=recipe, top_k=top_k, hard=hard, **settings)
    except KeyboardInterrupt:
        print("stopped; what is whole is kept, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    stored = store.epochs()
    size = stored * store.views_per_epoch * store.codec.bytes_per_view
    print(
        f"{stored} epochs of {store.views_per_epoch} views at {store.codec.bytes_per_view} bytes: "
        f"{size / 1e6:.3g} MB"
    )
    if stored < epochs:
        print(f"other processes still label the rest of the {epochs} epochs")
    else:
        print(f"to train from them: deitkit train {data} --soft-labels {out} --out RUN")
        distillation = store.manifest.config.distillation
        if (read := distillation.distilled_epochs(stored)) < stored:
            longer = distillation.longest_run(stored)
            print(f"a run of {stored} epochs reads the first {read} of them, one of --epochs {longer} all")
