"""What a run writes beside its results: `config.json` and the weights."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ResolvedConfig
from ..data.dataset import Dataset
from ..io import write_tensors
from ..models import Student
from ..preprocessing import STUDENT_MEAN, STUDENT_STD
from ..run_schema import ModelResult


def describe_run(
    config: ResolvedConfig,
    data: Dataset,
    model: Student,
    teacher: ModelResult | None,
    plan: dict[str, Any],
    root: Path,
) -> dict[str, Any]:
    """The content of `config.json`: all that is needed to use, repeat or judge the run."""
    import timm
    import torchvision

    student = config.student
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {
        "config": config.to_dict(),
        "task": data.task,
        "classes": list(data.classes),
        "preprocessing": {
            "image_size": list(model.image_size),
            "mean": list(STUDENT_MEAN),
            "std": list(STUDENT_STD),
            "interpolation": "bicubic",
            "crop": config.data.eval_crop,
        },
        "student": {
            "name": student.name,
            **model.describe(),
            "params": model.num_params,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
        },
        "data": {name: len(part.images) for name, part in parts.items() if part}
        | {"unlabeled": len(data.pool.images) - len(data.train.images)}
        | {
            "root": str(root.resolve()),
            "how": data.splits.how,
            "fingerprint": data.fingerprint,
        },
        "plan": plan,
        "teacher": {"name": teacher.name, "how": teacher.how} if teacher else None,
    }


def save_model(path: Path, model: Student) -> None:
    """Weights under the published keys."""
    write_tensors(path, model.state_dict())
