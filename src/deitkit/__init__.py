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
    from .delivery.classifier import Classifier, PictureClassifier, load
    from .delivery.teacher import load_teacher
    from .jobs.label import label
    from .jobs.pretrain import pretrain
    from .jobs.train import Run, train
    from .model import DeiT, create_model

__version__ = "0.1.0"

# Loaded when first used: `import deitkit` and `deitkit --help` must not wait for torch.
_HOMES = {
    "Classifier": "delivery.classifier",
    "Config": "config",
    "DeiT": "model",
    "PictureClassifier": "delivery.classifier",
    "Run": "jobs.train",
    "create_model": "model",
    "label": "jobs.label",
    "load": "delivery.classifier",
    "load_teacher": "delivery.teacher",
    "pretrain": "jobs.pretrain",
    "train": "jobs.train",
}

__all__ = [
    "Classifier",
    "Config",
    "DeiT",
    "DeitkitError",
    "PictureClassifier",
    "Run",
    "create_model",
    "label",
    "load",
    "load_teacher",
    "pretrain",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
