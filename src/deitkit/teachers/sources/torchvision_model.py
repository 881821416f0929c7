"""torchvision:NAME[@WEIGHTS_FILE]: any of torchvision's classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean
from ...preprocessing import IMAGENET_MEAN, IMAGENET_STD, InputSize, Preprocessing
from ...weights import read_state
from ..pretrained import Pretrained, as_map, count_params, pick_levels
from .weights_file import load_by_name, split_path

SYNTAX = "torchvision:NAME[@WEIGHTS_FILE]"
ABOUT = "any classifier of torchvision, with its best weights or a file's"
PACKAGE = "torchvision"


class TorchvisionBody(nn.Module):
    """Normalised images -> what the last linear layer would have taken (B, F), and two maps.

    These models have no call for maps in the middle, so hooks keep what the chosen layers give.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.kept: dict[str, Tensor] = {}
        self.layers = _guiding_layers(model, image_size)
        for name in self.layers:
            model.get_submodule(name).register_forward_hook(self._keeper(name))

    def _keeper(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.kept[name] = output

        return keep

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.model(images)
        maps = [as_map(_channels_first(self.kept[name])) for name in self.layers]
        self.kept.clear()
        return pooled, *maps


def check(rest: str) -> None:
    """Raises DeitkitError, naming the nearest, for a classifier that torchvision does not have."""
    name, _ = split_path(rest)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise WeightsError(f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The model with its trained weights; never with random ones."""
    check(rest)
    name, path = split_path(rest)
    best = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    view = best.transforms()
    native, whole = view.crop_size[0], view.resize_size[0]
    model, has_head = _from_file(name, path) if path else (_from_hub(name, best), True)
    size = wanted.resolve(native)
    if hasattr(model, "image_size"):  # a ViT's positions are of one size
        size = (native, native)
        if wanted.configured not in (None, native):
            raise WeightsError(f"{name} takes {native} pixels a side only; leave out teacher.image_size")
    head = _take_head(model) if has_head else None
    body = TorchvisionBody(model.eval(), size)
    count = _count(head, body, size)
    return Pretrained(
        name=name,
        preprocessing=Preprocessing(
            size,
            tuple(view.mean or IMAGENET_MEAN),
            tuple(view.std or IMAGENET_STD),
            native / whole,
            view.interpolation.value,
        ),
        body=body,
        head=head,
        outputs=tuple(ImageNetInfo().label_names()) if count == 1000 else None,
        params=count_params(model, head),
    )


def _from_hub(name: str, weights: Any) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights=weights)
    except Exception as error:  # of the network, of the disk, of a cut file
        raise WeightsError(
            f"the weights of the teacher {name!r} could not be fetched ({type(error).__name__}); "
            f"download {weights.url} where there is a network, and give torchvision:{name}@FILE"
        ) from None


def _from_file(name: str, path: Path) -> tuple[nn.Module, bool]:
    """The model with as many outputs as the file's head has, and whether the file has one."""
    state = read_state(path)
    plain = torchvision.models.get_model(name, weights=None)
    last = _last_linear(plain)
    weight = state.get(f"{last}.weight") if last else None
    classes = {"num_classes": weight.shape[0]} if weight is not None else {}
    model = torchvision.models.get_model(name, weights=None, **classes)
    return model, load_by_name(model, state, f"{last}." if last else "none", path, name)


def _last_linear(model: nn.Module) -> str | None:
    """The name of the layer that gives the logits; None where that is a convolution."""
    named = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return named[-1] if isinstance(model.get_submodule(named[-1]), nn.Linear) else None


def _take_head(model: nn.Module) -> nn.Module:
    """The last linear layer, taken out of the model; where there is none the logits are the features."""
    name = _last_linear(model)
    if name is None:
        return nn.Identity()
    head = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return head


@torch.inference_mode()
def _count(head: nn.Module | None, body: nn.Module, size: tuple[int, int]) -> int:
    if isinstance(head, nn.Linear):
        return head.out_features
    return 0 if head is None else body(torch.zeros(1, 3, *size))[0].shape[1]


@torch.inference_mode()
def _guiding_layers(model: nn.Module, size: tuple[int, int]) -> list[str]:
    """Names of the layers whose outputs guide: the last of stride 8 and 16, or a transformer's blocks."""
    blocks = [n for n, m in model.named_modules() if type(m).__name__ == "EncoderBlock"]
    if blocks:
        return [blocks[i] for i in pick_levels([0] * len(blocks))]
    seen: list[tuple[str, int]] = []
    hooks = []
    for name, module in model.named_modules():

        def note(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                side = _channels_first(output).shape[-1]
                seen.append((name, size[1] // side if side > 1 else 0))

        hooks.append(module.register_forward_hook(note))
    model(torch.zeros(1, 3, *size))
    for hook in hooks:
        hook.remove()
    strides = [stride for _, stride in seen]
    return [seen[i][0] for i in pick_levels(strides)] if {8, 16} <= set(strides) else []


def _channels_first(features: Tensor) -> Tensor:
    """Swin's maps (B, h, w, C) -> (B, C, h, w); those of convnets and tokens stay as they are."""
    if features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]:
        return features.permute(0, 3, 1, 2)
    return features
