"""`deitkit eval`: a run measured on a folder of labelled images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import log
from ..classifier import load
from ..data.cache import refuse_many_unreadable
from ..models.base import joint_probabilities
from .evaluate import Outputs, evaluate, heads_of
from .metrics import score_and_interval
from .multilabel import per_label
from .run_images import FileBatches, labelled_images, stacked, without_training_images


def evaluate_folder(
    run: str | Path, data: str | Path, batch_size: int = 32, *, merge: int = 0, part: str | None = None
) -> dict[str, Any]:
    """Metrics of class head, distillation head and joint over the images of `data`, in percent.

    data: a folder with one sub-folder per class (some of the run's classes are enough), or with val/ that has
    these, or for a multilabel run with a labels.csv; `part` then takes its rows of train, val or test.
    Without `part`, images that the run was trained on are left out, and `notes` says so. merge: patch tokens
    to merge in each block (arXiv 2210.09461). Raises DataError for a class that the run does not know.
    """
    # PyTorch throughout: a measurement does not change backends half way.
    classifier = load(run, backend="pytorch", merge=merge)
    images = labelled_images(Path(data), classifier, part)
    notes: list[str] = []
    if part is None:
        images, notes = without_training_images(Path(run), images)
    for note in notes:
        log.info(note)

    def predict(pixels: Tensor) -> Outputs:
        return heads_of(classifier.forward(pixels))

    with log.progress_bar("evaluating", len(images)) as advance:
        files = FileBatches[np.ndarray](images, classifier.pixels, batch_size, advance)
        predictions = evaluate(predict, stacked(files), advance)
    refuse_many_unreadable(files.skipped, len(images))
    heads, labels = predictions.heads(), predictions.labels
    found = {"task": images.task, **predictions.metrics().to_dict()}
    found["interval"] = score_and_interval(joint_probabilities(heads, images.task), labels)[1]
    if images.task == "multilabel":
        rows = per_label(heads, labels)
        found["per_class"] = [
            {"name": n} | dataclasses.asdict(row) for n, row in zip(images.classes, rows, strict=True)
        ]
    return found | {"skipped": [path for path, _ in files.skipped], "notes": notes}
