"""`deitkit check`: what a folder of images hides, as tables, JSON, lists to correct and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import log
from . import options as flags
from .options import settings_of

if TYPE_CHECKING:
    from ..evaluation.data_check import DataCheck


# What `--out` may hold already, of a check before.
_FILES = {"check.html", "check.json", "duplicates.csv", "wrong-labels.csv", "outliers.csv"}


def check(
    data: Annotated[Path, typer.Argument(help="Folder or table, as for deitkit train.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for check.html, check.json and the lists to correct.")
    ] = None,
    labels: Annotated[
        bool,
        typer.Option("--labels", help="Also find likely wrong labels and outliers (needs deitkit\\[check])."),
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher whose features --labels uses; auto by default.")
    ] = None,
    group_by: flags.GroupBy = None,
    relabel: flags.Relabel = None,
    exclude: flags.Exclude = None,
    device: flags.Device = None,
    set_: flags.Settings = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1 for leaks, unreadable files or too few images."),
    ] = False,
    json_: flags.Json = False,
    trust_remote_code: flags.TrustRemoteCode = False,
) -> None:
    """Look for duplicates across the split, unreadable files, wrong labels and outliers."""
    named = {
        "teacher.spec": teacher,
        "teacher.trust_remote_code": trust_remote_code or None,
        "data.group": group_by,
        "data.relabel": relabel,
        "data.exclude": exclude,
    }
    settings = settings_of(named, set_)

    with log.activity("starting"):
        import json

        from ..data.splits import refuse_out_among_classes
        from ..evaluation.data_check import check_data
        from ..io import create_folder, refuse_occupied

    if out is not None:
        refuse_out_among_classes(data, out)
        refuse_occupied(out, own=_FILES)
        create_folder(out)
    found = check_data(data, labels=labels, device=device or "auto", **settings)
    if out is not None:
        _write(out, found)
    if json_:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_tables(found)
    if strict and found.problems:
        raise typer.Exit(1)


def _write(out: Path, found: DataCheck) -> None:
    from ..evaluation.data_check import write_lists
    from ..report.check_page import write_check

    with log.activity("writing the page"):
        files = [*write_lists(out, found), write_check(out, found)]
    log.info(f"written: {', '.join(map(str, files))}")


def _print_tables(found: DataCheck) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    splits = list(next(iter(found.class_counts.values())))
    table = Table("class", *(Column(name, justify="right") for name in splits))
    for name, counts in found.class_counts.items():
        table.add_row(escape(name), *(str(counts[split]) for split in splits))
    console.print(table)
    console.print(f"{len(found.survey.images)} images ({found.how})", markup=False, highlight=False)
    for sentence in (*found.problems, *found.remarks):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if not found.problems:
        console.print("No leaks, no unreadable files, enough images of each class.", highlight=False)
