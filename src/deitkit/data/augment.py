"""Augments batches: (pixels, keys) -> views. Each view is a pure function of its image and its key.

Crop, flip, rotation, shear and translation are composed into one affine map, so each view is resampled once.
The colour operations of RandAugment follow, on groups of views that drew the same operation. No operation
mixes values of different images, so a view does not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..config import AugmentConfig
from . import color
from .rng import normal, uniform

Array = NDArray[np.float64]
Keys = NDArray[np.uint64]
Operation = tuple[NDArray[np.str_], Array, Array]  # names, magnitudes, signs; each (B,)

# Slots of a view's random numbers. Each use has a range of its own, so that a new use does not shift others.
_CROP, _FLIP, _JITTER, _THREE_AUGMENT, _RANDAUGMENT, _ERASE = 0, 100, 110, 120, 200, 300
_TRIES = 10  # rejection rounds for a crop or an erased rectangle, as in torchvision and timm

# RandAugment's fifteen operations in timm's "increasing" set: five geometric, ten of colour.
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = _GEOMETRIC + tuple(color.OPERATIONS)
_OPERATION_PROBABILITY = 0.5  # timm applies each drawn operation with this probability


@dataclass(frozen=True)
class ViewMaker:
    """Makes training views of `image_size` (height, width)."""

    augment: AugmentConfig
    image_size: tuple[int, int]

    def __call__(self, pixels: Tensor, aspects: NDArray[np.float32], keys: Keys) -> Tensor:
        """(B, 3, S, T) uint8 resized images, their original width / height (B,) -> (B, 3, H, W) float views.

        Values are in [0, 1]; only the noise of random erasing may exceed that.
        """
        drawn = _draw_operations(self.augment, keys)
        views = self._warp(pixels, self._affine(aspects.astype(np.float64), keys, drawn))
        if self.augment.three_augment:
            self._three_augment(views, keys)
        if self.augment.color_jitter:
            views = self._jitter(views, keys)
        for name, magnitude, sign in drawn:
            for operation, change in color.OPERATIONS.items():
                chosen = np.flatnonzero(name == operation)
                if len(chosen):
                    level = _column(magnitude[chosen] * sign[chosen], views)
                    views[chosen] = change(views[chosen], level)
        if self.augment.erasing:
            self._erase(views, keys)
        return views.div_(255.0)

    def _affine(self, aspects: Array, keys: Keys, drawn: list[Operation]) -> Array:
        """(B, 2, 3) maps from coordinates of the view to those of the image, both in [-1, 1]."""
        H, W = self.image_size
        left, top, width, height = _crop_boxes(self.augment, aspects, W / H, keys)
        flip = np.where(uniform(keys, _FLIP) < self.augment.flip, -1.0, 1.0)
        crop = np.zeros((len(keys), 3, 3))
        crop[:, 0, 0], crop[:, 0, 2] = width * flip, 2 * left + width - 1
        crop[:, 1, 1], crop[:, 1, 2] = height, 2 * top + height - 1
        crop[:, 2, 2] = 1
        affine = crop
        for name, magnitude, sign in drawn:
            affine = affine @ _geometric(name, magnitude * sign, W / H)
        return affine[:, :2]

    def _warp(self, pixels: Tensor, affine: Array) -> Tensor:
        """Resamples bilinearly, with mid-grey outside the image: (B, 3, H, W) in [0, 255]."""
        H, W = self.image_size
        a = torch.from_numpy(affine).to(pixels.device, torch.float32)[:, None, None]  # (B, 1, 1, 2, 3)
        x = ((torch.arange(W, device=pixels.device) * 2 + 1) / W - 1).view(1, 1, W, 1)
        y = ((torch.arange(H, device=pixels.device) * 2 + 1) / H - 1).view(1, H, 1, 1)
        # Not a batched matrix product, which may round differently for another batch size.
        grid = x * a[..., 0] + y * a[..., 1] + a[..., 2]
        centred = pixels.float().sub_(128.0)
        return F.grid_sample(centred, grid, mode="bilinear", align_corners=False).add_(128.0)

    def _three_augment(self, views: Tensor, keys: Keys) -> None:
        """Applies one of three operations to each view, in place, with equal probability."""
        drawn = (uniform(keys, _THREE_AUGMENT) * len(color.THREE_AUGMENT)).astype(int)
        strength = uniform(keys, _THREE_AUGMENT + 1)
        for i, change in enumerate(color.THREE_AUGMENT.values()):
            chosen = np.flatnonzero(drawn == i)
            if len(chosen):
                views[chosen] = change(views[chosen], _column(strength[chosen], views))

    def _jitter(self, views: Tensor, keys: Keys) -> Tensor:
        """Scales brightness, contrast and saturation by factors within 1 +- color_jitter."""
        for i, change in enumerate((color.brightness, color.contrast, color.saturation)):
            level = (uniform(keys, _JITTER + i) * 2 - 1) * self.augment.color_jitter
            views = change(views, 1 + _column(level, views))
        return views

    def _erase(self, views: Tensor, keys: Keys) -> None:
        """Random erasing with noise, in place (Zhong et al., arXiv 1708.04896; timm's mode "pixel")."""
        hit = uniform(keys, _ERASE) < self.augment.erasing
        for i, (top, left, h, w) in enumerate(_erased_boxes(keys, self.image_size)):
            if not hit[i] or h == 0:
                continue
            noise = np.random.RandomState(int(keys[i] & np.uint64(0xFFFFFFFF))).randn(3, h, w)
            # A standard normal in normalised units: ImageNet's mean is near 0.45, its deviation near 0.225.
            patch = torch.from_numpy(noise * 57.0 + 115.0).to(views.dtype)
            views[i, :, top : top + h, left : left + w] = patch.to(views.device)


def _erased_boxes(keys: Keys, image_size: tuple[int, int]) -> NDArray[np.int64]:
    """(B, 4) rectangles of random erasing: top, left, height, width; zeros if no draw fits."""
    H, W = image_size
    area = (0.02 + (1 / 3 - 0.02) * _tries(keys, _ERASE + 10)) * H * W
    ratio = np.exp(np.log(0.3) * (1 - 2 * _tries(keys, _ERASE + 20)))
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (height < H) & (width < W)
    first, rows = fits.argmax(1), np.arange(len(keys))
    height, width = height[rows, first], width[rows, first]
    top = np.floor(uniform(keys, _ERASE + 1) * (H - height + 1))
    left = np.floor(uniform(keys, _ERASE + 2) * (W - width + 1))
    boxes = np.stack([top, left, height, width], axis=1)
    return np.where(fits.any(1, keepdims=True), boxes, 0).astype(np.int64)


def _tries(keys: Keys, slot: int) -> Array:
    """(B, tries) uniform numbers."""
    return np.stack([uniform(keys, slot + t) for t in range(_TRIES)], axis=1)


def _column(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype).view(-1, 1, 1, 1)


def _crop_boxes(
    augment: AugmentConfig, aspects: Array, view_aspect: float, keys: Keys
) -> tuple[Array, Array, Array, Array]:
    """Random resized crops as (left, top, width, height), each (B,), as shares of the image's sides.

    The first of ten draws that fits; else the largest centered box with a legal aspect ratio (torchvision's
    RandomResizedCrop, Szegedy et al., arXiv 1409.4842).
    """
    low, high = augment.crop_scale
    scale = low + (high - low) * _tries(keys, _CROP)
    r0, r1 = np.log(augment.crop_ratio[0]), np.log(augment.crop_ratio[1])
    ratio = np.exp(r0 + (r1 - r0) * _tries(keys, _CROP + _TRIES)) * view_aspect / aspects[:, None]
    width, height = np.sqrt(scale * ratio), np.sqrt(scale / ratio)
    fits = (width <= 1) & (height <= 1)
    first, rows = fits.argmax(1), np.arange(len(keys))
    legal = np.clip(1.0, np.exp(r0) * view_aspect / aspects, np.exp(r1) * view_aspect / aspects)
    width = np.where(fits.any(1), width[rows, first], np.minimum(1, legal))
    height = np.where(fits.any(1), height[rows, first], np.minimum(1, 1 / legal))
    left, top = uniform(keys, _CROP + 2 * _TRIES), uniform(keys, _CROP + 2 * _TRIES + 1)
    left, top = np.where(fits.any(1), left, 0.5), np.where(fits.any(1), top, 0.5)
    return left * (1 - width), top * (1 - height), width, height


def _draw_operations(augment: AugmentConfig, keys: Keys) -> list[Operation]:
    """RandAugment's draws, one entry per round: operation names (B,), magnitudes in [0, 1] (B,), signs (B,).

    The name is empty if the drawn operation is not applied.
    """
    drawn = []
    for i in range(augment.randaugment_ops):
        slot = _RANDAUGMENT + 10 * i
        name = np.array(OPERATIONS)[(uniform(keys, slot) * len(OPERATIONS)).astype(int)]
        name = np.where(uniform(keys, slot + 1) < _OPERATION_PROBABILITY, name, "")
        level = augment.randaugment_magnitude + augment.randaugment_std * normal(keys, slot + 2)
        sign = np.where(uniform(keys, slot + 4) < 0.5, -1.0, 1.0)
        drawn.append((name, np.clip(level, 0, 10) / 10, sign))
    return drawn


def _geometric(name: NDArray[np.str_], level: Array, view_aspect: float) -> Array:
    """(B, 3, 3) maps of the geometric operations, the identity for other names; level (B,) in [-1, 1].

    Rotation by up to 30 degrees, shear by 0.3, translation by 0.45 of a side (RandAugment as in timm).
    """
    matrix = np.tile(np.eye(3), (len(name), 1, 1))
    angle = np.deg2rad(30 * level)
    turn = name == "rotate"
    matrix[turn, 0, 0] = matrix[turn, 1, 1] = np.cos(angle[turn])
    # Coordinates run from -1 to 1 along both sides, so a rotation depends on the aspect ratio.
    matrix[turn, 0, 1] = -np.sin(angle[turn]) / view_aspect
    matrix[turn, 1, 0] = np.sin(angle[turn]) * view_aspect
    matrix[:, 0, 1] += np.where(name == "shear_x", 0.3 * level / view_aspect, 0)
    matrix[:, 1, 0] += np.where(name == "shear_y", 0.3 * level * view_aspect, 0)
    matrix[:, 0, 2] += np.where(name == "translate_x", 0.9 * level, 0)
    matrix[:, 1, 2] += np.where(name == "translate_y", 0.9 * level, 0)
    return matrix
