"""`deitkit predict`: images classified with a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders, patterns; - reads an image from stdin.")
    ],
    model: flags.Model = "recommended",
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Classes to name for each image; 1, or the labels above 50 %, by default."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Say unknown if no class has this probability, from 0 to 1.")
    ] = None,
    reject: Annotated[
        bool, typer.Option("--reject", help="Say unknown for images that look like none of the classes.")
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(help="Name as many classes as it takes for this share to include the true one."),
    ] = None,
    device: flags.Device = None,
    json_: flags.Json = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    teacher_code: flags.TeacherCode = None,
) -> None:
    """Classify images with the model that a run recommends, or with another of its models."""
    from .. import log
    from ..classifier import load_folder, model_folder
    from ..data.decode import UnreadableImage
    from ..data.image_inputs import NamedImage, expand
    from ..errors import SettingError
    from . import prediction_output as output

    if coverage is not None and top is not None:
        raise SettingError("--top and --coverage both say how many classes to name; give one of them")
    images: list[NamedImage] = []
    for path in paths:
        if path == "-":
            images.append(NamedImage("-", sys.stdin.buffer.read()))
        else:  # a file that is removed from now on is reported as unreadable
            images += [NamedImage(str(file), file) for file in expand([path])]
    with log.activity("loading the model"):
        folder = model_folder(run, model)
        classifier = load_folder(folder, device or "auto", code=teacher_code)
        classifier = classifier.deciding(threshold=threshold, reject=reject, coverage=coverage)
    predictions = []
    with log.progress_bar("predicting", len(images)) as advance:
        for prediction in classifier.predict_all(images):
            predictions.append(prediction)
            advance(1)
    if top is None and coverage is None and classifier.task == "multiclass":
        top = 1
    write = output.write_json if json_ else output.write_csv if csv_ else output.write_text
    write(predictions, top)
    if any(isinstance(p, UnreadableImage) for p in predictions):
        raise typer.Exit(1)
