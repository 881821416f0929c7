"""`deitkit convert`: weights from one project's format to another's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import log

# A format is a module; their names are listed here without importing them, which would load PyTorch.
_FORMATS = sorted(p.stem for p in (Path(__file__).parents[1] / "weights" / "formats").glob("[a-z]*.py"))


def convert(
    source: Annotated[str, typer.Argument(help="A run, file, folder, timm:NAME or hf:OWNER/NAME.")],
    destination: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(_FORMATS)}.")],
    image_size: Annotated[str | None, typer.Option(help="Pixels, N or HxW; the source's by default.")] = None,
    patch_size: Annotated[str | None, typer.Option(help="Pixels, N or HxW; the source's by default.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Another number of classes; initialises the heads anew.")
    ] = None,
    distilled: Annotated[
        bool | None, typer.Option("--distilled/--plain", help="With or without a distillation token.")
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(min=1, help="Number of attention heads, if the checkpoint does not say.")
    ] = None,
    antialias: Annotated[
        bool, typer.Option("--antialias", help="Resize position embeddings as timm does.")
    ] = False,
) -> None:
    """Convert weights between deitkit, timm, transformers and the official code, at any size."""
    from ..config import Config
    from ..settings import AUTO

    with log.activity("starting"):
        from ..weights.conversion import convert as convert_model

    # Sizes are parsed as settings.
    given = {"student.image_size": image_size, "student.patch_size": patch_size}
    student = Config().override({key: text for key, text in given.items() if text is not None}).student
    converted = convert_model(
        source,
        destination,
        to,
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
