"""deitkit: a folder of images in, a small, fast, accurate image classifier out.

run = deitkit.train("photos/", "runs/photos")
deitkit.load("runs/photos").predict(["new.jpg"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import DeitkitError

if TYPE_CHECKING:
    from .config import Config
    from .delivery.classifier import Classifier, load
    from .job import Run, train
    from .labelling import label
    from .model import DeiT, create_model
    from .pretraining import pretrain

__version__ = "0.1.0"

# Loaded when first used: `import deitkit` and `deitkit --help` must not wait for torch.
_HOMES = {
    "Classifier": "delivery.classifier",
    "Config": "config",
    "DeiT": "model",
    "Run": "job",
    "create_model": "model",
    "label": "labelling",
    "load": "delivery.classifier",
    "pretrain": "pretraining",
    "train": "job",
}

__all__ = [
    "Classifier",
    "Config",
    "DeiT",
    "DeitkitError",
    "Run",
    "create_model",
    "label",
    "load",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
