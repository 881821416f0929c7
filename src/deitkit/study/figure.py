"""The image of a study: rows as points with their spread, over an axis where it has one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..io import written_aside
from .description import Axis, Study
from .records import Measured

# The same numbers give the same file.
matplotlib.rcParams.update({"svg.hashsalt": "deitkit", "svg.fonttype": "none", "font.size": 9})


def write_figure(study: Study, rows: Sequence[Measured], folder: Path) -> None:
    """Writes `figure.svg` and `figure.png`; every run is a faint point, bars are +- one std over seeds."""
    figure = Figure(figsize=(6.4, 3.6 if study.axis else 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=study.title)
    if study.axis:
        _over_axis(axes, rows, study.axis)
    else:
        _beside_each_other(axes, rows)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with written_aside(folder / f"figure.{kind}") as side:
            figure.savefig(side, format=kind, dpi=150, metadata=metadata)


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _over_axis(axes: Axes, rows: Sequence[Measured], axis: Axis) -> None:
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


def _beside_each_other(axes: Axes, rows: Sequence[Measured]) -> None:
    for place, measured in enumerate(rows):
        values = list(measured.values.values())
        axes.errorbar(
            statistics.mean(values), place, xerr=spread(values), marker="o", capsize=3, color="tab:blue"
        )
        axes.plot(values, [place] * len(values), ".", color="0.3", alpha=0.5)
    axes.set_yticks(range(len(rows)), [measured.row.name for measured in rows])
    axes.invert_yaxis()
    axes.set_xlabel("top-1, %")
