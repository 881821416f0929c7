"""`deitkit serve`: a run behind HTTP, with a page to try it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from ..config import BackendName
from . import options as flags


def serve(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, or of fitted teachers.")],
    model: flags.Model = "recommended",
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="DEITKIT_TOKEN", help="What requests have to bring in Authorization: Bearer."),
    ] = None,
    device: flags.Device = None,
    backend: Annotated[str, typer.Option(help=f"{', '.join(get_args(BackendName))}.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share the cores.")] = 1,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are answered 503.")] = 64,
) -> None:
    """Serve a run's classifier over HTTP, and a page to try it in the browser."""
    from ..deploy.serving import serve as run_server

    run_server(
        runs,
        model=model,
        host=host,
        port=port,
        token=token,
        device=device or "auto",
        backend=cast(BackendName, backend),
        queue=queue,
        workers=workers,
    )
