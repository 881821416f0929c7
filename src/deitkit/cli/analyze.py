"""`deitkit analyze`: a run looked into, on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import log
from . import options as flags

_NAMES = {
    "teacher": "teacher",
    "baseline": "baseline",
    "class": "class head",
    "distill": "distillation head",
    "joint": "student",
}


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
    model: flags.Model = "recommended",
    json_: flags.Json = False,
    teacher_code: flags.TeacherCode = None,
) -> None:
    """See what a run gets wrong: mistakes, confusions, calibration; then teacher, tokens, attention."""
    import json

    with log.activity("starting"):
        from ..report.analysis_run import analyze_run, default_out

    found = analyze_run(run, data, out, model=model, code=teacher_code)
    if json_:
        print(json.dumps(found, indent=1))
        return
    _print_summary(found)
    print(f"report: {(out or default_out(run)) / 'analysis.html'}")


def _print_summary(found: dict[str, Any]) -> None:
    """What is most often confused, then a line per classifier."""
    wrong = round(found["images"] * (1 - found["accuracy"][found["main"]]["top1"] / 100))
    print(f"{found['images']} images, {wrong} of them classified wrong by the {_NAMES[found['main']]}")
    pairs = [f"{p['label']} taken for {p['prediction']} ({p['images']})" for p in found["confusions"][:3]]
    if pairs:
        print(f"most often: {', '.join(pairs)}")
    for name, accuracy in found["accuracy"].items():
        print(
            f"{_NAMES[name]:>17}: {accuracy['top1']:.1f} %, calibration error "
            f"{found['calibration'][name]['ece']:.1f} points, "
            f"{found['corruptions']['mean'][name]:.1f} % under corruptions"
        )
