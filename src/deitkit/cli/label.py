"""`deitkit label`: a teacher's outputs for the views of many epochs, stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags
from .options import settings_of


def label(
    data: Annotated[
        Path, typer.Argument(help="Folder with one sub-folder per class, or with train/ and val/.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the soft labels; missing epochs are added to an existing one.")
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to store, including those already there.")],
    teacher: Annotated[str | None, typer.Option(help="auto, or one of deitkit teacher list.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe whose augmentation and batches to use.")] = None,
    image_size: flags.ImageSize = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Probabilities to store per view; 10 by default.")
    ] = None,
    hard: Annotated[bool, typer.Option("--hard", help="Store only the predicted class.")] = False,
    set_: flags.Settings = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    workers: flags.Workers = None,
    seed: flags.Seed = None,
    trust_remote_code: flags.TrustRemoteCode = False,
) -> None:
    """Store a teacher's soft labels once, for many students. Run the command again to resume."""
    named = {
        "student.image_size": image_size,
        "teacher.spec": teacher,
        "teacher.trust_remote_code": trust_remote_code or None,
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
        print("Interrupted; finished shards are kept. Run the command again to resume.", file=sys.stderr)
        raise typer.Exit(130) from None
    stored = store.epochs()
    size = stored * store.views_per_epoch * store.codec.bytes_per_view
    print(
        f"{stored} epochs of {store.views_per_epoch} views at {store.codec.bytes_per_view} bytes: "
        f"{size / 1e6:.3g} MB"
    )
    if stored < epochs:
        print(f"other processes are still working on the rest of the {epochs} epochs")
    else:
        print(f"to train from them: deitkit train {data} --soft-labels {out} --out RUN")
        distillation = store.manifest.config.distillation
        if (read := distillation.distilled_epochs(stored)) < stored:
            longer = distillation.longest_run(stored)
            print(f"a run of {stored} epochs uses the first {read} of them; --epochs {longer} uses all")
