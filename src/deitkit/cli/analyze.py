"""`deitkit analyze`: a run looked into, on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import log
from . import options as flags


def analyze(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a fitted teacher.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one sub-folder per class, or with val/ (else test/, else train/); "
            "images that the run was trained on are left out."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; RUN/analysis by default.")] = None,
    model: flags.Model = "student",
    json_: flags.Json = False,
    teacher_code: flags.TeacherCode = None,
) -> None:
    """Look into a run: tokens, attention, calibration, teacher, corruptions."""
    import json

    with log.activity("starting"):
        from ..report.analysis_run import analyze_run, default_out

    found = analyze_run(run, data, out, model=model, code=teacher_code)
    if json_:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['images']} images")
    for name, accuracy in found["accuracy"].items():
        print(
            f"{name:>8}: {accuracy['top1']:.1f} %, calibration error {found['calibration'][name]['ece']:.1f} "
            f"points, {found['corruptions']['mean'][name]:.1f} % under corruptions"
        )
    print(f"report: {(out or default_out(Path(found['run']))) / 'analysis.html'}")
