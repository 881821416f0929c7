"""`deitkit eval`: a run measured on a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as flags


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one sub-folder per class, with val/ (else test/, else train/), or with "
            "labels.csv; images that the run was trained on are left out."
        ),
    ],
    part: Annotated[
        str | None, typer.Option(help="Rows of labels.csv: train, val or test; all by default.")
    ] = None,
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge away in each block.")] = 0,
    json_: flags.Json = False,
) -> None:
    """Measure a run on a folder: class head, distillation head and joint."""
    import json

    from ..evaluation.run_evaluation import evaluate_folder
    from ..tasks import SCORES

    metrics = evaluate_folder(run, data, merge=merge, part=part)
    if json_:
        print(json.dumps(metrics, indent=1))
        return
    score = SCORES[metrics["task"]]
    heads = [("joint", ""), ("class head", "_class"), ("distillation head", "_distill")]

    def line(name: str, key: str) -> str:
        shown = [(head, metrics[key + end]) for head, end in heads if metrics[key + end] is not None]
        return f"{name}" + ", ".join(f"{head} {value:.1f} %" for head, value in shown)

    of = "" if score.key == "top1" else f"{score.name}: "
    print(f"{metrics['images']} images: {line(of, score.key)}")
    if metrics["task"] == "multilabel":
        print(line("micro F1 at 50 %: ", "f1_micro"))
        print(line("macro F1 at 50 %: ", "f1_macro"))
        for row in metrics["per_class"]:
            ap = "not shown" if row["ap"] is None else f"average precision {row['ap']:.1f} %"
            print(f"{row['name']}: {row['images']} images, {ap}, F1 {row['f1']:.1f} %")
