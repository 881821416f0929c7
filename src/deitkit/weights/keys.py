"""The names that other projects give the same tensors."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

# transformers' names, old (4.x, and the hub's files) and new (5.x), in this order.
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
_NOT_THE_MODEL = re.compile(r"^(pooler|pre_logits|mask_token|decoder)\b")


def _rename(key: str, table: list[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def published_keys(state: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict of the official code, timm or transformers, under the published keys.

    Joins separate q, k and v to qkv, folds LayerScale into the projection before it, and leaves out
    what no classifier uses (a pooler, a mask token).
    """
    named = {_rename(k, _FROM_TRANSFORMERS): v for k, v in state.items() if isinstance(v, Tensor)}
    named = {k: v for k, v in named.items() if not _NOT_THE_MODEL.search(k)}
    out: dict[str, Tensor] = {}
    for key, value in named.items():
        part = re.fullmatch(r"(blocks\.\d+\.attn\.)(q|k|v)(?:_proj)?\.(weight|bias)", key)
        if part is None:
            out[key] = value
        elif part[2] == "q":
            tail = key[len(part[1]) + 1 :]
            qkv = [named[f"{part[1]}{x}{tail}"] for x in "qkv" if f"{part[1]}{x}{tail}" in named]
            out[f"{part[1]}qkv.{part[3]}"] = torch.cat(qkv)
    return _fold_layer_scale(out)


def _fold_layer_scale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """gamma * (W x + b) = (gamma W) x + (gamma b)."""
    out = dict(state)
    for key, gamma in state.items():
        part = re.fullmatch(r"(blocks\.\d+)\.(?:gamma_|ls)([12])(?:\.gamma)?", key)
        if part:
            projection = f"{part[1]}.{'attn.proj' if part[2] == '1' else 'mlp.fc2'}"
            out[f"{projection}.weight"] = state[f"{projection}.weight"] * gamma[:, None]
            out[f"{projection}.bias"] = state[f"{projection}.bias"] * gamma
            del out[key]
    return out


def transformers_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published keys under transformers' names, `deit` where there is a distillation token, else `vit`.

    They are the names of transformers 4 and of the hub's files, which transformers 5 reads as well.
    """
    distilled = "dist_token" in state
    heads = ("cls_classifier.", "distillation_classifier.") if distilled else ("classifier.", "")
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("head"):
            name = key.replace("head_dist.", heads[1]).replace("head.", heads[0])
            out[name] = value
            continue
        name = f"{'deit' if distilled else 'vit'}.{_rename(key, _TO_TRANSFORMERS)}"
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
        else:
            out[name] = value
    return out
