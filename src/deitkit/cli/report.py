"""`deitkit report`: a run's report again, or several runs compared on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import log
from ..errors import SettingError
from . import options as flags

if TYPE_CHECKING:
    from ..evaluation.run_comparison import RunComparison


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs; the first is compared with.")],
    out: Annotated[
        Path | None, typer.Option(help="The page that compares several runs; a run's own is RUN/report.html.")
    ] = None,
    model: flags.Model = "recommended",
    json_: flags.Json = False,
) -> None:
    """Write a run's report again, or compare several runs on the same validation images."""
    import json

    if len(runs) == 1:
        if out is not None or json_:
            raise SettingError("--out and --json are for several runs; a run's report is RUN/report.html")
        from ..report.run_page import write_report

        with log.activity("writing the report"):
            written = write_report(runs[0])
        print(f"report: {written}")
        return
    if out is not None and (out.is_dir() or out.suffix.lower() not in (".html", ".htm")):
        raise SettingError(f"--out {out} is no page; give a file that ends in .html")
    if out is None and not json_:
        raise SettingError("several runs are compared on one page; give --out comparison.html, or --json")

    with log.activity("comparing"):
        from ..evaluation.run_comparison import compare_runs
        from ..io import claim_file
        from ..report.compare_page import write_comparison

        if out is not None:
            claim_file(out)
        found = compare_runs(runs, model)
        if out is not None:
            write_comparison(out, found)
    if json_:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print_table(found)
        print(f"page: {out}")


def _print_table(found: RunComparison) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..report.tables import interval_text
    from ..tasks import SCORES

    score = SCORES[found.task]
    table = Table("", "model", score.column, "95 % interval", "against the first", "images/s")
    differences = [None, *(each.difference for each in found.against)]
    for run, difference in zip(found.runs, differences, strict=True):
        value, interval = run.model.scores.get(score.key), run.model.interval
        paired = "" if difference is None else f"{difference.value:+.1f}"
        table.add_row(
            escape(run.name),
            escape(run.model_name),
            "" if value is None else f"{value:.1f}",
            interval_text(interval),
            paired,
            f"{run.model.images_per_s:.0f}",
        )
    console = Console()
    console.print(table)
    for sentence in found.sentences():
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
