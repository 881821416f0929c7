"""The command line: a verb a file. Heavy imports stay inside the verbs, so --help is instant."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import log
from ..errors import DeitkitError
from .analyze import analyze
from .bench import bench
from .convert import convert
from .eval import evaluate
from .export import export
from .interrupts import remember
from .label import label
from .models_command import list_models
from .predict import predict
from .pretrain import pretrain
from .recipes_command import list_recipes
from .study import study
from .teacher_commands import app as teacher
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    help="A folder of images in, a small, fast, accurate image classifier out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        import deitkit

        print(f"deitkit {deitkit.__version__}")
        raise typer.Exit


@app.callback()
def _of_no_verb(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.command("train")(train)
app.command("label")(label)
app.command("eval")(evaluate)
app.command("analyze")(analyze)
app.command("predict")(predict)
app.command("convert")(convert)
app.command("pretrain")(pretrain)
app.command("export")(export)
app.command("bench")(bench)
app.command("recipes")(list_recipes)
app.command("study")(study)
app.add_typer(teacher, name="teacher")
app.command("models")(list_models)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line; a mistake the user can mend ends in one sentence and status 2."""
    remember(arguments)
    log.show_progress()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no UTF-8
    try:
        app(arguments)
    except DeitkitError as error:
        print(f"deitkit: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in _NO_SPACE | _NO_RIGHT:
            raise
        where = f" at {error.filename}" if error.filename else ""
        what, remedy = "cannot write", "free space and give the command again (train with --resume)"
        if error.errno in _NO_RIGHT:
            what, remedy = "cannot write or read", "check the rights"
        print(
            f"deitkit: {what}{where} ({error.strerror}); {remedy}, or choose another --out", file=sys.stderr
        )
    else:
        return
    raise SystemExit(2)
