"""Weights from files, folders and hubs. Nothing is unpickled beyond tensors and plain values."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..errors import DeitkitError, WeightsError
from .checkpoint_info import Facts, facts_beside, facts_of_timm
from .hub import cause, hub_access
from .initial import SHIPPED, shipped_file
from .keys import published_keys

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "checkpoint.pth")


class Weights(dict[str, Tensor]):
    """A state dict under the published keys.

    grid_size: the patch grid, rows and columns, where the source tells it. facts: what else it tells.
    """

    grid_size: tuple[int, int] | None = None
    facts: Facts = Facts()


def read(source: str | Path) -> Weights:
    """Weights from a file, a folder or a hub, under the published keys, on the CPU.

    source: a `.safetensors` file; a `.pth`, `.pt` or `.bin` file (bare, or under "model" or
    "state_dict", as the official code and timm save); a folder that holds one, such as a run of
    deitkit or a folder of transformers or timm; `timm:NAME`; `hf:OWNER/NAME`; `deitkit:NAME`, what
    comes with the package for a student.

    LayerScale (DeiT III, arXiv 2204.07118) has no place in the model, so each gamma is multiplied into
    the weight and bias of the projection before it, which is mathematically equal. Position embeddings
    without prefix tokens (DeiT III again) get zeros there, equal as well.

    Raises DeitkitError where nothing is found, readable or reachable, or where it is no DeiT.
    """
    text = str(source)
    if text.startswith("timm:"):
        state, facts = _from_timm(text[5:])
    else:
        path = _located(text)
        state, facts = read_state(path), facts_beside(path)
    weights = Weights(published_keys(state))
    weights.facts = facts
    lacking = [k for k in ("cls_token", "pos_embed", "patch_embed.proj.weight") if k not in weights]
    if lacking:
        raise WeightsError(
            f"{source} holds no DeiT: it lacks {lacking[0]!r}; give the weights of a DeiT or ViT"
        )
    if facts.image_size is not None:
        kernel = weights["patch_embed.proj.weight"].shape[-2:]
        weights.grid_size = facts.image_size[0] // kernel[0], facts.image_size[1] // kernel[1]
    _pad_positions(weights)
    return weights


def _located(source: str) -> Path:
    if source.startswith("hf:"):
        return _from_hugging_face(source[3:])
    if source.startswith(SHIPPED):
        path = shipped_file(source[len(SHIPPED) :])
        if not path.is_file():
            raise WeightsError(f"no weights come with deitkit under {source!r}; deitkit models lists those")
        return path
    return _file_of(Path(source))


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise WeightsError(
            f"there are no weights at {path}; give a file, a folder, timm:NAME or hf:OWNER/NAME"
        )
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"the folder {path} holds no {', '.join(_FOLDER_FILES)}; give the weights file itself")


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a file, its wrapping and the prefixes of parallel and compiled models taken off."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The official training code saves its argument namespace beside the weights; that class only
        # holds values, so allowing it keeps the promise that no code in the file runs.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("model", "state_dict"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        return {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in state.items()}
    except Exception as error:  # a cut, foreign or unsafe file fails in many ways
        raise WeightsError(
            f"the weights file {path} cannot be read ({type(error).__name__}); "
            "give a .safetensors file, or a .pth that holds tensors only"
        ) from None


def _pad_positions(weights: Weights) -> None:
    """DeiT III adds its positions before the prefix tokens join, which is to say zeros to those."""
    positions, num_prefix = weights["pos_embed"], 2 if "dist_token" in weights else 1
    count = positions.shape[1]
    patches = math.prod(weights.grid_size) if weights.grid_size else None
    if patches == count or (patches is None and math.isqrt(count) ** 2 == count):
        weights["pos_embed"] = F.pad(positions, (0, 0, num_prefix, 0))


def _unreachable(source: str, error: Exception, online: bool) -> DeitkitError:
    return WeightsError(
        f"the hub could not give {source!r} ({cause(error, online)}); check the name and the network, or "
        "download the weights where there is a network and give the file's path"
    )


def _from_timm(name: str) -> tuple[dict[str, Tensor], Facts]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise WeightsError(f"timm has no model {name!r}; give a name such as deit_tiny_distilled_patch16_224")
    with hub_access() as online:
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # each hub client has errors of its own
            raise _unreachable(f"timm:{name}", error, online) from None
    if not hasattr(model, "blocks") or not hasattr(model, "cls_token"):
        raise WeightsError(f"timm:{name} is no DeiT; give the name of a DeiT or ViT")
    return model.state_dict(), facts_of_timm(model)


def _from_hugging_face(name: str) -> Path:
    """The weights file, from the local cache where it lies there; its config.json comes beside it."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    for file in _HUB_FILES:
        cached = try_to_load_from_cache(name, file)
        if isinstance(cached, str):
            return Path(cached)
    with hub_access() as online:
        try:
            hf_hub_download(name, "config.json")
            with contextlib.suppress(EntryNotFoundError):  # timm's have none
                hf_hub_download(name, "preprocessor_config.json")
            try:
                return Path(hf_hub_download(name, _HUB_FILES[0]))
            except EntryNotFoundError:
                return Path(hf_hub_download(name, _HUB_FILES[1]))
        except Exception as error:
            raise _unreachable(f"hf:{name}", error, online) from None
