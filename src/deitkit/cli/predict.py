"""`deitkit predict`: images classified with a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or RUN/teacher, or RUN/baseline.")],
    paths: Annotated[list[str], typer.Argument(help="Images, folders, patterns.")],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Classes to name for each image; 1, or the labels above 50 %, by default."),
    ] = None,
    json_: flags.Json = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    teacher_code: Annotated[
        str | None, typer.Option(help="python:MODULE:FUNCTION that a fitted teacher may run.")
    ] = None,
) -> None:
    """Classify images with a run, or with its teacher."""
    from ..classifier import load
    from ..data.decode import UnreadableImage
    from ..run_folder import holds_teacher
    from ..teacher_classifier import load_teacher
    from . import prediction_output as delivery

    pictures = delivery.expand(paths)
    classifier = load_teacher(run, code=teacher_code) if holds_teacher(run) else load(run)
    answers = list(classifier.predict_all(pictures))
    if top is None and classifier.task == "multiclass":
        top = 1
    write = delivery.write_json if json_ else delivery.write_csv if csv_ else delivery.write_text
    write(answers, top)
    if any(isinstance(a, UnreadableImage) for a in answers):
        raise typer.Exit(1)
