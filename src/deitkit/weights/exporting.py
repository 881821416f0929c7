"""Weights out, in the formats of other projects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..config import resized_side
from ..errors import WeightsError
from ..io import write_json, write_tensors
from ..models.deit import DeiT
from ..tasks import Task
from .keys import transformers_keys

Format = Literal["deitkit", "timm", "transformers", "official"]


def export(
    model: DeiT,
    destination: Path,
    to: Format,
    preprocessing: dict[str, Any],
    classes: Sequence[str],
    task: Task = "multiclass",
) -> list[Path]:
    """Writes the model into the folder `destination` for another project; returns the files.

    preprocessing: `image_size` (height, width) in pixels, `mean` and `std` of three channels in
    [0, 1], `interpolation` ("bicubic" or "bilinear"), `crop` (share of the shorter side that the
    centre crop keeps). classes: their names in the order of the logits. task: whether an image has
    one of them, or several.

    deitkit: model.safetensors and config.json, which `predict`, `eval` and `read` take like a run.
    timm: model.safetensors and config.json; `timm.create_model("local-dir:FOLDER", pretrained=True)`, or
      `timm.create_model(architecture, checkpoint_path=FILE, num_classes=..., **model_args)`.
    transformers: model.safetensors, config.json and preprocessor_config.json; `from_pretrained(FOLDER)` of
      AutoModelForImageClassification and AutoImageProcessor.
    official: checkpoint.pth, {"model": state}; the training code's `--finetune FILE`.

    timm, transformers and the official code answer with `joint_logits` for a distilled model. A plain
    model becomes a ViT for transformers, whose DeiT always has a distillation token; its image
    processor enlarges a non-square crop's shorter side to the crop's longer one.
    Raises DeitkitError for an unknown format, or class names that are not as many as the logits.
    """
    if len(classes) != model.num_classes:
        raise WeightsError(
            f"there are {len(classes)} class names for {model.num_classes} outputs; give one name an output"
        )
    if to not in get_args(Format):
        raise WeightsError(f"cannot export to {to!r}; choose one of {', '.join(get_args(Format))}")
    destination.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    configs: dict[str, dict[str, Any]]
    if to == "official":
        path = destination / "checkpoint.pth"
        torch.save({"model": state}, path)
        return [path]
    if to == "deitkit":
        configs = {"config.json": _run(model, preprocessing, classes, task)}
    elif to == "timm":
        configs = {"config.json": _timm(model, preprocessing, classes)}
    else:
        configs = {
            "config.json": _transformers(model, classes, task),
            "preprocessor_config.json": _image_processor(model, preprocessing),
        }
        state = transformers_keys(state)
    files = [destination / "model.safetensors"]
    write_tensors(files[0], state, {"format": "pt"})
    for name, config in configs.items():
        write_json(destination / name, config)
        files.append(destination / name)
    return files


def _run(model: DeiT, preprocessing: dict[str, Any], classes: Sequence[str], task: Task) -> dict[str, Any]:
    """What a run's config.json says of its model; a run says more, of its data and settings."""
    described = {"task": task, "classes": list(classes), "preprocessing": preprocessing}
    return described | {"student": model.describe()}


def _timm(model: DeiT, preprocessing: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    size = {192: "tiny", 384: "small", 768: "base"}.get(model.embed_dim, "tiny")
    described = model.describe()
    shared = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # arguments named as ours
    return {
        "architecture": f"deit_{size}{'_distilled' if model.distilled else ''}_patch16_224",
        "num_classes": model.num_classes,
        "num_features": model.embed_dim,
        "model_args": {"img_size": described["image_size"]} | {k: described[k] for k in shared},
        "label_names": list(classes),
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [model.patch_embed.proj.in_channels, *model.image_size],
            "fixed_input_size": True,
            "mean": list(preprocessing["mean"]),
            "std": list(preprocessing["std"]),
            "interpolation": preprocessing["interpolation"],
            "crop_pct": preprocessing["crop"],
            "crop_mode": "center",
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if model.distilled else "head",
        },
    }


def _transformers(model: DeiT, classes: Sequence[str], task: Task) -> dict[str, Any]:
    shape, distilled = model.describe(), model.distilled
    name = "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
    return {
        "model_type": "deit" if distilled else "vit",
        "architectures": [name],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["num_heads"],
        "intermediate_size": round(model.embed_dim * shape["mlp_ratio"]),
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm.eps,  # transformers' default is another
        "image_size": _one_or_two(model.image_size),
        "patch_size": _one_or_two(model.patch_embed.patch_size),
        "num_channels": model.patch_embed.proj.in_channels,
        "qkv_bias": True,
        "problem_type": "single_label_classification"
        if task == "multiclass"
        else "multi_label_classification",
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
    }


def _image_processor(model: DeiT, preprocessing: dict[str, Any]) -> dict[str, Any]:
    H, W = model.image_size
    return {
        # transformers' DeiT processor gives up the aspect ratio; CLIP's keeps it, then cuts the centre.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized_side(max(H, W), preprocessing["crop"])},
        "resample": {"bilinear": 2, "bicubic": 3}[preprocessing["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": H, "width": W},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
