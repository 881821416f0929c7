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

from . import console
from .config import AugmentConfig, Config
from .data.folder import ImageSet
from .delivery.verdict import verdict
from .evaluation.metrics import confusion, top_k, wilson_interval
from .evaluation.throughput import images_per_s
from .files import write_tensors
from .inference.choose import FastestThatAgrees, create_engine
from .inference.engines import Engine
from .inference.graph import JointClassifier
from .model import DeiT, DeiTOutput, joint_probabilities
from .prepare import MEAN, STD, Data, Part, plain_views, tally
from .teachers.teacher import Teacher

PLAIN = AugmentConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip=0.0,
    randaugment_ops=0,
    erasing=0.0,
    mixup=0.0,
    cutmix=0.0,
)
_SPEED_BATCH = 32


def teacher_logits(teacher: Teacher, part: Part, device: torch.device) -> Tensor:
    """The teacher's logits over a split, seen as the student sees it: (n, K)."""
    views = plain_views(part.store, device)
    return torch.cat([teacher(batch).logits.float().cpu() for batch in views])


def measure_teacher(teacher: Teacher, val: Part, device: torch.device) -> tuple[dict[str, Any], Tensor]:
    """Accuracy on validation in percent, speed at batch 32, size; and the logits (n, K) behind them."""
    logits = teacher_logits(teacher, val, device)
    top1 = top_k(logits, val.labels, 1)
    batch = next(plain_views(val.store, device, _SPEED_BATCH))
    facts = {
        "name": teacher.card.name,
        "top1": top1,
        "interval": wilson_interval(top1 / 100, len(val.images)),
        "params": teacher.card.params,
        "images_per_s": images_per_s(lambda: teacher(batch), len(batch)),
        "backend": teacher.backend.name,
        "how": teacher.card.how,
    }
    return facts, logits


def teacher_sentence(facts: dict[str, Any]) -> str:
    """What `measure_teacher` found, for the person watching."""
    return (
        f"teacher {facts['name']} ({facts['how']}): {facts['top1']:.1f} % on validation, "
        f"{facts['images_per_s']:.0f} images/s with {facts['backend']}"
    )


def warn_of_weak_teacher(top1: float, val: Part) -> None:
    """Says so where a teacher is no better than always naming the largest class."""
    majority = 100 * val.images.counts().max() / len(val.images)
    if top1 <= majority:
        console.say(
            f"warning: the teacher's {top1:.1f} % are no better than always saying the largest class "
            f"({majority:.1f} %); its answers will teach the student little, try another --teacher"
        )


def measure_student(
    model: DeiT, name: str, data: Data, device: torch.device
) -> tuple[dict[str, Any], DeiTOutput]:
    """Both heads and the joint classifier on validation (and test), speed, size; and the logits behind."""
    measured = tally(model, data.val, device)
    metrics = measured.metrics()
    output, labels = measured.output()
    batch = next(plain_views(data.val.store, device, _SPEED_BATCH))
    engine = _fast_engine(model, batch, device)
    params = model.num_params
    facts = {
        "name": name,
        "top1": metrics.top1,
        "top1_class": metrics.top1_class,
        "top1_distill": metrics.top1_distill,
        "top5": metrics.top5,
        "interval": wilson_interval(metrics.top1 / 100, metrics.images),
        "params": params,
        "images_per_s": images_per_s(lambda: engine(batch), len(batch)),
        "backend": engine.name,
        "bytes": 4 * params,
        "test": tally(model, data.test, device).metrics().to_dict() if data.test else None,
        "confusion": confusion(joint_probabilities(output).argmax(1), labels, model.num_classes).tolist(),
    }
    return facts, output


def _fast_engine(model: DeiT, batch: Tensor, device: torch.device) -> Engine:
    """What a deployed student would run on here, as a teacher is measured on its own fastest backend."""
    graph = JointClassifier(model.eval(), MEAN, STD, distilled=model.head_dist is not None)
    engine = create_engine(graph, model.image_size, "auto", device)
    if isinstance(engine, FastestThatAgrees):
        engine.look(batch)
    return engine


def assemble(
    trained: dict[str, Any], teacher: dict[str, Any] | None, data: Data, seconds: float
) -> dict[str, Any]:
    """The content of `results.json`; `seconds` is the whole job's."""
    student, control = dict(trained["student"]), trained.get("control")
    n = len(data.val.images)
    return {
        "confusion": student.pop("confusion"),
        "test": student.pop("test"),
        "student": student,
        "teacher": teacher,
        "control": control,
        "train": trained["train"] | {"job_seconds": seconds},
        "val": {"images": n},
        "weights": trained["weights"],
        "verdict": verdict(student, teacher, control, n),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def describe_run(
    config: Config,
    data: Data,
    model: DeiT,
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
        "classes": list(data.classes),
        "preprocessing": {
            "image_size": list(model.image_size),
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "crop": config.data.eval_crop,
        },
        "student": {
            "name": student.name,
            "image_size": list(model.image_size),
            "patch_size": list(model.patch_embed.patch_size),
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "num_heads": model.num_heads,
            "distilled": model.head_dist is not None,
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
        | {"root": str(root), "how": data.splits.how, "fingerprint": data.train.images.fingerprint()},
        "plan": plan,
        "teacher": {"name": teacher["name"], "how": teacher["how"]} if teacher else None,
    }


def save_model(path: Path, model: DeiT) -> None:
    """Weights under the published keys."""
    write_tensors(path, model.state_dict())


def write_predictions(path: Path, images: ImageSet, output: DeiTOutput, by_teacher: Tensor | None) -> None:
    """One row a validation image: what it is, and what each head and the teacher say.

    output and by_teacher hold logits (n, K) in the order of `images`.
    """
    joint, names = joint_probabilities(output), images.classes
    teacher = by_teacher.argmax(1).tolist() if by_teacher is not None else None
    distill = output.distill_logits
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "path",
                "label",
                "prediction",
                "probability",
                "class_prediction",
                "distill_prediction",
                "teacher_prediction",
            ]
        )
        for i in range(len(images)):
            best = int(joint[i].argmax())
            writer.writerow(
                [
                    images.paths[i],
                    names[images.labels[i]],
                    names[best],
                    f"{joint[i, best]:.4f}",
                    names[int(output.class_logits[i].argmax())],
                    names[int(distill[i].argmax())] if distill is not None else "",
                    names[teacher[i]] if teacher else "",
                ]
            )
