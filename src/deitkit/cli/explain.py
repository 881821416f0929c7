"""`deitkit explain`: where the evidence for a prediction is, drawn over the image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def explain(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    paths: Annotated[list[str], typer.Argument(help="Images, folders, patterns.")],
    out: Annotated[Path, typer.Option(help="A new folder; it gets a folder for each image.")],
    label: Annotated[
        str | None, typer.Option(help="The class to explain; by default the predicted one.")
    ] = None,
    model: flags.Model = "recommended",
    device: flags.Device = None,
    teacher_code: flags.TeacherCode = None,
) -> None:
    """Explain predictions: attention, rollout and its gradients of a student, grad-CAM of a teacher."""
    from .. import log
    from ..data.decode import UnreadableImage
    from ..data.image_inputs import named_files
    from ..report.explain_run import explain_run

    images = named_files(paths)
    with log.progress_bar("explaining", len(images)) as advance:
        found = explain_run(
            run,
            images,
            out,
            label=label,
            model=model,
            device=device or "auto",
            code=teacher_code,
            advance=advance,
        )
    for each in found:
        if isinstance(each, UnreadableImage):
            print(f"{each.path}: cannot be read ({each.reason})")
        else:
            seen_as = "" if each.label == each.predicted else f" (predicted: {each.predicted})"
            print(f"{each.source}: {each.label} {100 * each.probability:.1f} %{seen_as}")
    print(f"overlays and arrays: {out}")
    if any(isinstance(each, UnreadableImage) for each in found):
        raise typer.Exit(1)
