"""Proof that a student sees the pixels its teacher saw: a few views, kept and made again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..data.loader import ViewBatch
from ..data.sampler import Batch
from ..errors import RunFolderError
from ..io import write_tensors
from .store import SoftLabelStore

FIRST_VIEWS = "views.safetensors"
_VIEWS = 8
# Mean, of 255 levels: another device rounds differently, another view does not look alike.
_MAX_DIFFERENCE = 1.0

Make = Callable[[Batch], ViewBatch]


def keep_first_views(store: SoftLabelStore, make: Make) -> None:
    """Writes the first views of the first epoch beside the labels."""
    write_tensors(store.folder / FIRST_VIEWS, {"views": _first_views(store, make)}, {"labels": store.id})


def refuse_other_views(store: SoftLabelStore, make: Make) -> None:
    """Raises DeitkitError where the kept views cannot be made again from the data."""
    try:
        kept = load_file(store.folder / FIRST_VIEWS)["views"]
    except Exception as error:  # a cut file fails in many ways
        raise RunFolderError(
            f"{store.folder / FIRST_VIEWS} cannot be read ({type(error).__name__}); "
            "label again into a new folder"
        ) from None
    again = _first_views(store, make)
    if kept.shape != again.shape or (kept.float() - again.float()).abs().mean() > _MAX_DIFFERENCE:
        versions = ", ".join(f"{name} {version}" for name, version in store.manifest.versions.items())
        raise RunFolderError(
            f"the views that the labels in {store.folder} belong to cannot be made again: the images "
            f"have changed, or the libraries (then: {versions}); label again into a new folder"
        )


def _first_views(store: SoftLabelStore, make: Make) -> Tensor:
    """(at most 8, 3, H, W) uint8."""
    views = make(store.plan(0)[0]).images[:_VIEWS]
    return views.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
