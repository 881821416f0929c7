"""`deitkit bench`: how fast a model is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from .. import log
from ..config import BackendName
from ..errors import SettingError
from . import options as flags

if TYPE_CHECKING:
    from ..deploy.benchmark import BenchRow


def bench(
    run: Annotated[
        str, typer.Argument(help="Folder of a finished run or a fitted teacher, or nano, tiny, small, base.")
    ],
    model: flags.Model = "recommended",
    data: Annotated[Path | None, typer.Option(help="Other images for accuracy and int8.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,32",
    backends: Annotated[
        str, typer.Option(help=f"all, or some of {','.join(get_args(BackendName)[1:])}.")
    ] = "all",
    merge: Annotated[int, typer.Option(min=0, help="Patch tokens to merge in each block.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_: flags.Json = False,
) -> None:
    """Measure latency, images/s, memory and accuracy on every backend."""
    import json

    sizes = parse_batches(batch)
    with log.activity("starting"):
        from ..deploy.benchmark import bench as measure

    chosen = None if backends == "all" else [name.strip() for name in backends.split(",")]
    rows = measure(
        run,
        model=model,
        data=data,
        batches=sizes,
        backends=chosen,
        merge=merge,
        device=device,
    )
    if json_:
        print(json.dumps([row.to_dict() for row in rows], indent=1))
    else:
        _print_table(rows)


def parse_batches(text: str) -> list[int]:
    """`1,32` -> [1, 32], sorted, without duplicates."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SettingError(f"--batch {text!r} is not a list of batch sizes; give one such as 1,32")
    return sorted({int(part) for part in parts})


def _print_table(rows: list[BenchRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("batch", "backend", "", "p50 ms", "p90", "p99", "images/s", "MB", rows[0].metric.column)
    table = Table(*columns)
    for row in rows:
        latency = row.turns.latency
        times = [f"{value:.1f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
        score = "" if row.score is None else f"{row.score:.1f}"
        speed, memory = f"{latency.images_per_s:.1f}", f"{row.turns.memory_mb:.0f}"
        table.add_row(str(row.batch), row.backend, row.precision, *times, speed, memory, score)
    Console().print(table)
