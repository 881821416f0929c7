"""The analyses of `deitkit analyze`: accuracy, calibration, agreement, tokens, attention, robustness."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import log
from ..classifier import StudentClassifier
from ..data.cache import PixelStore
from ..data.dataset import Split
from ..data.image_set import evenly_spread
from ..models.deit import joint_probabilities
from ..run_folder import read_metrics
from ..teachers.teacher import Teacher
from .agreement import agreement_with_teacher, disagreement
from .attention import layers, mean_distance, patch_distances, patch_maps, rollout, token_cosines
from .calibration import calibration
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt
from .evaluate import evaluate
from .metrics import top_k, wilson_interval

_BATCH = 32
# Images, evenly spread over the set: means over more of them take longer and change little.
_LOOKED_INSIDE, _CORRUPTED, _SHOWN = 256, 1000, 8
_MISTAKES, _CONFUSIONS = 24, 12

Probabilities = dict[str, Tensor]  # (n, K) of each classifier, by name


@dataclass(frozen=True)
class AnalysedModels:
    """The models to analyse: a student and what its run holds besides, or a teacher alone."""

    student: StudentClassifier | None
    baseline: StudentClassifier | None
    teacher: Teacher | None
    device: torch.device

    @property
    def main(self) -> str:
        """The classifier that the analysis is about."""
        return "teacher" if self.student is None else "joint"

    @torch.inference_mode()
    def probabilities(self, pixels: Tensor) -> Probabilities:
        """Views (B, 3, H, W) uint8 -> (B, K) of each classifier, by name.

        `joint` is the student as it is used, `baseline` the baseline's joint classifier; `class` and
        `distill` are there with a distillation token only.
        """
        found: Probabilities = {}
        if self.teacher is not None:
            views = pixels.to(self.device).float() / 255.0
            found["teacher"] = self.teacher(views).logits.float().softmax(-1)
        if self.baseline is not None:
            found["baseline"] = joint_probabilities(self.baseline.forward(pixels))
        if self.student is not None:
            output = self.student.forward(pixels)
            if output.distill_logits is not None:
                found["class"] = output.class_logits.float().softmax(-1)
                found["distill"] = output.distill_logits.float().softmax(-1)
            found["joint"] = joint_probabilities(output)
        return {name: p.cpu() for name, p in found.items()}


@dataclass(frozen=True)
class AttentionImage:
    """One image and what the student's tokens attend to.

    pixels: (3, H, W) uint8, the model's view. decisions: the predicted class, by classifier. maps: (h, w)
    weights over the patches, by title.
    """

    path: str
    label: str
    decisions: dict[str, str]
    pixels: NDArray[np.uint8]
    maps: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Mistake:
    """An image that is classified wrong. pixels: (3, H, W) uint8, the model's view."""

    path: str
    label: str
    prediction: str
    probability: float
    pixels: NDArray[np.uint8]


def mistakes(probabilities: Tensor, part: Split) -> list[Mistake]:
    """The wrong predictions of one classifier, given (n, K), the most confident first; 24 at most."""
    confidence, predicted = probabilities.max(1)
    wrong = torch.nonzero(predicted != part.labels).flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)][:_MISTAKES].tolist()
    classes = part.images.classes
    return [
        Mistake(
            path=part.images.paths[i],
            label=classes[int(part.labels[i])],
            prediction=classes[int(predicted[i])],
            probability=float(confidence[i]),
            pixels=pixels,
        )
        for i, pixels in zip(chosen, part.store.fetch(chosen).numpy() if chosen else (), strict=True)
    ]


def confusions(probabilities: Tensor, part: Split) -> list[dict[str, Any]]:
    """Pairs of a class and the class that it is taken for, the most frequent first; 12 at most.

    share: of the images of the class, in percent.
    """
    predicted, classes = probabilities.argmax(1), part.images.classes
    pairs = Counter(zip(part.labels.tolist(), predicted.tolist(), strict=True))
    images = Counter(part.labels.tolist())
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]]
    return [
        {"label": classes[a], "prediction": classes[b], "images": count, "share": 100 * count / images[a]}
        for (a, b), count in wrong[:_CONFUSIONS]
    ]


def measure(
    models: AnalysedModels,
    split: Split,
    indices: NDArray[np.int64],
    advance: Callable[[int], None],
    change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None = None,
) -> Probabilities:
    """Probabilities (n, K) of each classifier on the images `indices` (n,) of `split`.

    change: (pixels (3, H, W), image's index) -> the pixels to measure on instead.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, len(indices), _BATCH):
            chosen = indices[first : first + _BATCH]
            pixels = split.store.fetch(chosen)
            if change is not None:
                changed = [change(p, int(i)) for p, i in zip(pixels.numpy(), chosen, strict=True)]
                pixels = torch.from_numpy(np.stack(changed))
            yield pixels, split.labels[chosen]

    return evaluate(models.probabilities, batches(), advance).outputs


def compare(probabilities: Probabilities, part: Split, main: str = "joint") -> dict[str, Any]:
    """Accuracy, calibration, disagreement and agreement with the teacher, in percent.

    main: the classifier whose worst classes come first.
    """
    n, labels = len(part.images), part.labels
    top1 = {name: top_k(p, labels, 1) for name, p in probabilities.items()}
    decided = {name: p.argmax(-1) for name, p in probabilities.items()}
    teacher = decided.get("teacher")
    students = [name for name in decided if name != "teacher"]
    classes = [
        {"name": part.images.classes[k], "images": int((labels == k).sum())}
        | {name: top_k(p[labels == k], labels[labels == k], 1) for name, p in probabilities.items()}
        for k in labels.unique().tolist()
    ]
    return {
        "accuracy": {
            name: {"top1": value, "interval": wilson_interval(value / 100, n)} for name, value in top1.items()
        },
        "classes": sorted(classes, key=lambda row: row[main]),
        "calibration": {
            name: dataclasses.asdict(calibration(p, labels)) for name, p in probabilities.items()
        },
        "disagreement": {
            "names": ["labels", *decided],
            "percent": disagreement([labels, *decided.values()]),
        },
        "teacher_agreement": None
        if teacher is None
        else {
            name: dataclasses.asdict(agreement_with_teacher(decided[name], teacher, labels))
            for name in students
        },
    }


def look_inside(run: Path, student: StudentClassifier, store: PixelStore) -> dict[str, Any]:
    """Token cosines and attention distances, layer by layer."""
    model = student.model
    distances = patch_distances(model.grid_size, model.patch_embed.patch_size)
    indices = evenly_spread(len(store), _LOOKED_INSIDE)
    cosines: dict[str, list[Tensor]] = {}
    spans: list[list[Tensor]] = [[] for _ in model.blocks]
    names = ["input", *(str(i + 1) for i in range(model.depth)), "norm"]
    with log.progress_bar("looking inside", len(indices)) as advance:
        for first in range(0, len(indices), _BATCH):
            chosen = indices[first : first + _BATCH]
            for i, layer in enumerate(layers(model, student.normalise(store.fetch(chosen)))):
                if model.distilled:
                    cosines.setdefault(names[i], []).append(token_cosines(layer.tokens).cpu())
                if layer.attention is not None:
                    spans[i - 1].append(mean_distance(layer.attention, distances).cpu())
            advance(len(chosen))
    tokens = None
    if cosines:
        measured = {name: torch.cat(parts) for name, parts in cosines.items()}
        tokens = {
            "images": len(indices),
            "embeddings": model.token_cosine(),
            "layers": [
                {"layer": name, "mean": c.mean().item(), "std": c.std(correction=0).item()}
                for name, c in measured.items()
            ],
            "training": _cosines_while_training(run),
        }
    return {
        "tokens": tokens,
        "attention": {
            "images": len(indices),
            "distance_px": [torch.cat(parts).mean(0).tolist() for parts in spans],
            "uniform_px": distances.mean().item(),
        },
    }


def _cosines_while_training(run: Path) -> list[dict[str, float]]:
    """The embeddings' cosine after each epoch, as training logged it."""
    return [
        {"epoch": line.epoch, "cosine": line.token_cosine}
        for line in read_metrics(run)
        if line.token_cosine is not None
    ]


def measure_corrupted(models: AnalysedModels, part: Split, probabilities: Probabilities) -> dict[str, Any]:
    """Top-1 of each classifier under each corruption at each severity.

    probabilities: of the uncorrupted images, to compare with.
    """
    indices = evenly_spread(len(part.images), _CORRUPTED)
    labels = part.labels[indices]
    top1: dict[str, dict[str, list[float]]] = {}
    with log.progress_bar("corrupting", len(CORRUPTIONS) * len(SEVERITIES) * len(indices)) as advance:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:

                def change(p: NDArray[np.uint8], i: int, name: str = name, severity: int = severity) -> Any:
                    return corrupt(p, name, severity, seed=i)

                for who, p in measure(models, part, indices, advance, change).items():
                    top1.setdefault(who, {}).setdefault(name, []).append(top_k(p, labels, 1))
    return {
        "images": len(indices),
        "severities": list(SEVERITIES),
        "clean": {who: top_k(p[indices], labels, 1) for who, p in probabilities.items()},
        "top1": top1,
        "mean": {who: float(np.mean(list(by_name.values()))) for who, by_name in top1.items()},
    }


def attention_images(models: AnalysedModels, part: Split) -> list[AttentionImage]:
    """What the student's tokens attend to, for a few images; nothing without a student."""
    student, indices = models.student, evenly_spread(len(part.images), _SHOWN)
    if student is None:
        return []
    pixels = part.store.fetch(indices)
    attentions = [
        layer.attention.cpu()
        for layer in layers(student.model, student.normalise(pixels))
        if layer.attention is not None
    ]
    grid = student.model.grid_size
    last = patch_maps(attentions[-1].mean(1), grid)
    flow = patch_maps(rollout(attentions), grid)
    decided = {name: p.argmax(-1) for name, p in models.probabilities(pixels).items()}
    classes = part.images.classes
    tokens = ("class", "distillation")[: last.shape[1]]
    return [
        AttentionImage(
            path=part.images.paths[i],
            label=classes[part.images.labels[i]],
            decisions={name: classes[d[row]] for name, d in decided.items()},
            pixels=pixels[row].numpy(),
            maps={
                f"{token} token, {what}": maps[row, k].numpy()
                for what, maps in (("last block", last), ("rollout", flow))
                for k, token in enumerate(tokens)
            },
        )
        for row, i in enumerate(indices)
    ]
