"""What a verb prints when a signal stops it."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import typer

from .. import distributed

_given: ContextVar[Sequence[str] | None] = ContextVar("given", default=None)


def remember(arguments: Sequence[str] | None) -> None:
    """Keeps the arguments of `main`, to print the command again; None stands for `sys.argv`."""
    _given.set(arguments)


@contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """Turns a stop by a signal into a line with the command that resumes, and exit status 130.

    During training the loop saves its state first (`Interrupted`); before that, while images are decoded or
    the teacher is fitted, what is finished is in the cache or in the run folder.
    """
    from ..errors import Interrupted

    try:
        with _terminations_interrupt():
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        if not distributed.is_main():
            raise typer.Exit(130) from None
        given = _given.get()
        command = _typed() if given is None else ["deitkit", *given]
        command = command if resume else [*command, "--resume"]
        kept = "the state is saved" if isinstance(stop, Interrupted) else "finished work is kept"
        print(f"Interrupted; {kept}. To resume: {shlex.join(command)}", file=sys.stderr)
        raise typer.Exit(130) from None


def _typed() -> list[str]:
    """The command line as it was typed: a command that is found by its name is called by it."""
    name = Path(sys.argv[0]).name
    found = shutil.which(name)
    same = found is not None and Path(found).resolve() == Path(sys.argv[0]).resolve()
    return [name if same else sys.argv[0], *sys.argv[1:]]


@contextmanager
def _terminations_interrupt() -> Iterator[None]:
    """SIGTERM, SIGHUP (the terminal was closed) and SIGUSR1 (from a scheduler) act as SIGINT."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    try:
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGHUP and SIGUSR1
                before[getattr(signal, name)] = signal.signal(getattr(signal, name), interrupt)
    except ValueError:  # not in the main thread: the caller owns the signals
        before.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
