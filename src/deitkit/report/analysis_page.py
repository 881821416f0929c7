"""`analysis.html`: what an analysis found, on one page with everything inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.analysis import AttentionImage
from ..io import write_text
from . import analysis_figures as figures
from . import page

_TITLES = {
    "labels": "labels",
    "teacher": "teacher",
    "baseline": "baseline",
    "class": "class head",
    "distill": "distillation head",
    "joint": "joint",
}
_SIDE = 160  # pixels of a image's longer side on the page


def write_analysis(path: Path, found: dict[str, Any], pictures: list[AttentionImage]) -> None:
    """Writes the page of `found`, the content of `analysis.json`."""
    tokens = found["tokens"]
    content = page.render(
        "analysis.html.j2",
        found=found,
        titles=_TITLES,
        names=list(found["accuracy"]),
        token_layers=page.svg(figures.token_layers(tokens["layers"])) if tokens else None,
        token_training=page.svg(figures.token_training(tokens["training"]))
        if tokens and tokens["training"]
        else None,
        distances=page.svg(figures.attention_distances(found["attention"])) if found["attention"] else None,
        reliability=page.svg(figures.reliability(found["calibration"], _TITLES)),
        corruptions=page.svg(figures.corruptions(found["corruptions"], _TITLES)),
        pictures=[_shown(picture) for picture in pictures],
    )
    write_text(path, content)


def _shown(picture: AttentionImage) -> dict[str, Any]:
    """The image and its maps as sources of `img` elements."""
    view = Image.fromarray(np.ascontiguousarray(picture.pixels.transpose(1, 2, 0)))
    scale = _SIDE / max(view.size)
    view = view.resize((round(view.width * scale), round(view.height * scale)), Image.Resampling.BICUBIC)
    return {
        "path": picture.path,
        "label": picture.label,
        "decisions": picture.decisions,
        "view": page.data_uri(view),
        "maps": {
            title: page.data_uri(figures.overlay(view, weights)) for title, weights in picture.maps.items()
        },
    }
