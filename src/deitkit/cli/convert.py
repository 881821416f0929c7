"""`deitkit convert`: weights of any project, for any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def convert(
    source: Annotated[str, typer.Argument(help="A run, a file, a folder, timm:NAME or hf:OWNER/NAME.")],
    destination: Annotated[Path, typer.Argument(help="A new or empty folder for the files.")],
    to: Annotated[str, typer.Option(help="deitkit, timm, transformers or official.")],
    image_size: flags.ImageSize = None,
    patch_size: flags.PatchSize = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Other classes; the heads start anew.")
    ] = None,
    distilled: Annotated[
        bool | None, typer.Option("--distilled/--plain", help="With or without a distillation token.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Of attention, if the source does not say.")
    ] = None,
    antialias: Annotated[bool, typer.Option("--antialias", help="Resize positions as timm does.")] = False,
) -> None:
    """Write a model of any project in any project's format, at any size."""
    from ..config import Config
    from ..settings import AUTO
    from ..weights.conversion import convert as convert_model

    # Sizes are read as those of a setting are.
    given = {"student.image_size": image_size, "student.patch_size": patch_size}
    student = Config().override({key: text for key, text in given.items() if text is not None}).student
    converted = convert_model(
        source,
        destination,
        to,  # type: ignore[arg-type]
        image_size=None if student.image_size == AUTO else student.image_size,
        patch_size=None if student.patch_size == AUTO else student.patch_size,
        num_classes=num_classes,
        distilled=distilled,
        num_heads=num_heads,
        antialias=antialias,
    )
    for change in converted.changes:
        print(change, file=sys.stderr)
    for file in converted.files:
        print(file)
