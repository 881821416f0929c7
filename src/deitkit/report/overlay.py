"""Weights over an image as a heat map, brightest where they are largest."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in an image's pixels

_CELL, _GAP = 72, 4  # pixels of a map in a sheet, and between two


def view_image(pixels: NDArray[np.uint8], longest: int | None = None) -> Image.Image:
    """A view (3, H, W) as an image, enlarged or reduced to `longest` pixels of its longer side."""
    view = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if longest is None:
        return view
    scale = longest / max(view.size)
    return view.resize((round(view.width * scale), round(view.height * scale)), Image.Resampling.BICUBIC)


def overlay(image: Image.Image, weights: NDArray[np.float32], seen: Box | None = None) -> Image.Image:
    """The image in grey under a heat map of weights (h, w).

    seen: the part of the image that the weights are of; the rest has no weight. By default all of it.
    """
    heat = Image.fromarray((weights / max(weights.max(), 1e-12)).astype(np.float32))
    left, top, right, bottom = (0, 0, *image.size) if seen is None else (round(side) for side in seen)
    levels = np.zeros((image.height, image.width), np.float32)
    heat = heat.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR)
    levels[top:bottom, left:right] = np.asarray(heat)[: image.height - top, : image.width - left]
    out = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, 2**20 // image.width)  # in strips: floats of a whole photo would take hundreds of MB
    for first in range(0, image.height, rows):
        strip = slice(first, first + rows)
        colours = matplotlib.colormaps["inferno"](levels[strip])[..., :3]
        grey = np.asarray(image.crop((0, first, image.width, min(first + rows, image.height))).convert("L"))
        out[strip] = np.round(255 * (0.4 * grey[..., None] / 255.0 + 0.6 * colours))
    return Image.fromarray(out)


def sheet(view: Image.Image, maps: Sequence[Sequence[NDArray[np.float32]]]) -> Image.Image:
    """Rows of maps (h, w), each over a small copy of the view."""
    small = view.copy()
    small.thumbnail((_CELL, _CELL))
    if max(small.size) < _CELL:
        scale = _CELL / max(small.size)
        small = small.resize((round(small.width * scale), round(small.height * scale)))
    across, down = small.width + _GAP, small.height + _GAP
    out = Image.new("RGB", (across * len(maps[0]) - _GAP, down * len(maps) - _GAP), "white")
    for i, row in enumerate(maps):
        for j, weights in enumerate(row):
            out.paste(overlay(small, weights), (j * across, i * down))
    return out
