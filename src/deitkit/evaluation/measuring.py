"""What a student says of a split: its input made, all of its outputs counted."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.cache import PixelStore
from ..data.dataset import Split
from ..models import Student
from ..preprocessing import IMAGENET_MEAN, IMAGENET_STD
from .metrics import LogitAccumulator, Metrics

# Of the student's input; the teacher has its own.
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the student's input."""
    mean, std = _statistics(images.device)
    return (images - mean) / std


@functools.cache
@torch.inference_mode(False)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device, made once: each copy to a GPU would wait for all of its work."""
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return mean, std


def plain_views(store: PixelStore, device: torch.device, batch_size: int = 64) -> Iterator[Tensor]:
    """All images of `store`, in order, as views (B, 3, H, W) in [0, 1]."""
    for first in range(0, len(store), batch_size):
        indices = np.arange(first, min(first + batch_size, len(store)))
        yield store.fetch(indices).to(device).float().div_(255.0)


@torch.inference_mode()
def collect_logits(model: Student, part: Split, device: torch.device) -> LogitAccumulator:
    """All outputs of `model` over a split."""
    model.eval()
    total, first = LogitAccumulator(), 0
    for views in plain_views(part.store, device):
        total.add(model(normalise(views)), part.labels[first : first + len(views)])
        first += len(views)
    return total


def evaluate(model: Student, part: Split, device: torch.device) -> Metrics:
    """Class head, distillation head and joint over a split."""
    return collect_logits(model, part, device).metrics()
