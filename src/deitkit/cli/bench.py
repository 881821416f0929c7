"""`deitkit bench`: how fast a model is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SettingError
from . import options as flags


def bench(
    model: Annotated[str, typer.Argument(help="Folder of a finished run, or nano, tiny, small, base.")],
    data: Annotated[Path | None, typer.Option(help="Other images for accuracy and int8.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,32",
    backends: Annotated[
        str, typer.Option(help="all, or some of pytorch,compiled,onnxruntime,openvino.")
    ] = "all",
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge away in each block.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_: flags.Json = False,
) -> None:
    """Measure latency, images/s, memory and accuracy on every backend."""
    import json

    sizes = parse_batches(batch)
    from ..deploy.benchmark import bench as measure

    chosen = None if backends == "all" else [name.strip() for name in backends.split(",")]
    rows = measure(model, data=data, batches=sizes, backends=chosen, merge=merge, device=device)
    if json_:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)


def parse_batches(text: str) -> list[int]:
    """`1,32` -> [1, 32], in order and each once."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"--batch {text!r} is no list of batch sizes; give one such as 1,32")
    return sorted({int(part) for part in parts})


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..tasks import SCORES

    score = next(score for score in SCORES.values() if score.key in rows[0])
    columns = ("batch", "backend", "", "p50 ms", "p90", "p99", "images/s", "MB", score.column)
    table = Table(*columns)
    for row in rows:
        latencies = [f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        reached = "" if row[score.key] is None else f"{row[score.key]:.1f}"
        speed, memory = f"{row['images_per_s']:.1f}", f"{row['memory_mb']:.0f}"
        table.add_row(str(row["batch"]), row["backend"], row["precision"], *latencies, speed, memory, reached)
    Console().print(table)
