"""How a verb ends whose work a signal stopped after its state was saved."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """Turns Interrupted into the command that goes on, and status 130."""
    from ..training.loop import Interrupted

    try:
        yield
    except Interrupted:
        command = shlex.join(sys.argv if resume else [*sys.argv, "--resume"])
        print(f"stopped and saved; to go on: {command}", file=sys.stderr)
        raise typer.Exit(130) from None
