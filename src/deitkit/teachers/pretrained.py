"""A pretrained model as every source of teachers opens it, the backend that runs it, and what a source is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..inference import selection
from ..inference.backends import Backend, FrozenNetwork, builders
from ..inference.device import fast_precision
from ..inference.selection import Builders, Rule, Tolerance
from ..preprocessing import InputSize, Normalised, Preprocessing

CHOICE_BATCH = 8  # images that agreement and speed are measured on
# Backends round differently. Were two close in speed, noise would decide between them, and two runs with the
# same seed would differ: PyTorch must be this much faster to be kept.
_RULE = Rule(Tolerance(relative=1e-2), margin=1.5, what="the teacher")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model. None of its weights are random.

    backbone: normalised images (B, 3, H, W) -> pooled features (B, F), followed by two feature maps
    (B, C, h, w) or by none; None if only `backends` can run the model.
    head: pooled features (B, F) -> logits (B, K); None if the checkpoint has no head.
    outputs: the names of the K logits; None if they are unknown.
    backends: builders by name, for a model that is no PyTorch module. Each builds a backend for images in
    [0, 1] at the size of the preprocessing; the first one is the reference.
    """

    name: str
    preprocessing: Preprocessing
    backbone: nn.Module | None
    head: nn.Module | None
    outputs: tuple[str, ...] | None
    params: int
    backends: Mapping[str, Callable[[Preprocessing], Backend]] | None = None


def backend_builders(model: Pretrained, view: Preprocessing, device: torch.device) -> Builders:
    """Builders of the backends that can run `model`, by name, the reference first."""
    if model.backends is not None:
        return {name: partial(build, view) for name, build in model.backends.items()}
    assert model.backbone is not None
    network = Normalised(model.backbone, view.mean, view.std)
    return builders(
        FrozenNetwork(network, view.image_size, device, fast_precision(device), channels_last=True)
    )


def choose_backend(candidates: Builders, view: Preprocessing, device: torch.device, wanted: str) -> Backend:
    """The backend `wanted` for a teacher; see `inference.selection.choose_backend`."""
    images = torch.rand(CHOICE_BATCH, 3, *view.image_size, generator=torch.Generator().manual_seed(0))
    rule = replace(_RULE, what=f"the teacher at {view.image_size[0]} px")
    return selection.choose_backend(candidates, images, device, wanted, rule)


class TeacherSource(ABC):
    """A source of teachers. A spec such as `timm:resnet18` names the source and then the model in it.

    To add one, write a module in `sources/` with a subclass decorated by `register`. Specs, messages and
    `deitkit teacher list` follow from its attributes. The module must not import its package at the top:
    all sources are imported together.
    """

    name: ClassVar[str]  # before the colon
    syntax: ClassVar[str]  # the whole spec, for messages
    about: ClassVar[str]  # a phrase for `deitkit teacher list`
    package: ClassVar[str] = "deitkit"  # the package that has to be installed
    runs_code: ClassVar[bool] = False  # whether a spec names code that opening it runs

    @abstractmethod
    def check(self, model: str) -> None:
        """Raises WeightsError for a model that is misspelt or missing. Loads no weights."""

    @abstractmethod
    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        """Loads the model. Raises WeightsError if its weights are missing or damaged.

        trust_remote_code: whether to run code that comes with the model, from a hub that has such models.
        """

    def absolute(self, model: str) -> str:
        """`model` with the paths in it made absolute, for a teacher that is saved."""
        return model


SOURCES: dict[str, TeacherSource] = {}
_Source = TypeVar("_Source", bound=type[TeacherSource])


def register(source: _Source) -> _Source:
    """Adds a source, as the decorator of its class."""
    SOURCES[source.name] = source()
    return source


def split_weights_file(model: str) -> tuple[str, Path | None]:
    """`NAME[@FILE]` -> name and weights file. Raises WeightsError if there is no such file."""
    name, _, path = model.partition("@")
    if path and not Path(path).is_file():
        raise WeightsError(f"the teacher's weights {path} do not exist; give the path of a weights file")
    return name, Path(path) if path else None


def absolute_weights_file(model: str) -> str:
    """`NAME[@FILE]` with an absolute path."""
    name, at, path = model.partition("@")
    return f"{name}@{Path(path).resolve()}" if at else model


def load_state(model: nn.Module, state: dict[str, Tensor], head: str, path: Path, name: str) -> bool:
    """Loads the state dict of the file `path` into `model`. Returns whether it has the head.

    head: the prefix of the head's keys. Only the head may be missing, and no other key may be there; else
    raises WeightsError.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    foreign = [key for key in state if key not in expected or expected[key].shape != state[key].shape]
    if foreign or not all(key.startswith(head) for key in missing):
        raise WeightsError(f"{path} does not hold weights of {name}; give the matching file")
    model.load_state_dict(state, strict=False)
    return not missing


def feature_levels(strides: Sequence[float]) -> list[int]:
    """Indices of the two feature maps to distil from (arXiv 2207.10026): the last of stride 8 and of 16.

    For a model of a single stride, `middle_levels`.
    """
    if 8 in strides and 16 in strides:
        return [len(strides) - 1 - list(reversed(strides)).index(stride) for stride in (8, 16)]
    return list(middle_levels(len(strides)))


def middle_levels(depth: int) -> tuple[int, int]:
    """Indices of the blocks at one half and at five sixths of `depth` blocks."""
    return max(depth // 2 - 1, 0), max(depth * 5 // 6 - 1, 0)


def as_map(features: Tensor) -> Tensor:
    """A map (B, C, h, w) unchanged; tokens (B, prefix + h * w, C) of a square grid as (B, C, h, w)."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1])
    maps: Tensor = features[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
    return maps


def count_params(*modules: nn.Module | None) -> int:
    """The number of parameters of the modules that are not None."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
