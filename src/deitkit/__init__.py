"""deitkit: a folder of images in, a small, fast, accurate image classifier out.

run = deitkit.train("photos/", "runs/photos")
deitkit.load("runs/photos").predict(["new.jpg"])
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from .errors import DeitkitError

if TYPE_CHECKING:
    from .classifier import Classifier, ImageClassifier, load, load_teacher
    from .config import Config
    from .log import show_progress
    from .models.deit import DeiT, create_model
    from .training.labelling import label
    from .training.pretraining import pretrain
    from .training.run import Run, train

__version__ = "0.1.0"

# No dependency sends usage data from here. Each reads these when it is imported; a value of the user's stays.
for _switch in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK"):
    os.environ.setdefault(_switch, "1")

# Loaded when first used: `import deitkit` and `deitkit --help` must not wait for torch.
_HOMES = {
    "Classifier": "classifier",
    "Config": "config",
    "DeiT": "models.deit",
    "ImageClassifier": "classifier",
    "Run": "training.run",
    "create_model": "models.deit",
    "label": "training.labelling",
    "load": "classifier",
    "load_teacher": "classifier",
    "pretrain": "training.pretraining",
    "show_progress": "log",
    "train": "training.run",
}

__all__ = [
    "Classifier",
    "Config",
    "DeiT",
    "DeitkitError",
    "ImageClassifier",
    "Run",
    "create_model",
    "label",
    "load",
    "load_teacher",
    "pretrain",
    "show_progress",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
