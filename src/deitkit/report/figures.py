"""Figures that several pages show: a confusion matrix, small images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..data.decode import UnreadableImage, open_rgb
from . import page
from .tables import Counts

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


def thumbnail(path: Path) -> str:
    """An image as a data URI of at most 160 pixels; empty if the file is gone."""
    try:
        image = open_rgb(path, at_least=160)
    except UnreadableImage:
        return ""
    image.thumbnail((160, 160))
    return page.data_uri(image)
