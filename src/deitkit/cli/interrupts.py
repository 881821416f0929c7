"""What a verb prints when a signal stopped it after its state was saved."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import typer

_given: ContextVar[Sequence[str] | None] = ContextVar("given", default=None)


def remember(arguments: Sequence[str] | None) -> None:
    """Keeps the arguments of `main`, to print the command again; None stands for `sys.argv`."""
    _given.set(arguments)


@contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """Turns Interrupted into a line with the command that resumes, and exit status 130."""
    from ..errors import Interrupted

    try:
        yield
    except Interrupted:
        given = _given.get()
        command = sys.argv if given is None else ["deitkit", *given]
        command = command if resume else [*command, "--resume"]
        print(f"Interrupted; the state is saved. To resume: {shlex.join(command)}", file=sys.stderr)
        raise typer.Exit(130) from None
