"""What a person watching sees: log records, progress bars, one line per epoch.

The library logs to the logger `deitkit` and shows nothing by itself. The command line, or a call of
`show_progress`, prints its records and draws progress bars on stderr.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("deitkit")
info, warning = logger.info, logger.warning


def _in_utf8(record: logging.LogRecord) -> bool:
    """File names may not be UTF-8, and a handler that writes to a file would fail on them."""
    record.msg = record.getMessage().encode("utf-8", "backslashreplace").decode("utf-8")
    record.args = ()
    return True


logger.addFilter(_in_utf8)
_console = Console(stderr=True, highlight=False)
_bars: Progress | None = None  # the display that is on, if any


class _TerminalHandler(logging.Handler):
    """Prints a record as one plain line."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        _console.print(text, markup=False, soft_wrap=True)


def show_progress(shown: bool = True) -> None:
    """Prints log records and draws progress bars on stderr; `False` prints warnings only."""
    for handler in list(logger.handlers):
        if isinstance(handler, _TerminalHandler):
            logger.removeHandler(handler)
    logger.addHandler(_TerminalHandler())
    logger.propagate = False
    logger.setLevel(logging.INFO if shown else logging.WARNING)


@contextmanager
def progress_bar(title: str, total: int | None, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` items, None if that is not known. Call the yielded function with the number
    of items just done."""
    with _row(title, total) as (progress, task):

        def advance(n: int) -> None:
            speed = progress.tasks[progress.task_ids.index(task)].speed
            progress.update(task, advance=n, rate=f"{speed:.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def activity(title: str) -> Iterator[None]:
    """A moving bar while something runs whose progress is not known, so that the terminal is never silent."""
    with _row(title, None):
        yield


@contextmanager
def _row(title: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar below those that are shown already: rich has one live display per terminal."""
    global _bars
    handled = any(isinstance(h, _TerminalHandler) for h in logger.handlers)
    shown = handled and logger.isEnabledFor(logging.INFO)
    shown = shown and (_console.is_terminal or _console.is_jupyter)  # in a file a bar is a blank line
    outermost = _bars is None
    if _bars is None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        rate_column = TextColumn("{task.fields[rate]}")
        _bars = Progress(*columns, rate_column, console=_console, transient=True, disable=not shown)
        _bars.start()
    bars = _bars
    task = bars.add_task(title, total=total, rate="")
    try:
        yield bars, task
    finally:
        bars.remove_task(task)
        if outermost:
            bars.stop()
            _bars = None
