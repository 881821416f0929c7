"""What a run found: measured, described, and written down."""

from __future__ import annotations

import csv
import datetime
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import log
from ..config import ResolvedConfig
from ..data.dataset import Dataset, Split
from ..data.image_set import ImageSet
from ..evaluation.evaluate import evaluate_student, evaluate_teacher, views_of
from ..evaluation.metrics import confusion, score_and_interval
from ..evaluation.multilabel import per_class
from ..evaluation.speed import describe_machine, images_per_s
from ..inference.backends import Backend, PyTorchBackend
from ..inference.device import fast_precision
from ..inference.joint_classifier import JointClassifier
from ..inference.selection import AutoBackend, create_backend
from ..io import write_tensors
from ..models import DeiTOutput, Student, joint_probabilities, probabilities_of
from ..preprocessing import STUDENT_MEAN, STUDENT_STD
from ..report.verdict import verdict
from ..tasks import SCORES, SEPARATOR, THRESHOLD, Task, probability_column
from ..teachers.teacher import Teacher

_SPEED_BATCH = 32


def measure_teacher(teacher: Teacher, val: Split, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Accuracy on validation in percent, speed at batch 32, size; and the logits (n, K) behind them."""
    logits = evaluate_teacher(teacher, val, device)
    score, interval = score_and_interval(probabilities_of(logits, val.images.task), val.labels)
    batch, _ = next(views_of(val, device, _SPEED_BATCH))
    facts = {
        "name": teacher.card.name,
        SCORES[val.images.task].key: score,
        "interval": interval,
        "params": teacher.card.params,
        "images_per_s": images_per_s(lambda: teacher(batch), len(batch)),
        "backend": teacher.backend,
        "how": teacher.card.how,
    }
    return facts, logits


def say_teacher(facts: dict[str, Any], val: Split) -> None:
    """Tells what `measure_teacher` found, and warns where the teacher is no better than no teacher.

    Of classes that is always naming the largest one; of several labels an image, an order by chance.
    """
    task, n = val.images.task, len(val.images)
    score = SCORES[task]
    reached, chance = facts[score.key], 100 * val.images.counts() / n
    log.info(
        f"teacher {facts['name']} ({facts['how']}): {score.say(reached)} on validation, "
        f"{facts['images_per_s']:.0f} images/s with {facts['backend']}"
    )
    floor = float(chance.max() if task == "multiclass" else chance.mean())
    if reached <= floor:
        what = "always saying the largest class" if task == "multiclass" else "an order by chance"
        log.warning(
            f"the teacher is no better than {what} ({score.say(floor)}); "
            "its answers will teach the student little, try another --teacher"
        )


def measure_student(
    model: Student, name: str, data: Dataset, device: torch.device
) -> tuple[dict[str, Any], DeiTOutput]:
    """Both heads and the joint classifier on validation (and test), speed, size; and the logits behind."""
    predictions = evaluate_student(model, data.val, device)
    output, labels = predictions.heads(), predictions.labels
    joint = joint_probabilities(output, data.task)
    batch, _ = next(views_of(data.val, device, _SPEED_BATCH))
    backend = _fast_backend(model, data.task, batch, device)
    params = model.num_params
    facts = {
        "name": name,
        **{k: v for k, v in predictions.metrics().to_dict().items() if k not in ("images", "loss")},
        "interval": score_and_interval(joint, labels)[1],
        "params": params,
        "images_per_s": images_per_s(lambda: backend(batch), len(batch)),
        "backend": backend.name,
        "bytes": 4 * params,
        "test": evaluate_student(model, data.test, device).metrics().to_dict() if data.test else None,
    }
    if data.task == "multiclass":
        facts["confusion"] = confusion(joint.argmax(1), labels, model.num_classes).tolist()
    else:
        facts["per_class"] = per_class(output, labels)
    return facts, output


def _fast_backend(model: Student, task: Task, batch: Tensor, device: torch.device) -> Backend:
    """What a deployed student would run on here, as a teacher is measured on its own fastest backend."""
    graph = JointClassifier(model.eval(), STUDENT_MEAN, STUDENT_STD, task=task)
    if device.type == "cuda":  # at a teacher's precision, or the two speeds would say little
        return PyTorchBackend(graph, device, precision=fast_precision(device))
    backend = create_backend(graph, model.image_size, "auto", device)
    if isinstance(backend, AutoBackend):
        backend.look(batch)
    return backend


def assemble(
    trained: dict[str, Any], teacher: dict[str, Any] | None, data: Dataset, seconds: float
) -> dict[str, Any]:
    """The content of `results.json`; `seconds` is the whole job's."""
    student, baseline = dict(trained["student"]), trained.get("baseline")
    n = len(data.val.images)
    by_class = "confusion" if data.task == "multiclass" else "per_class"
    return {
        "task": data.task,
        by_class: student.pop(by_class),
        "test": student.pop("test"),
        "student": student,
        "teacher": teacher,
        "baseline": baseline,
        "train": trained["train"] | {"job_seconds": seconds},
        "val": {"images": n},
        "weights": trained["weights"],
        "verdict": verdict(student, teacher, baseline, n, SCORES[data.task]),
        "machine": f"{describe_machine()}, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def describe_run(
    config: ResolvedConfig,
    data: Dataset,
    model: Student,
    teacher: dict[str, Any] | None,
    plan: dict[str, Any],
    root: Path,
) -> dict[str, Any]:
    """The content of `config.json`: all that is needed to use, repeat or judge the run.

    teacher: as `measure_teacher` gives it.
    """
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
        "teacher": {"name": teacher["name"], "how": teacher["how"]} if teacher else None,
    }


def save_model(path: Path, model: Student) -> None:
    """Weights under the published keys."""
    write_tensors(path, model.state_dict())


def write_predictions(path: Path, images: ImageSet, output: DeiTOutput, by_teacher: Tensor | None) -> None:
    """One row a validation image: what it is, and what each head and the teacher say.

    output and by_teacher hold logits (n, K) in the order of `images`. Of several labels an image, those
    above 0.5 stand in one cell, and a column for each class holds the joint classifier's probability.
    """
    joint, task = joint_probabilities(output, images.task), images.task
    heads = (joint, output.class_logits, output.distill_logits, by_teacher)
    said = [_decisions(p if p is None or p is joint else probabilities_of(p, task), images) for p in heads]
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
            answers = [column[i] for column in said]
            writer.writerow([images.paths[i], images.label_text(i), *answers, *shown[i]])


def _decisions(probabilities: Tensor | None, images: ImageSet) -> list[str]:
    """What (n, K) probabilities decide, by name; empty where there are none."""
    if probabilities is None:
        return [""] * len(images)
    if images.task == "multiclass":
        return [images.classes[k] for k in probabilities.argmax(1).tolist()]
    rows = (probabilities > THRESHOLD).cpu().numpy()
    return [SEPARATOR.join(images.classes[k] for k in np.flatnonzero(row)) for row in rows]
