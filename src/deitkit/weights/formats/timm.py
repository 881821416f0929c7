"""timm's format: model.safetensors and config.json, as on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...io import write_json, write_tensors
from ..format import CheckpointInfo, ExportedModel, WeightsFormat, pair, register

_SIZES = {192: "tiny", 384: "small", 768: "base"}  # by width; every other argument is given


@register
class TimmFormat(WeightsFormat):
    """Loaded by `timm.create_model("local-dir:FOLDER", pretrained=True)`, or by `timm.create_model(
    architecture, checkpoint_path=FILE, num_classes=..., **model_args)` with the values of config.json."""

    name = "timm"
    about = 'a folder for timm.create_model("local-dir:FOLDER", pretrained=True)'

    def describes(self, config: Mapping[str, Any]) -> bool:
        return "pretrained_cfg" in config or "architecture" in config

    def info(self, config: Mapping[str, Any], folder: Path) -> CheckpointInfo:
        pretrained, arguments = config.get("pretrained_cfg") or config, config.get("model_args") or {}
        names = config.get("label_names")
        return CheckpointInfo(
            image_size=pair(arguments.get("img_size") or pretrained.get("input_size", ())[1:]),
            patch_size=pair(arguments.get("patch_size")),
            num_heads=arguments.get("num_heads"),
            classes=tuple(names) if names else None,
            **preprocessing_of(pretrained),
        )

    def write(self, exported: ExportedModel, folder: Path) -> list[Path]:
        files = [folder / "model.safetensors", folder / "config.json"]
        write_tensors(files[0], exported.state, {"format": "pt"})
        write_json(files[1], _config(exported))
        return files


def info_of_model(model: Any) -> CheckpointInfo:
    """What a model that timm created says about itself."""
    return CheckpointInfo(
        image_size=pair(model.patch_embed.img_size),
        patch_size=pair(model.patch_embed.patch_size),
        num_heads=model.blocks[0].attn.num_heads,
        **preprocessing_of(model.pretrained_cfg),
    )


def preprocessing_of(pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing in a `pretrained_cfg`, by the fields of CheckpointInfo."""
    if "mean" not in pretrained:
        return {}
    return {
        "mean": tuple(map(float, pretrained["mean"])),
        "std": tuple(map(float, pretrained["std"])),
        "interpolation": str(pretrained.get("interpolation", "bicubic")),
        "crop": float(pretrained.get("crop_pct", 1.0)),
    }


def _config(exported: ExportedModel) -> dict[str, Any]:
    model, view = exported.model, exported.preprocessing
    described = model.describe()
    shared = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # timm's names are the same
    size = _SIZES.get(model.embed_dim, "tiny")
    return {
        "architecture": f"deit_{size}{'_distilled' if model.distilled else ''}_patch16_224",
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        "model_args": {"img_size": described["image_size"]} | {k: described[k] for k in shared},
        "label_names": list(exported.classes),
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [model.patch_embed.in_channels, *model.image_size],
            "fixed_input_size": True,
            "mean": list(view.mean),
            "std": list(view.std),
            "interpolation": view.interpolation,
            "crop_pct": view.crop,
            "crop_mode": "center",
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if model.distilled else "head",
        },
    }
