"""Writes the results of a study: runs.csv, summary.md and .json with table and finding, and a figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..io import write_json, write_text, written_aside
from .description import Axis, Study
from .finding import Decision, decide, paragraph
from .plan import StudyJob
from .records import MeasuredRow, measure_rows, read_records, write_csv

# The same numbers give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "deitkit", "svg.fonttype": "none", "font.size": 9})


def summarise(job: StudyJob, skipped: Mapping[str, str]) -> str:
    """Writes all files from the finished runs, and returns the paragraph with the finding.

    skipped: arms that were left out, with the reason.
    """
    study, records = job.study, read_records(job)
    rows = measure_rows(study.rows_of(job.preset), records)
    decisions = decide(study.claims_of(job.preset), rows)
    finding = paragraph(study, decisions)
    planned = len(study.arms_of(job.preset)) * len(job.seeds)
    write_csv(job.out / "runs.csv", records)
    if rows:
        write_figure(study, rows, job.out)
    parts = [
        f"# {study.title}",
        f"{study.source}. Preset {job.preset}. {len(records)} of {planned} runs are finished.",
        table(rows),
        *(["![top-1 of every arm](figure.svg)"] if rows else []),
        *(f"Left out: {arm}, since {reason}." for arm, reason in skipped.items()),
        finding,
    ]
    write_text(job.out / "summary.md", "\n\n".join(parts) + "\n")
    write_json(job.out / "summary.json", _facts(job, rows, decisions, finding))
    return finding


def table(rows: Sequence[MeasuredRow]) -> str:
    """A Markdown table: mean and standard deviation over seeds, and the paper's value."""
    lines = ["| | top-1, % | seeds | the paper |", "|---|---|---|---|"]
    for measured in rows:
        values = list(measured.values.values())
        value = mean_and_spread(values)
        paper = "" if measured.row.paper is None else f"{measured.row.paper:.1f}"
        lines.append(f"| {measured.row.name} | {value} | {len(values)} | {paper} |")
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, such as "81.2 ± 0.4"; a single value alone; empty for none."""
    if not values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")


def _facts(
    job: StudyJob, rows: Sequence[MeasuredRow], decisions: Sequence[Decision], finding: str
) -> dict[str, Any]:
    return {
        "study": job.study.name,
        "source": job.study.source,
        "preset": job.preset,
        "rows": [
            {"name": m.row.name, "top1": m.values, "paper": m.row.paper, "teacher_top1": _teacher(m)}
            for m in rows
        ],
        "claims": [
            {
                "says": d.claim.says,
                "verdict": d.verdict,
                "seeds": d.seeds,
                "paper": job.study.paper_gap(d.claim),
                **(dataclasses.asdict(d.comparison) if d.comparison else {}),
            }
            for d in decisions
        ],
        "finding": finding,
    }


def _teacher(measured: MeasuredRow) -> float | None:
    found = [r.teacher_top1 for r in measured.records if r.teacher_top1 is not None]
    return statistics.mean(found) if found else None


# The figure


def write_figure(study: Study, rows: Sequence[MeasuredRow], folder: Path) -> None:
    """Writes `figure.svg` and `figure.png`: faint points are runs, bars one standard deviation over seeds."""
    figure = Figure(figsize=(6.4, 3.6 if study.axis else 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=study.title)
    if study.axis:
        _over_axis(axes, rows, study.axis)
    else:
        _one_above_the_other(axes, rows)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with written_aside(folder / f"figure.{kind}") as side:
            figure.savefig(side, format=kind, dpi=150, metadata=metadata)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _over_axis(axes: Axes, rows: Sequence[MeasuredRow], axis: Axis) -> None:
    for name in dict.fromkeys(row.row.series for row in rows):
        own = sorted((row for row in rows if row.row.series == name), key=lambda r: r.mean_of(axis.column))
        x = [row.mean_of(axis.column) for row in own]
        means = [statistics.mean(row.values.values()) for row in own]
        spreads = [spread(list(row.values.values())) for row in own]
        line = axes.errorbar(x, means, spreads, marker="o", ms=4, capsize=3, label=name or None)[0]
        for at, row in zip(x, own, strict=True):
            axes.plot(
                [at] * len(row.values), list(row.values.values()), ".", color=line.get_color(), alpha=0.35
            )
    axes.set(xlabel=axis.label, ylabel="top-1, %")
    if axis.log:
        axes.set_xscale("log")
    if any(row.row.series for row in rows):
        axes.legend(frameon=False)


def _one_above_the_other(axes: Axes, rows: Sequence[MeasuredRow]) -> None:
    for place, measured in enumerate(rows):
        values = list(measured.values.values())
        axes.errorbar(
            statistics.mean(values), place, xerr=spread(values), marker="o", capsize=3, color="tab:blue"
        )
        axes.plot(values, [place] * len(values), ".", color="0.3", alpha=0.5)
    axes.set_yticks(range(len(rows)), [measured.row.name for measured in rows])
    axes.invert_yaxis()
    axes.set_xlabel("top-1, %")
