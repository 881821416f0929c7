"""The evaluation loop: a predictor runs over batches, and its outputs are collected.

Every measurement uses it: after an epoch of training, `deitkit eval`, `teacher eval`, `export --int8`,
`bench` and `analyze`. They differ in their predictor and in where their batches come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..data.dataset import Split
from ..errors import DataError
from ..inference.backends import Backend
from ..models.base import DeiTOutput, Student
from ..models.deit import DeiT
from ..preprocessing import normalise
from ..teachers.teacher import Teacher
from .metrics import Metrics, measure, score_and_interval

Batch = TypeVar("Batch")
Outputs = Mapping[str, Tensor]  # (B, ...) each, by name

_BATCH = 64
_NO_IMAGES = "there are no images to evaluate on; add some to the validation set"


@dataclass(frozen=True)
class Predictions:
    """What a predictor returned for n images, in their order.

    outputs: (n, ...) each, float32 on the CPU, by name. labels: (n,), or (n, K) if multilabel.
    """

    outputs: dict[str, Tensor]
    labels: Tensor

    def heads(self) -> DeiTOutput:
        """Both heads' logits, and what they read if it was kept, of a predictor that returns `heads_of`."""
        heads = self.outputs["class_logits"], self.outputs.get("distill_logits")
        return DeiTOutput(*heads, embedding=self.outputs.get("embedding"))

    def metrics(self) -> Metrics:
        """Metrics of class head, distillation head and joint, of a predictor that returns `heads_of`."""
        return measure(*self.heads()[:2], self.labels)


@torch.inference_mode()
def evaluate(
    predict: Callable[[Batch], Outputs],
    batches: Iterable[tuple[Batch, Tensor]],
    advance: Callable[[int], object] = lambda images: None,
) -> Predictions:
    """Runs `predict` over (batch, labels) pairs. `advance` is called with the images of each batch.

    Raises DataError if there is no batch.
    """
    collected: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    for batch, batch_labels in batches:
        for name, output in predict(batch).items():
            collected.setdefault(name, []).append(output.detach().float().cpu())
        labels.append(batch_labels.cpu())
        advance(len(batch_labels))
    if not labels:
        raise DataError(_NO_IMAGES)
    return Predictions({name: torch.cat(parts) for name, parts in collected.items()}, torch.cat(labels))


def heads_of(output: DeiTOutput, *, embedding: bool = False) -> dict[str, Tensor]:
    """The heads' logits as named outputs; with `embedding` also what they read, if the model says."""
    found = {"class_logits": output.class_logits, "distill_logits": output.distill_logits}
    found |= {"embedding": output.embedding} if embedding else {}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def views_of(
    split: Split, device: torch.device, batch_size: int = _BATCH, rows: range | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of `split`, in order, as views (B, 3, H, W) in [0, 1] on `device`, and their labels.

    rows: only these images.
    """
    labels = split.labels
    rows = range(len(split.images)) if rows is None else rows
    for first in range(rows.start, rows.stop, batch_size):
        indices = np.arange(first, min(first + batch_size, rows.stop))
        yield split.store.fetch(indices).to(device).float().div_(255.0), labels[indices]


def evaluate_student(
    model: Student,
    split: Split,
    device: torch.device,
    *,
    embedding: bool = False,
    shared: bool = False,
    stem_outputs: list[Tensor] | None = None,
) -> Predictions:
    """Both heads' logits over a split; with `embedding` also what they read.

    shared: each process evaluates its share of the images, in the batches of one process, and the main one
    gets the whole. stem_outputs: of a hybrid, whose stem stays as it is: a list that is filled by the first
    call, and from which later ones with the same split go on.
    """
    model.eval()
    several = shared and distributed.world_size() > 1
    rows = distributed.share(len(split.images), unit=_BATCH) if several else range(len(split.images))

    def predict(inputs: Tensor) -> Outputs:
        return heads_of(model(inputs), embedding=embedding)

    def inputs() -> Iterator[tuple[Tensor, Tensor]]:
        if stem_outputs:
            yield from zip(stem_outputs, split.labels[rows.start : rows.stop].split(_BATCH), strict=True)
            return
        for views, labels in views_of(split, device, rows=rows):
            images = normalise(views)
            if stem_outputs is not None:
                assert isinstance(model, DeiT)
                images = model.through_stem(images)
                stem_outputs.append(images)
            yield images, labels

    if not several:
        return evaluate(predict, inputs())
    return gathered(evaluate(predict, inputs()) if rows else None)


def gathered(own: Predictions | None) -> Predictions:
    """In the main process the predictions of all processes, in the order of the images; else no predictions.

    own: this process's; None if it had no images. Raises DataError if no process had any.
    """
    found = [each for each in distributed.gather(own) if each is not None]
    if not distributed.is_main():
        return Predictions({}, torch.zeros(0))
    if not found:
        raise DataError(_NO_IMAGES)
    outputs = {name: torch.cat([each.outputs[name] for each in found]) for name in found[0].outputs}
    return Predictions(outputs, torch.cat([each.labels for each in found]))


def teacher_logits(teacher: Teacher, split: Split, device: torch.device) -> Tensor:
    """The teacher's logits (n, K) over a split, on the views that the student sees."""
    return teacher_outputs(teacher, split, device).class_logits


def teacher_outputs(teacher: Teacher, split: Split, device: torch.device) -> DeiTOutput:
    """The teacher's logits (n, K) and embedding (n, F) over a split, on the views that the student sees."""

    def predict(views: Tensor) -> Outputs:
        output = teacher(views)
        return heads_of(DeiTOutput(output.logits, None, embedding=output.embedding), embedding=True)

    return evaluate(predict, views_of(split, device)).heads()


def evaluate_backends(
    backends: Mapping[str, Backend],
    batches: Iterable[tuple[Tensor, Tensor]],
    advance: Callable[[int], object],
) -> dict[str, float]:
    """The score (top-1 or mAP, percent) of several backends over the same images, by name.

    backends: their first output is probabilities (B, K). batches: (B, 3, H, W) uint8, and labels. Raises
    DataError if there is no image.
    """

    def predict(pixels: Tensor) -> Outputs:
        views = pixels.float() / 255.0
        return {name: backend(views)[0] for name, backend in backends.items()}

    found = evaluate(predict, batches, advance)
    return {name: score_and_interval(p, found.labels)[0] for name, p in found.outputs.items()}
