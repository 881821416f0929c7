"""Flags that several verbs take."""

from __future__ import annotations

from typing import Annotated

import typer

Student = Annotated[str | None, typer.Option(help="auto, nano, tiny, small or base.")]
ImageSize = Annotated[str | None, typer.Option(help="The student's, in pixels: N or HxW.")]
PatchSize = Annotated[str | None, typer.Option(help="Pixels: N or HxW.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")]
Budget = Annotated[str | None, typer.Option(help="Time for the whole job, such as 10m.")]
Init = Annotated[
    str | None, typer.Option(help="auto, none, a run, a file, timm:NAME, hf:NAME or deitkit:nano.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images an update.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Threads that prepare batches ahead.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, repeatable.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
