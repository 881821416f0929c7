"""`analysis.html`: the content of `analysis.json` as one page with figures, everything inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..evaluation.analysis import AttentionImage, Mistake
from ..io import write_text
from . import page
from .figures import SIDE
from .overlay import overlay, view_image

_TITLES = {
    "labels": "labels",
    "teacher": "teacher",
    "baseline": "baseline",
    "class": "class head",
    "distill": "distillation head",
    "joint": "student",
}
_COLOURS = {
    "teacher": "tab:red",
    "baseline": "0.55",
    "class": "tab:blue",
    "distill": "tab:orange",
    "joint": "tab:green",
}


def write_analysis(
    path: Path, found: dict[str, Any], mistakes: list[Mistake], images: list[AttentionImage]
) -> None:
    """Writes the page of `found`, the content of `analysis.json`."""
    tokens = found["tokens"]
    content = page.render(
        "analysis.html.j2",
        found=found,
        titles=_TITLES,
        names=list(found["accuracy"]),
        token_layers=page.svg(_token_layers(tokens["layers"])) if tokens else None,
        token_training=page.svg(_token_training(tokens["training"]))
        if tokens and tokens["training"]
        else None,
        distances=page.svg(_attention_distances(found["attention"])) if found["attention"] else None,
        reliability=page.svg(_reliability(found["calibration"], _TITLES)),
        corruptions=page.svg(_corruptions(found["corruptions"], _TITLES)),
        mistakes=[{"about": each, "view": page.data_uri(view_image(each.pixels, SIDE))} for each in mistakes],
        images=[_shown(image) for image in images],
    )
    write_text(path, content)


def _shown(image: AttentionImage) -> dict[str, Any]:
    """The image and its maps as sources of `img` elements."""
    view = view_image(image.pixels, SIDE)
    return {
        "path": image.path,
        "label": image.label,
        "decisions": image.decisions,
        "view": page.data_uri(view),
        "maps": {title: page.data_uri(overlay(view, weights)) for title, weights in image.maps.items()},
    }


def _token_layers(layers: list[dict[str, Any]]) -> Figure:
    """Cosine of class and distillation token at each layer, with its spread over images."""
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="after block", ylabel="cosine of the two tokens")
    mean, std = (np.array([layer[key] for layer in layers]) for key in ("mean", "std"))
    axes.fill_between(range(len(layers)), mean - std, mean + std, alpha=0.2, lw=0)
    axes.plot(mean, marker="o", ms=4)
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set_xticks(range(len(layers)), [layer["layer"] for layer in layers])
    axes.set_ylim(min(-0.1, float((mean - std).min())), 1.05)
    return figure


def _token_training(training: list[dict[str, float]]) -> Figure:
    """Cosine of the learnt class and distillation embeddings after each epoch."""
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(ylabel="cosine of the two embeddings")
    page.epoch_axis(axes)
    epochs, cosines = ([point[key] for point in training] for key in ("epoch", "cosine"))
    axes.plot(epochs, cosines, marker="." if len(training) == 1 else None)
    axes.axhline(0, color="0.7", lw=0.8)
    return figure


def _attention_distances(attention: dict[str, Any]) -> Figure:
    """A dot for each head, its mean attention distance over its block."""
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.add_subplot(xlabel="block", ylabel="mean attention distance, pixels")
    for block, heads in enumerate(attention["distance_px"], 1):
        axes.plot([block] * len(heads), sorted(heads), "o", ms=5, alpha=0.7, color="tab:blue")
    axes.axhline(attention["uniform_px"], color="0.5", ls="--", lw=1, label="attention to all patches alike")
    axes.set_xticks(range(1, len(attention["distance_px"]) + 1))
    axes.set_ylim(bottom=0)
    page.legend_above(axes)
    return figure


def _reliability(calibration: dict[str, Any], titles: dict[str, str]) -> Figure:
    """Accuracy against confidence, a panel for each classifier; stronger bars hold more images."""
    figure = Figure(figsize=(2.4 * len(calibration), 2.7))
    panels = figure.subplots(1, len(calibration), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, calibration.items(), strict=True):
        bins = found["bins"]
        width, most = 100 / len(bins), max(b["images"] for b in bins)
        for place, b in enumerate(bins):
            if b["images"]:
                strength = 0.25 + 0.75 * b["images"] / most
                axes.bar(
                    place * width, b["top1"], width, align="edge", color=_COLOURS[name], alpha=strength, lw=0
                )
        axes.plot([0, 100], [0, 100], color="0.5", ls="--", lw=1)
        axes.set(title=f"{titles[name]}: {found['ece']:.1f}", xlabel="confidence, %", xlim=(0, 100))
    panels[0].set(ylabel="right, %", ylim=(0, 100))
    return figure


def _corruptions(found: dict[str, Any], titles: dict[str, str]) -> Figure:
    """Top-1 against severity, a panel for each corruption, a line for each classifier."""
    names = list(next(iter(found["top1"].values())))
    figure = Figure(figsize=(9.6, 4.8))
    panels = figure.subplots(-(-len(names) // 3), 3, sharex=True, sharey=True).flat
    severities = [0, *found["severities"]]
    for axes, name in zip(panels, names, strict=False):
        for who, by_name in found["top1"].items():
            values = [found["clean"][who], *by_name[name]]
            axes.plot(severities, values, color=_COLOURS[who], marker=".", label=titles[who])
        axes.set(title=name, xticks=severities, ylim=(0, 100))
    for axes in figure.axes[-3:]:
        axes.set_xlabel("severity")
    for axes in figure.axes[::3]:
        axes.set_ylabel("top-1, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(labels)
    )
    return figure
