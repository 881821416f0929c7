"""Flags that several verbs take."""

from __future__ import annotations

from typing import Annotated

import typer

Student = Annotated[
    str | None,
    typer.Option(help="nano, tiny, small or base; auto (default) picks by device and number of images."),
]
ImageSize = Annotated[
    str | None,
    typer.Option(help="The student's input in pixels, N or HxW; by device and images by default."),
]
PatchSize = Annotated[str | None, typer.Option(help="Pixels, N or HxW; by image size by default.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
Budget = Annotated[str | None, typer.Option(help="Time for the whole job, such as 10m.")]
Init = Annotated[
    str | None, typer.Option(help="auto, none, a run, a file, timm:NAME, hf:NAME or deitkit:nano.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per update.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; auto (default) takes the best there is.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Threads that prepare batches ahead.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="section.key=value, may be repeated; deitkit recipes NAME lists the settings."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
