"""`deitkit eval`: a run measured on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import console
from .data.decode import UnreadableImage
from .data.folder import scan_as
from .data.store import refuse_many_unreadable
from .delivery.classifier import load
from .evaluation.metrics import Tally, wilson_interval


def evaluate_folder(
    run: str | Path, data: str | Path, batch_size: int = 32, *, merge: int = 0
) -> dict[str, Any]:
    """Metrics of class head, distillation head and joint over all images of `data`, in percent.

    `data` has one sub-folder per class, named as the run's classes (a part of them is enough).
    merge: patch tokens merged away in each block (arXiv 2210.09461).
    Raises DeitkitError for a class that the run does not know.
    """
    # In PyTorch throughout: a measurement does not change engines half way.
    classifier = load(run, backend="pytorch", merge=merge)
    images = scan_as(Path(data), classifier.classes)
    tally, unreadable = Tally(), []
    with console.bar("evaluating", len(images)) as advance:
        for first in range(0, len(images), batch_size):
            pixels, labels = [], []
            for i in range(first, min(first + batch_size, len(images))):
                try:
                    pixels.append(classifier.pixels(images.full_path(i)))
                    labels.append(int(images.labels[i]))
                except UnreadableImage as error:
                    unreadable.append((i, error.reason))
            if pixels:
                tally.add(classifier.forward(torch.from_numpy(np.stack(pixels))), torch.tensor(labels))
            advance(min(batch_size, len(images) - first))
    refuse_many_unreadable([(str(images.full_path(i)), why) for i, why in unreadable], len(images))
    metrics = tally.metrics()
    interval = wilson_interval(metrics.top1 / 100, metrics.images)
    return metrics.to_dict() | {"interval": interval, "skipped": [images.paths[i] for i, _ in unreadable]}
