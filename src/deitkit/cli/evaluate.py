"""`deitkit eval`: a run measured on a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[Path, typer.Argument(help="Folder with one sub-folder per class.")],
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge away in each block.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a run on a folder: class head, distillation head and joint."""
    import json

    from ..evaluate import evaluate_folder

    metrics = evaluate_folder(run, data, merge=merge)
    if json_:
        print(json.dumps(metrics, indent=1))
        return
    heads = [("joint", "top1"), ("class head", "top1_class"), ("distillation head", "top1_distill")]
    shown = ", ".join(f"{name} {metrics[key]:.1f} %" for name, key in heads if metrics[key] is not None)
    print(f"{metrics['images']} images: {shown}")
