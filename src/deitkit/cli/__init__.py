"""The command line: a verb a file. Heavy imports stay inside the verbs, so --help is instant."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from .. import distributed, log
from ..errors import DeitkitError, ProcessLost
from .analyze import analyze
from .bench import bench
from .check import check
from .convert import convert
from .eval import evaluate
from .explain import explain
from .export import export
from .interrupts import remember
from .label import label
from .listing import list_models, list_recipes, list_settings
from .pack import pack
from .predict import predict
from .pretrain import pretrain
from .push import card, push
from .report import report
from .serve import serve
from .study import study
from .teacher_commands import app as teacher
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    help="A folder of images in, a small, fast, accurate image classifier out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        import deitkit

        print(f"deitkit {deitkit.__version__}")
        raise typer.Exit


# Verbs whose work several processes share; the main process alone does the others.
SHARED = ("train", "predict", "eval", "label", "pretrain", "study", "teacher")


@app.callback()
def _without_verb(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and results only.")] = False,
) -> None:
    if not distributed.is_main() and context.invoked_subcommand not in SHARED:
        raise typer.Exit
    log.show_progress(not quiet)


# Verb, function, panel of the help, example.
_USE, _IMPROVE, _RESEARCH = "Use", "Improve", "Research"
for _verb, _function, _panel, _example in (
    ("check", check, _USE, "deitkit check photos/ --labels --out photos-check"),
    ("train", train, _USE, "deitkit train photos/ --out runs/photos --budget 10m"),
    ("predict", predict, _USE, "deitkit predict runs/photos new.jpg"),
    ("eval", evaluate, _USE, "deitkit eval runs/photos test-photos/"),
    ("explain", explain, _USE, "deitkit explain runs/photos new.jpg --out why"),
    ("export", export, _USE, "deitkit export runs/photos --to onnx --out photos.onnx"),
    ("serve", serve, _USE, "deitkit serve runs/photos"),
    ("card", card, _USE, "deitkit card runs/photos --license apache-2.0"),
    ("push", push, _USE, "deitkit push runs/photos me/photos --license mit --data-license cc0-1.0 --dry-run"),
    ("bench", bench, _USE, "deitkit bench runs/photos"),
    ("analyze", analyze, _IMPROVE, "deitkit analyze runs/photos test-photos/"),
    ("report", report, _IMPROVE, "deitkit report runs/a runs/b --out comparison.html"),
    ("label", label, _IMPROVE, "deitkit label photos/ --epochs 60 --out soft-labels"),
    ("pretrain", pretrain, _IMPROVE, "deitkit pretrain more-photos/ --out runs/start"),
    ("pack", pack, _IMPROVE, "deitkit pack photos/ --to webdataset --out photos-shards"),
    ("convert", convert, _IMPROVE, "deitkit convert runs/photos out --to timm"),
    ("study", study, _RESEARCH, "deitkit study distillation photos/ --out studies/distillation"),
    ("recipes", list_recipes, _RESEARCH, "deitkit recipes small-data deit-distilled"),
    ("settings", list_settings, _RESEARCH, "deitkit settings distillation"),
    ("models", list_models, _RESEARCH, "deitkit models"),
):
    app.command(_verb, rich_help_panel=_panel, epilog=f"Example: {_example}")(_function)
app.add_typer(teacher, name="teacher", rich_help_panel=_IMPROVE)

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line. A mistake that the user can fix ends in one sentence and exit status 2."""
    remember(arguments)
    log.show_progress()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be UTF-8
    printing = contextlib.nullcontext() if distributed.is_main() else _silenced()
    try:
        with printing:
            app(arguments)
    except ProcessLost as error:
        _end(f"{error}; once all have, the command with --resume goes on from the last checkpoint")
        raise SystemExit(1) from None
    except DeitkitError as error:
        _end(str(error))
    except OSError as error:
        if error.errno not in _NO_SPACE | _NO_PERMISSION:
            raise
        where = f" at {error.filename}" if error.filename else ""
        what, remedy = "cannot write", "free some space and run the command again (train with --resume)"
        if error.errno in _NO_PERMISSION:
            what, remedy = "cannot write or read", "check the permissions"
        _end(f"{what}{where} ({error.strerror}); {remedy}, or choose another --out")
    else:
        return
    raise SystemExit(2)


def _end(sentence: str) -> None:
    """Says why the command ends: once, if several processes share it."""
    if distributed.speaks_first():
        print(f"deitkit: {sentence}", file=sys.stderr)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Tables, usage and the like come from the main process alone."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
