"""Converts weights of any format to any other, at another image size, patch size or number of classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..models import VARIANTS, DeiT
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ..run_schema import CalibrationInfo
from . import CheckpointInfo, Weights, export, load_into, read

# Attention heads of published models by width: DeiT's, and the L and H of DeiT III (arXiv 2204.07118).
_HEADS = {v.embed_dim: v.num_heads for v in VARIANTS.values() if not v.hybrid} | {1024: 16, 1280: 16}
_IMAGENET_CROP = 224 / 256  # as the official code evaluates


@dataclass(frozen=True)
class Converted:
    """The files that were written, and one sentence for each change and assumption."""

    files: list[Path]
    changes: list[str]


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    distilled: bool | None = None,
    num_heads: int | None = None,
    antialias: bool = False,
) -> Converted:
    """Reads `source` (see `weights.read`) and writes it into the folder `destination` in the format `to`.

    image_size, patch_size: height, width in pixels; None keeps the source's. num_classes: another number than
    the source's initialises the heads anew. distilled: with or without a distillation token. num_heads:
    needed if the source does not say and its width is no published model's. antialias: see `load_into`.

        convert("runs/flowers", "flowers-timm", "timm")

    Raises WeightsError if the source cannot be read or converted, or if `destination` is not empty.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise WeightsError(f"{destination} is not an empty folder; choose a new or an empty one")
    weights = read(source)
    info = weights.info
    changes: list[str] = []
    width = weights["patch_embed.proj.weight"].shape[0]
    model = DeiT(
        image_size=image_size or info.image_size or _square(weights),
        patch_size=patch_size or weights.patch_size,
        num_classes=num_classes or _num_classes(weights),
        num_heads=num_heads or info.num_heads or _published_heads(width, changes),
        distilled="dist_token" in weights if distilled is None else distilled,
        **_shape(weights),
    ).eval()
    changes += load_into(model, weights, antialias=antialias)
    view = _preprocessing(info, model.image_size, changes)
    classes = info.classes
    if classes is None or len(classes) != model.num_classes:
        changes.append(f"the {model.num_classes} classes have no names: they are numbered")
        classes = tuple(map(str, range(model.num_classes)))
    if to != "deitkit" and model.num_classes == len(info.classes or ()):
        _fold_temperature(model, info.calibration, changes)
    return Converted(export(model, destination, to, view, classes, info.task), changes)


def _fold_temperature(model: DeiT, calibration: CalibrationInfo, changes: list[str]) -> None:
    """Divides the heads by the temperature of a run, so that other projects' softmax is calibrated."""
    temperature = temperature_of_logits(calibration, distilled=model.distilled)
    if temperature != 1.0:
        changes.append(f"the heads are divided by {temperature:.3g}, which calibrates their probabilities")
        model.scale_heads(1 / temperature)


def temperature_of_logits(calibration: CalibrationInfo, *, distilled: bool) -> float:
    """The temperature of what other projects evaluate: the mean of both heads' logits, or the one head's."""
    of_heads = calibration.head_temperatures
    return of_heads.get("mean", 1.0) if distilled else of_heads.get("class", calibration.temperature)


def _preprocessing(info: CheckpointInfo, image_size: tuple[int, int], changes: list[str]) -> Preprocessing:
    """The source's preprocessing, or that of the official code if it does not say."""
    if info.ignores_aspect:
        changes.append(
            "the source resizes images to a fixed size; deitkit keeps the aspect ratio and crops the centre"
        )
    if info.mean is None or info.std is None:
        changes.append("the source does not say how it preprocesses images: ImageNet's mean and std are used")
        return Preprocessing(image_size, IMAGENET_MEAN, IMAGENET_STD, _IMAGENET_CROP)
    if info.interpolation != "bicubic":
        changes.append(f"the source resizes images {info.interpolation}, deitkit always bicubic")
    return Preprocessing(image_size, info.mean, info.std, info.crop, info.interpolation)


def _shape(weights: Weights) -> dict[str, Any]:
    """Width, depth, MLP ratio and input channels of the weights."""
    width, channels = weights["patch_embed.proj.weight"].shape[:2]
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise WeightsError("the weights have no transformer blocks; give weights of a DeiT or ViT")
    depth = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks."))
    ratio = hidden.shape[0] / width
    shape = {"embed_dim": width, "depth": depth, "mlp_ratio": ratio}
    return shape | ({"hybrid": True} if weights.hybrid else {"in_channels": channels})


def _num_classes(weights: Weights) -> int:
    if "head.weight" not in weights:
        raise WeightsError("the weights have no head; give --num-classes to initialise one")
    return weights["head.weight"].shape[0]


def _published_heads(width: int, changes: list[str]) -> int:
    if width not in _HEADS:
        raise WeightsError(f"the number of attention heads of width {width} is not known; give --num-heads")
    changes.append(f"{_HEADS[width]} attention heads are assumed, as in the published model of width {width}")
    return _HEADS[width]


def _square(weights: Weights) -> tuple[int, int]:
    """The image size if only the number of positions is known: a square grid, as published."""
    count = weights["pos_embed"].shape[1] - (2 if "dist_token" in weights else 1)
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(
            f"the weights have {count} positions, which are no square grid; "
            "put the model's config.json beside them, or give --image-size"
        )
    h, w = weights.patch_size
    return side * h, side * w
