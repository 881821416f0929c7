"""Common corruptions: noise, blur, brightness, contrast, JPEG compression and pixelation.

Six of the corruptions of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261) at its severities 1, 3 and
5. As there, they are applied to the model's view, after cropping and resizing. Each is a pure function of
(pixels, seed). The blur, given in pixels of a 224-pixel image, is scaled to the view's shorter side; JPEG
keeps its blocks of 8 x 8.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]  # (H, W, 3) in [0, 1]

SEVERITIES = (1, 3, 5)


def corrupt(pixels: NDArray[np.uint8], name: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """One image (3, H, W) uint8 under the corruption `name` at `severity`, one of SEVERITIES.

    The same arguments give the same pixels. Only the noise depends on `seed`; its pattern is the same at
    every severity.
    """
    change, strengths = CORRUPTIONS[name]
    strength = strengths[SEVERITIES.index(severity)]
    changed = change(pixels.transpose(1, 2, 0) / 255.0, strength, seed)
    return np.round(255.0 * np.clip(changed, 0.0, 1.0)).astype(np.uint8).transpose(2, 0, 1)


def _gaussian_noise(x: Array, std: float, seed: int) -> Array:
    return x + std * np.random.RandomState(seed).standard_normal(x.shape)


def _gaussian_blur(x: Array, sigma: float, seed: int) -> Array:
    sigma *= min(x.shape[:2]) / 224
    radius = max(1, round(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma) ** 2)
    kernel /= kernel.sum()
    planes = torch.from_numpy(x).permute(2, 0, 1)[:, None]  # (3, 1, H, W)
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), "replicate"), kernel.view(1, 1, 1, -1))
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), "replicate"), kernel.view(1, 1, -1, 1))
    return planes[:, 0].permute(1, 2, 0).numpy()


def _brightness(x: Array, shift: float, seed: int) -> Array:
    """Raises HSV's value, the largest channel; keeps hue and saturation."""
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + shift, 1.0)
    return np.asarray(np.where(value > 0, x * raised / np.where(value > 0, value, 1.0), raised))


def _contrast(x: Array, share: float, seed: int) -> Array:
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * share + mean)


def _jpeg(x: Array, quality: float, seed: int) -> Array:
    buffer = io.BytesIO()
    _image(x).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer, formats=("JPEG",))) / 255.0


def _pixelate(x: Array, share: float, seed: int) -> Array:
    height, width = x.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    coarse = _image(x).resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    return np.asarray(coarse) / 255.0


def _image(x: Array) -> Image.Image:
    return Image.fromarray(np.round(255.0 * x).astype(np.uint8))


Corruption = tuple[Callable[[Array, float, int], Array], tuple[float, float, float]]

# The change, and its strength at each of SEVERITIES.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": (_gaussian_noise, (0.08, 0.18, 0.38)),  # standard deviation
    "gaussian blur": (_gaussian_blur, (1.0, 3.0, 6.0)),  # sigma in pixels at 224
    "brightness": (_brightness, (0.1, 0.3, 0.5)),  # added
    "contrast": (_contrast, (0.4, 0.2, 0.05)),  # kept share
    "jpeg compression": (_jpeg, (25, 15, 7)),  # quality
    "pixelate": (_pixelate, (0.6, 0.4, 0.25)),  # kept share of each side
}
