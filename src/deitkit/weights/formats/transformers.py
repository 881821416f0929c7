"""transformers' format: model.safetensors, config.json and preprocessor_config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import resized_side
from ...io import write_json, write_tensors
from ..format import CheckpointInfo, ExportedModel, WeightsFormat, pair, read_config, register

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PROCESSOR = "preprocessor_config.json"

# transformers' names, those of version 4 and of the hub's files, and those of version 5, in this order.
_FROM_TRANSFORMERS = [
    (r"^(deit|vit)\.", ""),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^(encoder\.layer|layers)\.(?=\d)", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(cls_classifier|classifier)\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
]
_TO_TRANSFORMERS = [
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^dist_token$", "embeddings.distillation_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^blocks\.", "encoder.layer."),
]


@register
class TransformersFormat(WeightsFormat):
    """Loaded by `from_pretrained(FOLDER)` of AutoModelForImageClassification and AutoImageProcessor.

    A plain model becomes a ViT, since transformers' DeiT always has a distillation token. The image processor
    resizes the shorter side of a non-square crop to the crop's longer one.
    """

    name = "transformers"
    about = "a folder for AutoModelForImageClassification.from_pretrained(FOLDER)"

    def describes(self, config: Mapping[str, Any]) -> bool:
        return "model_type" in config

    def info(self, config: Mapping[str, Any], folder: Path) -> CheckpointInfo:
        processor = read_config(folder / _PROCESSOR)
        names = config.get("id2label")
        image_size = pair(config.get("image_size"))
        multilabel = config.get("problem_type") == "multi_label_classification"
        return CheckpointInfo(
            image_size=image_size,
            patch_size=pair(config.get("patch_size")),
            num_heads=config.get("num_attention_heads"),
            classes=tuple(names[k] for k in sorted(names, key=int)) if names else None,
            task="multilabel" if multilabel else "multiclass",
            ignores_aspect="height" in _sides(processor.get("size")),
            **_preprocessing_of(processor, image_size),
        )

    def published_keys(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames the keys and joins the separate query, key and value projections."""
        named = {_rename(k, _FROM_TRANSFORMERS): v for k, v in state.items()}
        out: dict[str, Tensor] = {}
        for key, value in named.items():
            match = re.fullmatch(r"(blocks\.\d+\.attn\.)(q|k|v)(?:_proj)?\.(weight|bias)", key)
            if match is None:
                out[key] = value
            elif match[2] == "q":
                tail = key[len(match[1]) + 1 :]
                qkv = [named[f"{match[1]}{x}{tail}"] for x in "qkv" if f"{match[1]}{x}{tail}" in named]
                out[f"{match[1]}qkv.{match[3]}"] = torch.cat(qkv)
        return out

    def write(self, exported: ExportedModel, folder: Path) -> list[Path]:
        files = [folder / name for name in ("model.safetensors", "config.json", _PROCESSOR)]
        write_tensors(files[0], transformers_keys(exported.state), {"format": "pt"})
        write_json(files[1], _config(exported))
        write_json(files[2], _image_processor(exported))
        return files


def transformers_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published keys under transformers' names: `deit` if there is a distillation token, else `vit`.

    The names are those of transformers 4 and of the hub's files, which transformers 5 reads as well.
    """
    distilled = "dist_token" in state
    heads = ("cls_classifier.", "distillation_classifier.") if distilled else ("classifier.", "")
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("head"):
            out[key.replace("head_dist.", heads[1]).replace("head.", heads[0])] = value
            continue
        name = f"{'deit' if distilled else 'vit'}.{_rename(key, _TO_TRANSFORMERS)}"
        if ".attn.qkv." in name:
            for projection, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace(".attn.qkv.", f".attention.attention.{projection}.")] = piece
        else:
            out[name] = value
    return out


def _rename(key: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def _preprocessing_of(processor: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    """An image processor by the fields of CheckpointInfo."""
    if "image_mean" not in processor:
        return {}
    sides = _sides(processor.get("size"))
    shown = _sides(processor.get("crop_size")) if processor.get("do_center_crop") else sides
    resized = sides.get("shortest_edge") or sides.get("height")
    kept = shown.get("height") or (max(image_size) if image_size else None)
    return {
        "mean": tuple(map(float, processor["image_mean"])),
        "std": tuple(map(float, processor["image_std"])),
        "interpolation": _RESAMPLING.get(processor.get("resample", 3), "bicubic"),
        "crop": min(1.0, kept / resized) if kept and resized else 1.0,
    }


def _sides(size: Any) -> dict[str, int]:
    """Sizes are a number for a square in old files, and a dict in new ones."""
    return {"height": size, "width": size} if isinstance(size, int) else dict(size or {})


def _config(exported: ExportedModel) -> dict[str, Any]:
    model, multiclass = exported.model, exported.task == "multiclass"
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
        "layer_norm_eps": model.norm.eps,  # not transformers' default
        "image_size": _one_or_two(model.image_size),
        "patch_size": _one_or_two(model.patch_embed.patch_size),
        "num_channels": model.patch_embed.in_channels,
        "qkv_bias": True,
        "problem_type": "single_label_classification" if multiclass else "multi_label_classification",
        "id2label": {str(i): name for i, name in enumerate(exported.classes)},
        "label2id": {name: i for i, name in enumerate(exported.classes)},
    }


def _image_processor(exported: ExportedModel) -> dict[str, Any]:
    (H, W), view = exported.model.image_size, exported.preprocessing
    return {
        # DeiT's processor ignores the aspect ratio; CLIP's keeps it and crops the centre.
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized_side(max(H, W), view.crop)},
        "resample": {name: number for number, name in _RESAMPLING.items()}.get(view.interpolation, 3),
        "do_center_crop": True,
        "crop_size": {"height": H, "width": W},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view.mean),
        "image_std": list(view.std),
    }


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
