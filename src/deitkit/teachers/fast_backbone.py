"""The backend of a frozen teacher: how it is built, and which one runs it.

A backend takes images (B, 3, H, W) in [0, 1] at the teacher's own size and returns pooled features (B, F) and
feature maps. The choice is measured once, before training.
"""

from __future__ import annotations

from functools import partial

import torch

from ..inference import selection
from ..inference.backends import Backend, FrozenNetwork, builders
from ..inference.device import fast_precision
from ..inference.selection import Builders, Rule, Tolerance
from ..preprocessing import Normalised, Preprocessing
from .pretrained import Pretrained

CHOICE_BATCH = 8  # images that agreement and speed are measured on
# Backends round differently. Were two close in speed, noise would decide between them, and two runs with the
# same seed would differ: PyTorch must be this much faster to be kept.
_RULE = Rule(Tolerance(relative=1e-2), margin=1.5, what="the teacher")


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
    return selection.choose_backend(candidates, images, device, wanted, _RULE)
