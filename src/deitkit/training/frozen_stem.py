"""A hybrid's frozen stem, on a faster backend while the rest of the student is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..inference.backends import FrozenNetwork, builders, installed
from ..inference.selection import Tolerance, agrees
from ..models import Student
from ..models.conv_stem import ConvStem, StemPatches
from ..models.deit import DeiT

_BACKEND = "openvino"  # always this one: a choice by speed could differ in a resumed run
_TOLERANCE = Tolerance(relative=1e-3)


def frozen_hybrid(student: Student) -> DeiT | None:
    """The student, if it is a hybrid whose stem is not trained."""
    stem = student.stem if isinstance(student, DeiT) else None
    if stem is None or any(p.requires_grad for p in stem.parameters()):
        return None
    assert isinstance(student, DeiT)
    return student


@contextmanager
def fast_frozen_stem(student: Student, device: torch.device) -> Iterator[None]:
    """Runs the frozen stem of a hybrid on OpenVINO, at the student's size, if it is installed.

    On a CPU that takes a third of PyTorch's time. Does nothing for other students and devices.
    """
    hybrid = frozen_hybrid(student)
    if hybrid is None or device.type != "cpu" or not installed(_BACKEND):
        yield
        return
    patches = hybrid.patch_embed
    assert isinstance(patches, StemPatches)
    patches.run_stem = _on_backend(patches.stem, student.image_size)
    try:
        yield
    finally:
        patches.run_stem = None


class _Outputs(nn.Module):
    """The stem as backends take a network: with a tuple of outputs."""

    def __init__(self, stem: ConvStem):
        super().__init__()
        self.stem = stem

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.stem(images),)


def _on_backend(stem: ConvStem, size: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
    """The stem on the backend for images of `size`, on PyTorch for others; None if it disagrees."""
    network = _Outputs(stem)
    backend = builders(FrozenNetwork(network, size, torch.device("cpu")))[_BACKEND]()
    images = torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not agrees(network(images), backend(images), _TOLERANCE):
            return None

    def run(images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != size:
            features: Tensor = stem(images)
            return features
        [features] = backend(images)
        return features

    return run
