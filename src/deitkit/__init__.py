"""deitkit: a folder of images in, a small, fast, accurate image classifier out.

run = deitkit.train("photos/", "runs/photos", train__epochs=30)
deitkit.load("runs/photos").predict(["new.jpg"])
deitkit.evaluate("runs/photos", "test-photos/")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from .errors import DeitkitError

if TYPE_CHECKING:
    from .classifier import Classifier, ImageClassifier, load, load_teacher
    from .config import Config
    from .deploy.benchmark import bench
    from .deploy.exporter import export_run as export
    from .evaluation.data_check import check_data as check
    from .evaluation.run_evaluation import evaluate_folder as evaluate
    from .log import show_progress
    from .models.deit import DeiT, create_model
    from .report.analysis_run import analyze_run as analyze
    from .report.explain_run import explain_run as explain
    from .training.labelling import label
    from .training.pretraining import pretrain
    from .training.run import Run, train

__version__ = "0.1.0"

# No dependency sends usage data from here. Each reads these when it is imported; a value of the user's stays.
for _switch in (
    "DO_NOT_TRACK",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_UPDATE_CHECK",
    "MLFLOW_DISABLE_TELEMETRY",
):
    os.environ.setdefault(_switch, "1")

# Module, and the name there if it is another. Loaded when first used: `import deitkit` and `deitkit --help`
# must not wait for torch.
_HOMES = {
    "Classifier": "classifier",
    "Config": "config",
    "DeiT": "models.deit",
    "ImageClassifier": "classifier",
    "Run": "training.run",
    "analyze": "report.analysis_run:analyze_run",
    "bench": "deploy.benchmark",
    "check": "evaluation.data_check:check_data",
    "create_model": "models.deit",
    "evaluate": "evaluation.run_evaluation:evaluate_folder",
    "explain": "report.explain_run:explain_run",
    "export": "deploy.exporter:export_run",
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
    "analyze",
    "bench",
    "check",
    "create_model",
    "evaluate",
    "explain",
    "export",
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
    module, _, original = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), original or name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
