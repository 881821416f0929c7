"""What a run writes down beside its results: `config.json`, the weights, the predictions on validation."""

from __future__ import annotations

import csv
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ResolvedConfig
from ..data.dataset import Dataset
from ..data.image_set import ImageSet
from ..io import write_tensors
from ..models import DeiTOutput, Student, joint_probabilities, probabilities_of
from ..preprocessing import STUDENT_MEAN, STUDENT_STD
from ..run_schema import ModelResult, probability_column
from ..tasks import SEPARATOR, THRESHOLD


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
            "fingerprint": data.pool.images.fingerprint(times=False),
        },
        "plan": plan,
        "teacher": {"name": teacher.name, "how": teacher.how} if teacher else None,
    }


def save_model(path: Path, model: Student) -> None:
    """Weights under the published keys."""
    write_tensors(path, model.state_dict())


def write_predictions(path: Path, images: ImageSet, output: DeiTOutput, by_teacher: Tensor | None) -> None:
    """One row per validation image: its label, and what each head and the teacher predict.

    output, by_teacher: logits (n, K) in the order of `images`. Multilabel: the labels above 0.5 are in one
    cell, and a column per label holds the joint classifier's probability.
    """
    joint, task = joint_probabilities(output, images.task), images.task
    heads = (joint, output.class_logits, output.distill_logits, by_teacher)
    predicted = [_names(p if p is None or p is joint else probabilities_of(p, task), images) for p in heads]
    if task == "multiclass":
        columns = ["probability"]
        shown = [[f"{p:.4f}"] for p in joint.max(1).values.tolist()]
    else:
        columns = [probability_column(name) for name in images.classes]
        shown = [[f"{p:.4f}" for p in row] for row in joint.tolist()]
    # A name that is no UTF-8 keeps a backslash form, as it does in split.json.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        heads_columns = ["class_prediction", "distill_prediction", "teacher_prediction"]
        writer.writerow(["path", "label", "prediction", *heads_columns, *columns])
        for i in range(len(images)):
            answers = [column[i] for column in predicted]
            writer.writerow([images.paths[i], images.label_text(i), *answers, *shown[i]])


def _names(probabilities: Tensor | None, images: ImageSet) -> list[str]:
    """The predicted class, or labels, of each row of (n, K) probabilities; empty strings without any."""
    if probabilities is None:
        return [""] * len(images)
    if images.task == "multiclass":
        return [images.classes[k] for k in probabilities.argmax(1).tolist()]
    rows = (probabilities > THRESHOLD).cpu().numpy()
    return [SEPARATOR.join(images.classes[k] for k in np.flatnonzero(row)) for row in rows]
