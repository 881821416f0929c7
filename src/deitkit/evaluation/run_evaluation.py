"""`deitkit eval`: a run, or a fitted teacher, measured on a folder of labelled images."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import distributed, log
from ..classifier import ModelChoice, load_folder, model_folder
from ..config import BackendName
from ..data.image_set import ImageSet
from ..data.stored import ImageFile
from ..errors import SettingError
from ..models import DeiTOutput, joint_probabilities, probabilities_of, tempered
from ..run_folder import holds_teacher
from ..run_schema import probability_column
from ..tasks import SCORES, SEPARATOR, THRESHOLD, Task
from .comparison import chance, learned
from .evaluate import Outputs, Predictions, evaluate, gathered, heads_of
from .metrics import (
    ClassMetrics,
    Interval,
    Metrics,
    balanced_accuracy_interval,
    confusion,
    macro_f1_interval,
    per_class,
    score_and_interval,
)
from .multilabel import LabelMetrics, per_label
from .run_images import (
    FileBatches,
    has_validation_images,
    labelled_images,
    stacked,
    without_training_images,
)
from .selective import CurvePoint, OperatingPoint, check_precision, operating_point, risk_coverage
from .temperature import Reliability, reliability

# How the keys of `Evaluation.intervals` are shown, of a student with two heads.
HEAD_NAMES = {"joint": "both heads", "class": "class head", "distill": "distillation head"}


@dataclass(frozen=True)
class WrongPrediction:
    """An image that is classified wrong. path: as in the data. file: where it is."""

    path: str
    file: ImageFile
    label: str
    prediction: str
    probability: float


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A model on labelled images; in percent.

    intervals: of the task's score, by head: "joint", and "class" and "distill" of a student with two heads.
    balanced_interval, macro_f1_interval, confusion: None if multilabel. per_class: in the order of
    `classes`. chance: the score of a model that knows nothing, see `comparison.chance`; learned: whether this
    one is better. mistakes: multiclass only, the most confident first. skipped: files that could not be
    read. reliability: of the
    calibrated probabilities; `metrics.loss` is that at temperature 1. risk_coverage: multiclass only.
    operating_point: for the precision that was asked for.
    """

    task: Task
    classes: tuple[str, ...]
    metrics: Metrics
    intervals: dict[str, Interval]
    per_class: Sequence[ClassMetrics | LabelMetrics]
    chance: float
    learned: bool
    balanced_interval: Interval | None = None
    macro_f1_interval: Interval | None = None
    confusion: list[list[int]] | None = None
    mistakes: tuple[WrongPrediction, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reliability: Reliability | None = None
    risk_coverage: tuple[CurvePoint, ...] = ()
    operating_point: OperatingPoint | None = None

    def __repr__(self) -> str:
        score, (low, high) = SCORES[self.task], self.intervals["joint"]
        return (
            f"Evaluation: {score.name} {self.metrics.score:.1f} % (95 % interval {low:.1f} to {high:.1f}) "
            f"on {self.metrics.images} images of {len(self.classes)} classes"
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `deitkit eval --json`."""
        rows = [
            {"name": name, **dataclasses.asdict(row)}
            for name, row in zip(self.classes, self.per_class, strict=True)
        ]
        return {
            "task": self.task,
            **self.metrics.to_dict(),
            "interval": list(self.intervals["joint"]),
            "intervals": {head: list(interval) for head, interval in self.intervals.items()},
            "balanced_interval": self.balanced_interval and list(self.balanced_interval),
            "macro_f1_interval": self.macro_f1_interval and list(self.macro_f1_interval),
            "chance": self.chance,
            "learned": self.learned,
            "per_class": rows,
            "confusion": self.confusion,
            "mistakes": [vars(mistake) | {"file": str(mistake.file)} for mistake in self.mistakes],
            "skipped": list(self.skipped),
            "notes": list(self.notes),
            "calibration": self.reliability and _reliability_to_dict(self.reliability),
            "risk_coverage": [dataclasses.asdict(point) for point in self.risk_coverage],
            "operating_point": self.operating_point and _point_to_dict(self.operating_point, self.classes),
        }


def evaluate_folder(
    run: str | Path,
    data: str | Path,
    batch_size: int = 32,
    *,
    model: ModelChoice = "recommended",
    device: str = "auto",
    merge: int = 0,
    part: str | None = None,
    code: str | None = None,
    csv_file: str | Path | None = None,
    precision: float | None = None,
) -> Evaluation:
    """Measures a model of `run`, or the fitted teacher in that folder, on the images of `data`.

    data: a folder with one sub-folder per class (some of the run's classes are enough), or with val/ that has
    these, or for a multilabel run with a labels.csv; `part` then takes its rows of train, val or test.
    Without `part`, images that the run was trained on are left out, and `notes` says so. model, device,
    merge, code: as for `load`. csv_file: written with a row per image. precision: the share of answers
    that has to be right, for a threshold. Raises DataError for an unknown class.
    """
    if precision is not None:
        check_precision(precision)
    folder = model_folder(Path(run), model)
    # A student stays on PyTorch: a measurement does not change backends half way.
    backend: BackendName = "auto" if holds_teacher(folder) else "pytorch"
    with log.activity("loading the model"):
        classifier = load_folder(folder, device, backend=backend, merge=merge, code=code)
        if precision is not None and classifier.task == "multilabel":
            raise SettingError(
                f"--precision needs one class per image, and {folder} is multilabel; leave it out"
            )
        images, notes = labelled_images(Path(data), classifier, part), list[str]()
        if part is None:
            images, notes = without_training_images(folder, images)
    for note in notes:
        log.info(note)

    def predict(pixels: Tensor) -> Outputs:
        return heads_of(classifier.forward(pixels))

    rows = distributed.share(len(images), unit=batch_size)  # in the batches of one process
    own = images.subset(np.arange(rows.start, rows.stop))
    with log.progress_bar("evaluating", len(own)) as advance:
        files = FileBatches[np.ndarray](own, classifier.pixels, batch_size, advance)
        predictions = evaluate(predict, stacked(files), advance) if rows or not len(images) else None
    found = gathered(predictions)
    skipped = [path for part in distributed.gather(files.skipped) for path, _ in part]
    temperature = classifier.calibration.temperature

    left_out = set(skipped)

    def measured() -> Evaluation:
        kept = images.subset(np.array([i for i, path in enumerate(images.paths) if path not in left_out]))
        whole = _measured(folder, kept, found, temperature, precision, csv_file)
        return replace(whole, skipped=tuple(skipped), notes=tuple(notes))

    return distributed.from_main(measured)


def _measured(
    folder: Path,
    images: ImageSet,
    predictions: Predictions,
    temperature: float,
    precision: float | None,
    csv_file: str | Path | None,
) -> Evaluation:
    """What the predictions for `images` come to, with how far the probabilities can be trusted."""
    if csv_file is not None:
        write_predictions(Path(csv_file), images, predictions.heads(), None, temperature=temperature)
    found = reliability(
        predictions.heads(),
        predictions.labels,
        temperature,
        fitted_on_these=has_validation_images(folder, images),
    )
    return replace(_evaluation(images, predictions, temperature, precision), reliability=found)


def _reliability_to_dict(found: Reliability) -> dict[str, Any]:
    """Without the bins, and with the calibration errors as `ece` and `ece_before`."""
    content = dataclasses.asdict(found)
    for name, short in (("calibration", "ece"), ("calibration_before", "ece_before")):
        binned = content.pop(name)
        content[short] = binned and binned["ece"]
    return content


def _point_to_dict(point: OperatingPoint, classes: Sequence[str]) -> dict[str, Any]:
    content = dataclasses.asdict(point)
    rows = zip(classes, content.pop("per_class"), strict=True)
    return content | {"per_class": [{"name": name, **row} for name, row in rows]}


def _evaluation(
    images: ImageSet, predictions: Predictions, temperature: float, precision: float | None
) -> Evaluation:
    """What the predictions for `images` come to."""
    heads, labels, task = predictions.heads(), predictions.labels, images.task
    joint = joint_probabilities(heads, task)
    by_head = {"joint": joint, "class": heads.class_logits, "distill": heads.distill_logits}
    if heads.distill_logits is None:
        by_head = {"joint": joint}
    intervals = {name: score_and_interval(p, labels)[1] for name, p in by_head.items() if p is not None}
    if task == "multilabel":
        return Evaluation(
            task=task,
            classes=images.classes,
            metrics=predictions.metrics(),
            intervals=intervals,
            per_class=per_label(heads, labels),
            chance=chance(labels),
            learned=learned(intervals["joint"], labels),
        )
    calibrated = tempered(joint, temperature)
    confidence, predicted = calibrated.max(1)
    counts = confusion(joint.argmax(1), labels, len(images.classes))
    balanced = balanced_accuracy_interval(counts)
    return Evaluation(
        task=task,
        classes=images.classes,
        metrics=predictions.metrics(),
        intervals=intervals,
        per_class=per_class(counts),
        chance=chance(labels),
        learned=learned(balanced, labels),
        balanced_interval=balanced,
        macro_f1_interval=macro_f1_interval(counts),
        confusion=counts.tolist(),
        mistakes=_mistakes(calibrated, images),
        risk_coverage=risk_coverage(confidence, predicted == labels),
        operating_point=None if precision is None else operating_point(calibrated, labels, precision),
    )


def _mistakes(joint: Tensor, images: ImageSet) -> tuple[WrongPrediction, ...]:
    """The wrong predictions, given probabilities (n, K), the most confident first."""
    confidence, predicted = (found.tolist() for found in joint.max(1))
    wrong = [i for i in range(len(images)) if predicted[i] != images.labels[i]]
    return tuple(
        WrongPrediction(
            path=images.paths[i],
            file=images.file(i),
            label=images.label_text(i),
            prediction=images.classes[predicted[i]],
            probability=confidence[i],
        )
        for i in sorted(wrong, key=lambda i: -confidence[i])
    )


def write_predictions(
    path: Path,
    images: ImageSet,
    output: DeiTOutput,
    by_teacher: Tensor | None,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> None:
    """Writes one row per image as CSV: its label, and what each head and the teacher predict.

    output, by_teacher: logits (n, K) in the order of `images`. temperature, teacher_temperature: of their
    probabilities. Multilabel: the labels above 0.5 are in one cell, and a column per label holds the joint
    classifier's probability.
    """
    task = images.task
    joint = tempered(joint_probabilities(output, task), temperature, task)
    heads = (joint, output.class_logits, output.distill_logits, by_teacher)
    predicted = [_names(p if p is None or p is joint else probabilities_of(p, task), images) for p in heads]
    if task == "multiclass":
        columns = ["probability", "teacher_probability"]
        shown = [[f"{p:.4f}", ""] for p in joint.max(1).values.tolist()]
        if by_teacher is not None:
            certain = tempered(probabilities_of(by_teacher, task), teacher_temperature, task)
            confidence = certain.max(1).values.tolist()
            shown = [[row[0], f"{p:.4f}"] for row, p in zip(shown, confidence, strict=True)]
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
