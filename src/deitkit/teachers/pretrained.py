"""What every kind of teacher opens to: features, maps and the head that the weights came with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ..inference.backends import Backend
from ..preprocessing import InputSize, Preprocessing


@dataclass(frozen=True)
class Pretrained:
    """A model as its weights come; nothing in it is random.

    body: normalised images (B, 3, H, W) -> pooled features (B, F) and none or two maps (B, C, h, w); None
    where only `backends` can run it. head: pooled features -> logits (B, K), None where the weights hold
    none. outputs: the K names of these logits, None where nobody knows them. backends: name to maker of an
    backend that takes images in [0, 1] of the preprocessing's size, for what is no PyTorch network.
    """

    name: str
    preprocessing: Preprocessing
    body: nn.Module | None
    head: nn.Module | None
    outputs: tuple[str, ...] | None
    params: int
    backends: Mapping[str, Callable[[Preprocessing], Backend]] | None = None


class Kind(Protocol):
    """One kind of teacher: a module of `kinds`."""

    SYNTAX: str  # as the user writes it
    ABOUT: str  # a phrase for lists
    PACKAGE: str  # what has to be installed

    def check(self, rest: str) -> None:
        """Raises DeitkitError for a misspelt or missing `rest` (what follows the colon); loads nothing."""

    def open_model(self, rest: str, wanted: InputSize) -> Pretrained:
        """The model with its weights; raises DeitkitError where there are none."""


def pick_levels(strides: Sequence[float]) -> list[int]:
    """Indices of the two maps that guide a student (arXiv 2207.10026): the last of stride 8 and of 16.

    Where a model has one stride only, those half way and five sixths up.
    """
    if 8 in strides and 16 in strides:
        return [len(strides) - 1 - list(reversed(strides)).index(stride) for stride in (8, 16)]
    return list(middle_levels(len(strides)))


def middle_levels(depth: int) -> tuple[int, int]:
    """Of so many levels, the indices of those half way and five sixths up."""
    return max(depth // 2 - 1, 0), max(depth * 5 // 6 - 1, 0)


def as_map(features: Tensor) -> Tensor:
    """(B, C, h, w) as it is; tokens (B, prefix + h * w, C) of a square grid -> (B, C, h, w)."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1])
    return features[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def count_params(*modules: nn.Module | None) -> int:
    """Parameters of all modules that are there."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
