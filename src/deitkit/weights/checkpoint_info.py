"""What stands beside a weights file: a run's, timm's or transformers' description of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..io import read_json
from ..tasks import Task

_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a source says of its model besides the tensors; None where it does not say.

    preprocessing: `mean` and `std` of three channels in [0, 1], `interpolation`, `crop`, as `export`
    takes them. squashes: its own image processor gives up the aspect ratio, as deitkit never does.
    """

    image_size: tuple[int, int] | None = None
    patch_size: tuple[int, int] | None = None
    num_heads: int | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] | None = None
    task: Task = "multiclass"
    squashes: bool = False


def facts_beside(weights: Path) -> Facts:
    """From config.json, and preprocessor_config.json, in the folder of a weights file.

    Raises DeitkitError for one that is not JSON.
    """
    config = _read(weights.parent / "config.json")
    if "student" in config:
        return _of_run(config)
    if "pretrained_cfg" in config or "architecture" in config:
        return _of_timm(config)
    return _of_transformers(config, _read(weights.parent / "preprocessor_config.json"))


def facts_of_timm(model: Any) -> Facts:
    """From a model that timm made."""
    return Facts(
        image_size=_pair(model.patch_embed.img_size),
        patch_size=_pair(model.patch_embed.patch_size),
        num_heads=model.blocks[0].attn.num_heads,
        preprocessing=_timm_preprocessing(model.pretrained_cfg),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError:
        raise WeightsError(f"{path} is not JSON; mend it, or move the weights away from it") from None
    return found if isinstance(found, dict) else {}


def _of_run(config: dict[str, Any]) -> Facts:
    student = config["student"]
    view = config.get("preprocessing")
    return Facts(
        image_size=_pair(student.get("image_size")),
        patch_size=_pair(student.get("patch_size")),
        num_heads=student.get("num_heads"),
        classes=tuple(config["classes"]) if "classes" in config else None,
        preprocessing=_chosen(view, ("mean", "std", "interpolation", "crop")) if view else None,
        task=config.get("task", "multiclass"),
    )


def _of_timm(config: dict[str, Any]) -> Facts:
    cfg, arguments = config.get("pretrained_cfg") or config, config.get("model_args") or {}
    labels = config.get("label_names")
    return Facts(
        image_size=_pair(arguments.get("img_size") or cfg.get("input_size", ())[1:]),
        patch_size=_pair(arguments.get("patch_size")),
        num_heads=arguments.get("num_heads"),
        classes=tuple(labels) if labels else None,
        preprocessing=_timm_preprocessing(cfg),
    )


def _timm_preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    if "mean" not in cfg:
        return None
    return {
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "crop": cfg.get("crop_pct", 1.0),
    }


def _of_transformers(config: dict[str, Any], processor: dict[str, Any]) -> Facts:
    names = config.get("id2label")
    image_size = _pair(config.get("image_size"))
    several = config.get("problem_type") == "multi_label_classification"
    return Facts(
        image_size=image_size,
        patch_size=_pair(config.get("patch_size")),
        num_heads=config.get("num_attention_heads"),
        classes=tuple(names[k] for k in sorted(names, key=int)) if names else None,
        preprocessing=_processed(processor, image_size),
        task="multilabel" if several else "multiclass",
        squashes="height" in _sides(processor.get("size")),
    )


def _processed(processor: dict[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any] | None:
    if "image_mean" not in processor:
        return None
    sides = _sides(processor.get("size"))
    shown = _sides(processor.get("crop_size")) if processor.get("do_center_crop") else sides
    resized = sides.get("shortest_edge") or sides.get("height")
    kept = shown.get("height") or (max(image_size) if image_size else None)
    return {
        "mean": list(processor["image_mean"]),
        "std": list(processor["image_std"]),
        "interpolation": _INTERPOLATION.get(processor.get("resample", 3), "bicubic"),
        "crop": min(1.0, kept / resized) if kept and resized else 1.0,
    }


def _sides(size: Any) -> dict[str, int]:
    """transformers' sizes are a number for a square in old files, and a dict in new ones."""
    return {"height": size, "width": size} if isinstance(size, int) else dict(size or {})


def _chosen(found: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {"interpolation": "bicubic"} | {k: found[k] for k in keys if k in found}


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if size else None
