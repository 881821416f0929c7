"""`deitkit convert`: a model of any project, of the shape that is asked for, in any project's format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..models.deit import VARIANTS, DeiT
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD
from . import Format, Weights, export, load_into, read

# Of published models: DeiT's, and the L and H of DeiT III (arXiv 2204.07118).
_HEADS = {v.embed_dim: v.num_heads for v in VARIANTS.values()} | {1024: 16, 1280: 16}
# What a source that says nothing is taken to be trained with, as the official code evaluates.
_IMAGENET = {
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
    "interpolation": "bicubic",
    "crop": 0.875,
}


@dataclass(frozen=True)
class Converted:
    """The files that were written, and a sentence for each thing that was changed or assumed."""

    files: list[Path]
    changes: list[str]


def convert(
    source: str | Path,
    destination: str | Path,
    to: Format,
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    distilled: bool | None = None,
    num_heads: int | None = None,
    antialias: bool = False,
) -> Converted:
    """Reads `source` (as `weights.read` takes it) and writes it into the folder `destination`.

    Sizes are (height, width) in pixels; None keeps what the source has. num_classes: another number than
    the source's starts the heads afresh. distilled: with or without a distillation token. num_heads: of
    attention, where the source does not say and the width is not a published model's. antialias: how
    position embeddings and patch kernels are resized, see `load_into`. Raises DeitkitError for anything
    the caller can mend.
    """
    destination = Path(destination)
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise WeightsError(f"{destination} is there and not an empty folder; choose a new or an empty one")
    weights = read(source)
    facts = weights.facts
    changes: list[str] = []
    kernel = weights["patch_embed.proj.weight"].shape  # (D, C, h, w)
    image_size = image_size or facts.image_size or _square(weights)
    model = DeiT(
        image_size=image_size,
        patch_size=patch_size or (kernel[2], kernel[3]),
        num_classes=num_classes or _num_classes(weights),
        num_heads=num_heads or facts.num_heads or _published_heads(kernel[0], changes),
        distilled="dist_token" in weights if distilled is None else distilled,
        **_body(weights),
    ).eval()
    changes += load_into(model, weights, antialias=antialias)
    if facts.preprocessing is None:
        changes.append("the source does not say how it sees images: taken to be as DeiT does on ImageNet")
    elif facts.preprocessing["interpolation"] != "bicubic":
        changes.append(
            f"the source resizes images {facts.preprocessing['interpolation']}, and deitkit always bicubic"
        )
    if facts.squashes:
        changes.append("the source squashes images to size; deitkit keeps their shape and cuts the centre")
    classes = facts.classes
    if classes is None or len(classes) != model.num_classes:
        changes.append(f"the {model.num_classes} classes have no names: they are numbered")
        classes = tuple(map(str, range(model.num_classes)))
    view = (facts.preprocessing or _IMAGENET) | {"image_size": list(model.image_size)}
    return Converted(export(model, destination, to, view, classes, facts.task), changes)


def _body(weights: Weights) -> dict[str, Any]:
    """Width, depth, MLP and input channels, which are the weights' own."""
    width, channels = weights["patch_embed.proj.weight"].shape[:2]
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    if hidden is None:
        raise WeightsError("the weights have no block of a transformer; give those of a DeiT or ViT")
    depth = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blocks."))
    ratio = hidden.shape[0] / width
    return {"embed_dim": width, "depth": depth, "mlp_ratio": ratio, "in_channels": channels}


def _num_classes(weights: Weights) -> int:
    if "head.weight" not in weights:
        raise WeightsError("the weights have no head; give --num-classes for one that starts afresh")
    return weights["head.weight"].shape[0]


def _published_heads(width: int, changes: list[str]) -> int:
    if width not in _HEADS:
        raise WeightsError(
            f"the weights are {width} wide and do not tell their attention heads; give --num-heads"
        )
    changes.append(f"{_HEADS[width]} attention heads, as the published model of width {width} has")
    return _HEADS[width]


def _square(weights: Weights) -> tuple[int, int]:
    """The image size where only the number of positions is known: a square grid, as published."""
    count = weights["pos_embed"].shape[1] - (2 if "dist_token" in weights else 1)
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(
            f"the weights have {count} positions, no square, and do not tell their image size; "
            "put the model's config.json beside them, or give --image-size"
        )
    h, w = weights["patch_embed.proj.weight"].shape[2:]
    return side * h, side * w
