"""`deitkit pretrain`: unlabelled images in, initial weights for students out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as flags
from .interrupts import resumable
from .options import parse_length, settings_of


def pretrain(
    folders: Annotated[list[Path], typer.Argument(help="Folders of images; labels are not used.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    student: flags.Student = None,
    image_size: flags.ImageSize = None,
    patch_size: flags.PatchSize = None,
    epochs: flags.Epochs = None,
    budget: flags.Budget = None,
    teacher: Annotated[str | None, typer.Option(help="An ImageNet model, such as auto or timm:NAME.")] = None,
    init: flags.Init = None,
    set_: flags.Settings = None,
    batch_size: flags.BatchSize = None,
    device: flags.Device = None,
    workers: flags.Workers = None,
    seed: flags.Seed = None,
    log_: flags.Log = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    resume: flags.Resume = False,
) -> None:
    """Train initial weights for students on unlabelled images, with an ImageNet teacher."""
    named: dict[str, Any] = {
        "student.name": student,
        "student.image_size": image_size,
        "student.patch_size": patch_size,
        **parse_length(epochs, budget),
        "teacher.spec": teacher,
        "teacher.trust_remote_code": trust_remote_code or None,
        "student.initial_weights": init,
        "train.batch_size": batch_size,
        "train.device": device,
        "data.workers": workers,
        "train.seed": seed,
        "train.log": log_,
    }
    settings = settings_of(named, set_)

    from ..training.pretraining import pretrain as run_pretraining

    with resumable(resume):
        run = run_pretraining(folders, out, resume=resume, **settings)
    print(run.results["verdict"])
