"""`deitkit eval`: a run measured on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import log
from ..classifier import load
from ..data.cache import refuse_many_unreadable
from ..models.deit import joint_probabilities
from .metrics import LogitAccumulator, score_and_interval
from .multilabel import per_class
from .run_images import batches as image_batches
from .run_images import labelled_images, without_training_images


def evaluate_folder(
    run: str | Path, data: str | Path, batch_size: int = 32, *, merge: int = 0, part: str | None = None
) -> dict[str, Any]:
    """Metrics of class head, distillation head and joint over the images of `data`, in percent.

    `data` has one sub-folder per class, named as the run's classes (a part of them is enough), or val/ with
    these, or a labels.csv for a run of several labels an image; `part` then takes its rows of train, val or
    test. Without `part`, images that the run was trained on are left out, and `notes` says so.
    merge: patch tokens merged away in each block (arXiv 2210.09461).
    Raises DeitkitError for a class that the run does not know.
    """
    # In PyTorch throughout: a measurement does not change backends half way.
    classifier = load(run, backend="pytorch", merge=merge)
    images = labelled_images(Path(data), classifier, part)
    notes: list[str] = []
    if part is None:
        images, notes = without_training_images(Path(run), images)
    for note in notes:
        log.info(note)
    collected, skipped = LogitAccumulator(), []
    with log.progress_bar("evaluating", len(images)) as advance:

        def on_unreadable(i: int, reason: str) -> None:
            skipped.append((images.paths[i], reason))
            advance(1)

        for pixels, labels in image_batches(classifier, images, batch_size, on_unreadable):
            collected.add(classifier.forward(pixels), labels)
            advance(len(labels))
    refuse_many_unreadable(skipped, len(images))
    output, labels = collected.output()
    found = {"task": images.task, **collected.metrics().to_dict()}
    found["interval"] = score_and_interval(joint_probabilities(output, images.task), labels)[1]
    if images.task == "multilabel":
        rows = per_class(output, labels)
        found["per_class"] = [{"name": n} | row for n, row in zip(images.classes, rows, strict=True)]
    return found | {"skipped": [path for path, _ in skipped], "notes": notes}
