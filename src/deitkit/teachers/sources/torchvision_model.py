"""torchvision:NAME[@WEIGHTS_FILE]: any classifier of torchvision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean
from ...preprocessing import IMAGENET_MEAN, IMAGENET_STD, InputSize, Preprocessing
from ...weights import read_state
from ..classes import imagenet_ids
from ..pretrained import (
    Pretrained,
    TeacherSource,
    absolute_weights_file,
    as_map,
    count_params,
    feature_levels,
    load_state,
    register,
    split_weights_file,
)


class TorchvisionBackbone(nn.Module):
    """Normalised images -> the input of the last linear layer (B, F), and two feature maps.

    torchvision cannot return intermediate outputs, so forward hooks keep those of the chosen layers.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.kept: dict[str, Tensor] = {}
        self.layers = _feature_layers(model, image_size)
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


@register
class TorchvisionSource(TeacherSource):
    name = "torchvision"
    syntax = "torchvision:NAME[@WEIGHTS_FILE]"
    about = "any classifier of torchvision, with its best weights or a file's"
    package = "torchvision"

    def check(self, model: str) -> None:
        import torchvision

        name, _ = split_weights_file(model)
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise WeightsError(f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        import torchvision

        self.check(model)
        name, path = split_weights_file(model)
        best = torchvision.models.get_model_weights(name).DEFAULT
        view = best.transforms()
        native, resized = view.crop_size[0], view.resize_size[0]
        network, has_head = _from_file(name, path) if path else (_from_hub(name, best), True)
        image_size = size.resolve(native)
        if hasattr(network, "image_size"):  # a ViT has position embeddings of one size
            image_size = (native, native)
            if size.configured not in (None, native):
                raise WeightsError(f"{name} takes {native} pixels a side only; leave out teacher.image_size")
        head = _take_head(network) if has_head else None
        backbone = TorchvisionBackbone(network.eval(), image_size)
        num_outputs = _count_outputs(head, backbone, image_size)
        return Pretrained(
            name=name,
            preprocessing=Preprocessing(
                image_size,
                tuple(view.mean or IMAGENET_MEAN),
                tuple(view.std or IMAGENET_STD),
                native / resized,
                view.interpolation.value,
            ),
            backbone=backbone,
            head=head,
            outputs=imagenet_ids(num_outputs),
            params=count_params(network, head),
        )

    def absolute(self, model: str) -> str:
        return absolute_weights_file(model)


def _from_hub(name: str, weights: Any) -> nn.Module:
    import torchvision

    try:
        with _tensors_only():
            network: nn.Module = torchvision.models.get_model(name, weights=weights)
            return network
    except Exception as error:  # of the network, of the disk, of a truncated file
        raise WeightsError(
            f"the weights of the teacher {name!r} could not be fetched ({type(error).__name__}); "
            f"download {weights.url} where there is a network, and give torchvision:{name}@FILE"
        ) from None


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Makes torch.load, which torchvision calls without `weights_only`, refuse anything but tensors."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _from_file(name: str, path: Path) -> tuple[nn.Module, bool]:
    """The model with as many outputs as the file's head has, and whether the file has a head."""
    import torchvision

    state = read_state(path)
    last = _last_linear(torchvision.models.get_model(name, weights=None))
    weight = state.get(f"{last}.weight") if last else None
    num_classes = {"num_classes": weight.shape[0]} if weight is not None else {}
    model = torchvision.models.get_model(name, weights=None, **num_classes)
    return model, load_state(model, state, f"{last}." if last else "none", path, name)


def _last_linear(model: nn.Module) -> str | None:
    """The name of the layer that computes the logits; None if that is a convolution."""
    named = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return named[-1] if isinstance(model.get_submodule(named[-1]), nn.Linear) else None


def _take_head(model: nn.Module) -> nn.Module:
    """Removes the last linear layer and returns it. Without one, the logits are the features."""
    name = _last_linear(model)
    if name is None:
        return nn.Identity()
    head = model.get_submodule(name)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return head


@torch.inference_mode()
def _count_outputs(head: nn.Module | None, backbone: nn.Module, image_size: tuple[int, int]) -> int:
    if isinstance(head, nn.Linear):
        return head.out_features
    return 0 if head is None else backbone(torch.zeros(1, 3, *image_size))[0].shape[1]


@torch.inference_mode()
def _feature_layers(model: nn.Module, image_size: tuple[int, int]) -> list[str]:
    """The layers whose outputs are the feature maps: the last of stride 8 and 16, or two encoder blocks."""
    blocks = [n for n, m in model.named_modules() if type(m).__name__ == "EncoderBlock"]
    if blocks:
        return [blocks[i] for i in feature_levels([0] * len(blocks))]
    seen: list[tuple[str, int]] = []
    hooks = []
    for name, module in model.named_modules():

        def note(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                side = _channels_first(output).shape[-1]
                seen.append((name, image_size[1] // side if side > 1 else 0))

        hooks.append(module.register_forward_hook(note))
    model(torch.zeros(1, 3, *image_size))
    for hook in hooks:
        hook.remove()
    strides = [stride for _, stride in seen]
    return [seen[i][0] for i in feature_levels(strides)] if {8, 16} <= set(strides) else []


def _channels_first(features: Tensor) -> Tensor:
    """Swin's maps (B, h, w, C) -> (B, C, h, w); convnet maps and tokens unchanged."""
    if features.ndim == 4 and features.shape[1] == features.shape[2] != features.shape[3]:
        return features.permute(0, 3, 1, 2)
    return features
