"""`deitkit eval`: a run measured on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import console
from ..data.decode import UnreadableImage
from ..data.store import refuse_many_unreadable
from ..delivery.classifier import load
from ..delivery.images import labelled_images
from ..evaluation.metrics import Tally, score_and_interval
from ..evaluation.multilabel import per_class
from ..model import joint_probabilities


def evaluate_folder(
    run: str | Path, data: str | Path, batch_size: int = 32, *, merge: int = 0, part: str | None = None
) -> dict[str, Any]:
    """Metrics of class head, distillation head and joint over all images of `data`, in percent.

    `data` has one sub-folder per class, named as the run's classes (a part of them is enough), or a
    labels.csv for a run of several labels an image; `part` then takes its rows of train, val or test.
    merge: patch tokens merged away in each block (arXiv 2210.09461).
    Raises DeitkitError for a class that the run does not know.
    """
    # In PyTorch throughout: a measurement does not change engines half way.
    classifier = load(run, backend="pytorch", merge=merge)
    images = labelled_images(Path(data), classifier, part)
    tally, unreadable = Tally(), []
    with console.bar("evaluating", len(images)) as advance:
        for first in range(0, len(images), batch_size):
            pixels, read = [], []
            for i in range(first, min(first + batch_size, len(images))):
                try:
                    pixels.append(classifier.pixels(images.full_path(i)))
                    read.append(i)
                except UnreadableImage as error:
                    unreadable.append((i, error.reason))
            if pixels:
                output = classifier.forward(torch.from_numpy(np.stack(pixels)))
                tally.add(output, torch.from_numpy(images.labels[read]))
            advance(min(batch_size, len(images) - first))
    refuse_many_unreadable([(str(images.full_path(i)), why) for i, why in unreadable], len(images))
    output, labels = tally.output()
    found = {"task": images.task, **tally.metrics().to_dict()}
    found["interval"] = score_and_interval(joint_probabilities(output, images.task), labels)[1]
    if images.task == "multilabel":
        rows = per_class(output, labels)
        found["per_class"] = [{"name": n} | row for n, row in zip(images.classes, rows, strict=True)]
    return found | {"skipped": [images.paths[i] for i, _ in unreadable]}
