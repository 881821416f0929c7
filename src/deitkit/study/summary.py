"""What a study leaves behind: runs.csv, a table, a image, and the paragraph computed from them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..io import write_json, write_text
from .description import Study
from .figure import spread, write_figure
from .finding import Decision, decide, paragraph
from .records import Measured, measure_rows, read_records, write_csv


def summarise(study: Study, preset: str, out: Path, seeds: Sequence[int], skipped: Mapping[str, str]) -> str:
    """Writes `runs.csv`, `summary.md`, `summary.json` and the figure from the runs that are finished.

    skipped: arm to the reason why it was left out. Returns the paragraph.
    """
    records = read_records(study, preset, out, seeds)
    rows = measure_rows(study, preset, records)
    decisions = decide(study, preset, rows)
    text = paragraph(study, decisions)
    planned = len(study.arms_of(preset)) * len(seeds)
    write_csv(out / "runs.csv", records)
    if rows:
        write_figure(study, rows, out)
    progress = f"{len(records)} of {planned} runs are finished."
    write_text(out / "summary.md", _page(study, preset, rows, skipped, text, progress))
    write_json(out / "summary.json", _facts(study, preset, rows, decisions, text))
    return text


def table(rows: Sequence[Measured]) -> str:
    """A Markdown table: mean and standard deviation over seeds, beside the paper's number."""
    lines = ["| | top-1, % | seeds | the paper |", "|---|---|---|---|"]
    for measured in rows:
        values = list(measured.values.values())
        value = mean_and_spread(values)
        paper = "" if measured.row.paper is None else f"{measured.row.paper:.1f}"
        lines.append(f"| {measured.row.name} | {value} | {len(values)} | {paper} |")
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, such as "81.2 ± 0.4"; of a single value itself, of none nothing."""
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def _page(
    study: Study, preset: str, rows: Sequence[Measured], skipped: Mapping[str, str], text: str, progress: str
) -> str:
    parts = [f"# {study.title}", f"{study.source}. Preset {preset}. {progress}", table(rows)]
    if rows:
        parts.append("![top-1 of every arm](figure.svg)")
    parts += [f"Left out: {arm}, since {reason}." for arm, reason in skipped.items()]
    return "\n\n".join([*parts, text]) + "\n"


def _facts(
    study: Study, preset: str, rows: Sequence[Measured], decisions: Sequence[Decision], text: str
) -> dict[str, Any]:
    return {
        "study": study.name,
        "source": study.source,
        "preset": preset,
        "rows": [
            {"name": m.row.name, "top1": m.values, "paper": m.row.paper, "teacher_top1": _teacher(m)}
            for m in rows
        ],
        "claims": [
            {
                "says": d.claim.says,
                "verdict": d.verdict,
                "seeds": d.seeds,
                "paper": study.paper_gap(d.claim),
                **(dataclasses.asdict(d.comparison) if d.comparison else {}),
            }
            for d in decisions
        ],
        "finding": text,
    }


def _teacher(measured: Measured) -> float | None:
    found = [r["teacher_top1"] for r in measured.records if r["teacher_top1"] is not None]
    return statistics.mean(found) if found else None
