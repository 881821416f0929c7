"""Checks that a student sees the same pixels as the teacher did: a few views are kept and made again."""

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
# Mean difference, of 255 levels. Devices round differently, by less; another view differs by more.
_TOLERANCE = 1.0

MakeViews = Callable[[Batch], ViewBatch]


def keep_first_views(store: SoftLabelStore, make: MakeViews) -> None:
    """Saves the first views of the first epoch with the soft labels."""
    write_tensors(store.folder / FIRST_VIEWS, {"views": _first_views(store, make)}, {"labels": store.id})


def refuse_other_views(store: SoftLabelStore, make: MakeViews) -> None:
    """Raises RunFolderError if the images no longer give the views that were saved."""
    path = store.folder / FIRST_VIEWS
    try:
        if not path.is_file():
            raise FileNotFoundError
        kept = load_file(path)["views"].float()
    except Exception as error:  # a truncated file raises errors of many kinds
        raise RunFolderError(
            f"{path} cannot be read ({type(error).__name__}); run deitkit label into a new folder"
        ) from None
    again = _first_views(store, make).float()
    if kept.shape != again.shape or not (kept - again).abs().mean() <= _TOLERANCE:
        versions = ", ".join(f"{name} {version}" for name, version in store.manifest.versions.items())
        raise RunFolderError(
            f"the views of the soft labels in {store.folder} cannot be made again: the images have changed, "
            f"or the libraries (they were {versions}); run deitkit label into a new folder"
        )


def _first_views(store: SoftLabelStore, make: MakeViews) -> Tensor:
    """(at most 8, 3, H, W) uint8."""
    views = make(store.plan(0)[0]).images[:_VIEWS]
    return views.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
