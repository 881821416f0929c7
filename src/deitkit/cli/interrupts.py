"""How a verb ends whose work a signal stopped after its state was saved."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import typer

_given: ContextVar[Sequence[str] | None] = ContextVar("given", default=None)


def remember(arguments: Sequence[str] | None) -> None:
    """Keeps what the command line was given; None where it reads the process's own arguments.

    A script that calls `main` has arguments of its own, which are not to be repeated.
    """
    _given.set(arguments)


@contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """Turns Interrupted into the command that goes on, and status 130."""
    from ..errors import Interrupted

    try:
        yield
    except Interrupted:
        given = _given.get()
        command = sys.argv if given is None else ["deitkit", *given]
        command = command if resume else [*command, "--resume"]
        print(f"stopped and saved; to go on: {shlex.join(command)}", file=sys.stderr)
        raise typer.Exit(130) from None
