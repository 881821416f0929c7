"""Colour operations on batches of views: (B, 3, H, W) float in [0, 255] and a level (B, 1, 1, 1).

`OPERATIONS` are RandAugment's, with timm's "increasing" strengths: levels are in [-1, 1], and a larger
absolute value is a stronger change. `THREE_AUGMENT` are 3-Augment's. Sums over pixels are sums of integers,
so that they do not depend on the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def grey(x: Tensor) -> Tensor:
    """Luma of ITU-R 601: (B, 1, H, W)."""
    return x[:, :1] * 0.299 + x[:, 1:2] * 0.587 + x[:, 2:] * 0.114


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with black: towards it for a factor below 1, away from it above 1."""
    return (x * factor).clamp_(0, 255)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the grey image: towards it for a factor below 1, away from it above 1."""
    g = grey(x)
    return ((x - g) * factor + g).clamp_(0, 255)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the image's mean grey: towards it for a factor below 1, away from it above 1."""
    g = grey(x).round_().to(torch.int64)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    mean = (g.sum((1, 2, 3), keepdim=True).to(exact) / g[0].numel()).to(x.dtype)
    return ((x - mean) * factor + mean).clamp_(0, 255)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blends with the smoothed image, except at the border: towards it below 1, away from it above 1."""
    pad = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = pad[:, :, :-2] + pad[:, :, 1:-1] + pad[:, :, 2:]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x) / 13
    out = ((x - smooth) * factor + smooth).clamp_(0, 255)
    out[:, :, [0, -1]], out[..., [0, -1]] = x[:, :, [0, -1]], x[..., [0, -1]]
    return out


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with `sigma` (B, 1, 1, 1) of at most 2 pixels; the border is replicated."""
    reach = 6  # three standard deviations of the widest
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)  # (B, 1, 1, 2 reach + 1)
    weights = weights / weights.sum(-1, keepdim=True)
    for axis in (2, 3):
        at = torch.arange(x.shape[axis], device=x.device)
        blurred = torch.zeros_like(x)
        # Tap by tap, not a convolution, whose rounding may depend on the batch size.
        for i in range(2 * reach + 1):
            tap = (at + i - reach).clamp(0, x.shape[axis] - 1)
            blurred = blurred + x.index_select(axis, tap) * weights[..., i : i + 1]
        x = blurred
    return x


# 3-Augment (DeiT III, arXiv 2204.07118, section 3.2): one of three, at full strength; `u` in [0, 1).
THREE_AUGMENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grey": lambda x, u: grey(x).expand_as(x),
    "solarize": lambda x, u: torch.where(x < 128, x, 255.0 - x),
    "blur": lambda x, u: gaussian_blur(x, 0.1 + 1.9 * u),
}


def _enhance_factor(level: Tensor) -> Tensor:
    return (1 + 0.9 * level).clamp_min(0.1)


def _auto_contrast(x: Tensor, level: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    stretched = (x - low) * (255.0 / (high - low).clamp_min(1e-6))
    return torch.where(high > low, stretched, x)


def _equalize(x: Tensor, level: Tensor) -> Tensor:
    B, C, H, W = x.shape
    values = x.round().to(torch.int64).clamp_(0, 255).reshape(B * C, H * W)
    counts = torch.zeros(B * C, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    # PIL's rule: the last filled bin does not count towards the step, and half a step is added.
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (H * W - last) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp_min(1)).clamp_(0, 255)
    equalized = table.gather(1, values).reshape(B, C, H, W).to(x.dtype)
    return torch.where((step > 0).reshape(B, C, 1, 1), equalized, x)


def _invert(x: Tensor, level: Tensor) -> Tensor:
    return 255.0 - x


def _posterize(x: Tensor, level: Tensor) -> Tensor:
    bits = 4 - (level.abs() * 4).floor()
    size = 2.0 ** (8 - bits)
    return (x / size).floor_() * size


def _solarize(x: Tensor, level: Tensor) -> Tensor:
    return torch.where(x < 256 - (level.abs() * 256).floor(), x, 255.0 - x)


def _solarize_add(x: Tensor, level: Tensor) -> Tensor:
    added = (x + (level.abs() * 110).floor().clamp_max(128)).clamp_max(255)
    return torch.where(x < 128, added, x)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda x, level: saturation(x, _enhance_factor(level)),
    "contrast": lambda x, level: contrast(x, _enhance_factor(level)),
    "brightness": lambda x, level: brightness(x, _enhance_factor(level)),
    "sharpness": lambda x, level: sharpness(x, _enhance_factor(level)),
}
