"""Writes results/small-data/summary.md and figure.svg from the tables of benchmarks/small_data.py.

python benchmarks/small_data_table.py
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from deitkit.study.summary import mean_and_spread
from small_data import rows_in

FOLDER = Path("results/small-data")
_ACCURACIES = ("teacher", "student", "class", "distill")
_COLUMNS = 3  # of panels in the figure
Rows = list[dict[str, str]]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    parts = ["# Students on little data\n"]
    tables = {path.stem: rows_in(path) for path in sorted(FOLDER.glob("*.csv"))}
    for name, rows in tables.items():
        parts += [f"## {name}\n", *table(rows), ""]
    reported = {name: rows for name, rows in tables.items() if not name.endswith(("-inside", "-start"))}
    if reported:
        draw(reported).savefig(FOLDER / "figure.svg")
        parts.insert(1, "![top-1 of each arm and seed beside the teacher's](figure.svg)\n")
    (FOLDER / "summary.md").write_text("\n".join(parts))


def by_arm(rows: Rows) -> dict[str, Rows]:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    return {arm: [row for row in rows if row["arm"] == arm] for arm in arms}


def table(rows: Rows) -> list[str]:
    """Mean and standard deviation of top-1 over seeds in percent, and speed relative to the teacher."""
    first = rows[0]
    head = [
        f"{first['train_images']} training and {first['val_images']} validation images. "
        f"{first['machine']}, {first['versions']}, {' and '.join(sorted({r['date'] for r in rows}))}.\n",
        "| arm | seeds | epochs | teacher | joint | class head | distillation head | minutes | speed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for arm, runs in by_arm(rows).items():
        epochs = " and ".join(sorted({r["epochs"] for r in runs}))
        values = ([float(r[key]) for r in runs if r[key]] for key in _ACCURACIES)
        heads = " | ".join(map(mean_and_spread, values))
        minutes = statistics.mean(float(r["seconds"]) for r in runs) / 60
        lines.append(f"| {arm} | {len(runs)} | {epochs} | {heads} | {minutes:.1f} | {speed(runs)} |")
    return head + lines


def speed(runs: Rows) -> str:
    """The student's inference speed over the teacher's, each on its fastest backend; the median."""
    ratios = [
        float(r["student_images_per_s"]) / float(r["teacher_images_per_s"])
        for r in runs
        if r["teacher_images_per_s"]
    ]
    return f"{statistics.median(ratios):.1f}x" if ratios else ""


def draw(tables: dict[str, Rows]) -> Figure:
    """One panel per data set: a dot per seed and arm, a line for the teacher; an arm has one colour."""
    known = dict.fromkeys(row["arm"] for rows in tables.values() for row in rows)
    colour = dict(zip(known, colormaps["tab20"].colors, strict=False))
    columns = min(len(tables), _COLUMNS)
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for unused in panels[len(tables) :]:
        unused.set_axis_off()
    for axes, (name, rows) in zip(panels, tables.items(), strict=False):
        arms = by_arm(rows)
        for place, (arm, runs) in enumerate(arms.items()):
            tops = [float(run["student"]) for run in runs]
            axes.plot(tops, [place] * len(tops), "o", color=colour[arm], alpha=0.7)
        teachers = {row["teacher"] for row in rows if row["teacher"]}
        for top in teachers:
            axes.axvline(float(top), color="black", linestyle=":", linewidth=1)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()
        axes.set_title(f"{name}\n{rows[0]['train_images']} images", fontsize=10)
        axes.set_xlabel("top-1, %; dotted: teacher", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
