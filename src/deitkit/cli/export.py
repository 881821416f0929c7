"""`deitkit export`: a run as one file for another runtime, or as a web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    to: Annotated[str, typer.Option(help="onnx, openvino or web.")],
    out: Annotated[Path, typer.Option(help="The file: .onnx, or .xml for OpenVINO; a new folder for web.")],
    model: flags.Model = "recommended",
    int8: Annotated[bool, typer.Option("--int8", help="In int8, calibrated on the run's images.")] = False,
    data: Annotated[Path | None, typer.Option(help="Other images for --int8, a folder per class.")] = None,
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge in each block.")] = 0,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="For web: npm, to fetch ONNX Runtime Web once; or its folder. By default from the cache."
        ),
    ] = None,
) -> None:
    """Write a run's classifier as one graph, with its preprocessing of views inside, or as a web page."""
    from ..deploy.exporter import export_run

    exported = export_run(run, to, out, model=model, int8=int8, data=data, merge=merge, runtime=runtime)
    for file in exported.files:
        print(file)
    if exported.int8 is not None and exported.fp32 is not None:
        print(f"{exported.images} images: int8 {exported.int8:.1f} %, float {exported.fp32:.1f} %")
