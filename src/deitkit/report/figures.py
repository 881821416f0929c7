"""Figures that several pages show: a confusion matrix, small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..data.decode import UnreadableImage, open_rgb
from ..data.stored import ImageFile
from ..evaluation.calibration import Calibration
from ..evaluation.selective import CurvePoint
from . import page
from .tables import Counts

SIDE = 160  # pixels of an image's longer side on a page
_LABELLED = 30  # classes up to which the confusion matrix names its rows


def confusion_figure(counts: Counts, classes: Sequence[str]) -> Figure:
    """A row per true class, a column per predicted class, with counts and coloured by shares."""
    side = min(9.0, 2.6 + 0.28 * len(classes))
    figure = Figure(figsize=(side + 0.6, side))
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _LABELLED:
        ticks = range(len(classes))
        axes.set_xticks(ticks, [page.plain(c) for c in classes], rotation=90)
        axes.set_yticks(ticks, [page.plain(c) for c in classes])
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                if n:
                    axes.text(
                        j,
                        i,
                        str(n),
                        ha="center",
                        va="center",
                        color="white" if shares[i][j] > 0.5 else "black",
                    )
    return figure


def reliability_figure(panels: Mapping[str, Calibration]) -> Figure:
    """Accuracy against confidence, a panel for each title; stronger bars hold more images."""
    figure = Figure(figsize=(2.4 * len(panels), 2.7))
    for axes, (title, found) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        width, most = 100 / len(found.bins), max(b.images for b in found.bins)
        for place, b in enumerate(found.bins):
            strength = 0.25 + 0.75 * b.images / most
            axes.bar(place * width, b.top1, width, align="edge", color="tab:blue", alpha=strength, lw=0)
        axes.plot([0, 100], [0, 100], color="0.5", ls="--", lw=1)
        axes.set(title=f"{title}: {found.ece:.1f}", xlabel="probability, %", xlim=(0, 100), ylim=(0, 100))
    figure.axes[0].set_ylabel("right, %")
    return figure


def risk_coverage_figure(curve: Sequence[CurvePoint]) -> Figure:
    """The share of right answers over the share of images that a threshold answers."""
    figure = Figure(figsize=(4.2, 2.7))
    axes = figure.add_subplot(xlabel="images answered, the surest first, %", ylabel="right, %", xlim=(0, 100))
    axes.plot([p.share for p in curve], [p.precision for p in curve], marker=".")
    return figure


def thumbnail(file: ImageFile) -> str:
    """An image as a data URI of at most `SIDE` pixels; empty if the file is gone."""
    try:
        image = open_rgb(file, at_least=SIDE)
    except UnreadableImage:
        return ""
    image.thumbnail((SIDE, SIDE))
    return page.data_uri(image)
