"""The page of `deitkit report RUN RUN...`: runs side by side, with everything inside it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..evaluation.run_comparison import RunComparison
from ..io import create_folder, write_text
from ..tasks import SCORE_NAMES, SCORES
from . import page


def write_comparison(path: Path, found: RunComparison) -> None:
    """Writes the page `path`."""
    score = SCORES[found.task]
    content = page.render(
        "compare.html.j2",
        name=", ".join(run.name for run in found.runs),
        found=found,
        score=score,
        metric=SCORE_NAMES[found.metric],
        sentences=found.sentences(),
        differences=page.svg(_differences(found)) if any(a.difference for a in found.against) else None,
        accuracy=page.svg(_accuracy_curves(found)),
        loss=page.svg(_loss_curves(found)),
    )
    create_folder(path.parent)
    write_text(path, content)


def _differences(found: RunComparison) -> Figure:
    """A dot with its interval for each run against the first."""
    known = [each for each in reversed(found.against) if each.difference is not None]
    figure = Figure(figsize=(5.6, 0.9 + 0.35 * len(known)))
    axes = figure.add_subplot(xlabel=f"{SCORE_NAMES[found.metric]} against the first run, points")
    for i, each in enumerate(known):
        assert each.difference is not None
        value, low, high = each.difference.value, each.difference.low, each.difference.high
        axes.errorbar(value, i, xerr=[[value - low], [high - value]], fmt="o", color="tab:blue", elinewidth=1)
    axes.axvline(0, color="0.5", lw=1)
    axes.set_yticks(range(len(known)), [page.plain(each.name) for each in known])
    axes.margins(y=0.3)
    return figure


def _accuracy_curves(found: RunComparison) -> Figure:
    """Of the student of each run, after each epoch."""
    score = SCORES[found.task]
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(ylabel=f"{score.name} of the student on validation, %")
    page.epoch_axis(axes)
    for run in found.runs:
        averaged = run.results.weights == "ema"
        lines = [(line.epoch, line.val_ema if averaged else line.val) for line in run.metrics]
        points = [(e, v) for e, scores in lines if scores and (v := scores.get(score.key)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=page.plain(run.name), marker=_marker(points))
    page.legend_above(axes, columns=2)
    return figure


def _loss_curves(found: RunComparison) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(ylabel="training loss", yscale="log")
    page.epoch_axis(axes)
    for run in found.runs:
        points = [(line.epoch, line.train["loss"]) for line in run.metrics if "loss" in line.train]
        if points:
            axes.plot(*zip(*points, strict=True), label=page.plain(run.name), marker=_marker(points))
    page.legend_above(axes, columns=2)
    return figure


def _marker(points: list[tuple[int, float]]) -> str | None:
    return "." if len(points) == 1 else None
