"""What a run writes beside its results: `config.json`, the weights, and what validation images came to."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import ResolvedConfig
from ..data.dataset import Dataset
from ..data.image_set import ImageSet
from ..data.source import location
from ..evaluation.familiarity import fit_familiarity
from ..evaluation.run_evaluation import write_predictions
from ..evaluation.temperature import calibrate
from ..io import write_tensors
from ..models import DeiTOutput, Student
from ..preprocessing import STUDENT_MEAN, STUDENT_STD
from ..run_folder import PREDICTIONS, TEACHER_FOLDER, write_calibration
from ..run_schema import CalibrationInfo, ModelResult


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
            "root": location(root),
            "how": data.splits.how,
            "fingerprint": data.fingerprint,
        },
        "plan": plan,
        "teacher": {"name": teacher.name, "how": teacher.how} if teacher else None,
    }


def write_validation(
    folder: Path, images: ImageSet, output: DeiTOutput, by_teacher: DeiTOutput | None = None
) -> None:
    """Calibrates the model in `folder` on its validation images; writes that, and `predictions.csv`.

    output: logits (n, K) and embedding. by_teacher: those of the teacher kept in `folder`, which is
    calibrated as well.
    """
    calibration = write_calibrated(folder, images, output)
    of_teacher = CalibrationInfo()
    if by_teacher is not None:
        of_teacher = write_calibrated(folder / TEACHER_FOLDER, images, by_teacher)
    write_predictions(
        folder / PREDICTIONS,
        images,
        output,
        None if by_teacher is None else by_teacher.class_logits,
        temperature=calibration.temperature,
        teacher_temperature=of_teacher.temperature,
    )


def write_calibrated(folder: Path, images: ImageSet, output: DeiTOutput) -> CalibrationInfo:
    """Calibrates the model in `folder` on its validation images, from logits (n, K) and embedding."""
    labels = torch.from_numpy(images.labels)
    calibration, class_means = calibrate(output, labels), None
    if output.embedding is not None and images.task == "multiclass":
        familiarity = fit_familiarity(output.embedding, labels)
        if familiarity is not None:
            calibration = replace(calibration, familiar_up_to=familiarity.up_to)
            class_means = familiarity.class_means
    write_calibration(folder, calibration, class_means)
    return calibration


def save_model(path: Path, model: Student) -> None:
    """Weights under the published keys."""
    write_tensors(path, model.state_dict())
