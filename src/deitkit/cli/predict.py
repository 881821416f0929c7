"""`deitkit predict`: images classified with a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from . import options as flags

if TYPE_CHECKING:
    from ..data.image_inputs import NamedImage


# Of images of the classes, 5 % are as unfamiliar as that.
_USUAL_SHARE = 0.1


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, patterns, video files; - reads an image from stdin."),
    ] = None,
    camera: Annotated[
        int | None,
        typer.Option(min=0, help="Classify what this camera shows, 0 for the first, until Ctrl+C."),
    ] = None,
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
    from .. import distributed, log

    with log.activity("starting"):
        from ..classifier import load_folder, model_folder
        from ..data.decode import UnreadableImage
        from ..data.image_inputs import NamedImage
        from ..data.video import camera_frames
        from ..decision import check_asked
        from ..errors import SettingError
        from . import prediction_output as output

    if coverage is not None and top is not None:
        raise SettingError("--top and --coverage both say how many classes to name; give one of them")
    check_asked(threshold, coverage)
    if (camera is None) == (not paths):
        raise SettingError("give images, folders or video files, or --camera")
    for path in paths or []:
        if path.lower().endswith(".csv"):
            raise SettingError(f"{path} is no image; to write the answers there: --csv > {path}")
    if camera is not None and json_:
        raise SettingError("--camera has no end, and JSON needs one; take --csv")
    if camera is not None and not distributed.is_main():
        return
    images = distributed.from_main(lambda: _named(paths)) if paths else []
    with log.activity("loading the model"):
        folder = model_folder(run, model)
        classifier = load_folder(folder, device or "auto", code=teacher_code)
        classifier = classifier.deciding(threshold=threshold, reject=reject, coverage=coverage)
    if top is None and coverage is None and classifier.task == "multiclass":
        top = 1
    write = output.write_json if json_ else output.write_csv if csv_ else output.write_text
    if camera is not None:
        cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
        seen = (NamedImage(f"{frame.seconds:.1f} s", frame.image) for frame in camera_frames(camera))
        write(classifier.predict_all(seen, batch_size=1), top)
        return
    predictions = []
    rows = distributed.share(len(images), unit=32)  # in the batches of one process
    own = images[rows.start : rows.stop]
    total = None if any(isinstance(image, Path) for image in own) else len(own)  # frames are not counted
    with log.progress_bar("predicting", total) as advance:
        for prediction in classifier.predict_all(own):
            predictions.append(prediction)
            advance(1)
    predictions = [prediction for part in distributed.gather(predictions) for prediction in part]
    if not distributed.is_main():
        return
    write(predictions, top)
    unlike = [] if reject else classifier.unlike(predictions)
    if len(unlike) > _USUAL_SHARE * len(predictions):
        log.info(
            f"{len(unlike)} of {len(predictions)} look like no image of the classes, such as "
            f"{unlike[0].source}; --reject answers unknown to these"
        )
    if any(isinstance(p, UnreadableImage) for p in predictions):
        raise typer.Exit(1)


def _named(paths: Sequence[str]) -> list[NamedImage | Path]:
    """The images of `paths`, "-" for that on stdin, and the paths of videos."""
    from ..data.image_inputs import NamedImage, named_files

    images: list[NamedImage | Path] = []
    for path in paths:
        images += [NamedImage("-", sys.stdin.buffer.read())] if path == "-" else named_files([path])
    return images
