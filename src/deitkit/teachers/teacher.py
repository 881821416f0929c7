"""A teacher: a frozen backbone fitted to the user's classes, and how it came about.

It is never part of the student's module tree, so nothing can train it by accident.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ..config import TeacherConfig
from ..errors import DeitkitError
from ..files import write_tensors
from .backbone import Backbone, Source, find_source, native_image_size, open_backbone, open_with_head
from .backends import Backend, Network, choose_backend
from .finetune import FineTuneBatches, finetune
from .probe import fit_probe

ViewBatches = Callable[[int], Iterable[Tensor]]  # view number -> batches (B, 3, H, W) in the images' order


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of a batch: logits (B, K), and feature maps (B, C, h, w)."""

    logits: Tensor
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class TeacherCard:
    """How a teacher was made; saved beside its head."""

    name: str
    weights: str | None
    image_size: int  # pixels a side of its input
    classes: tuple[str, ...]
    how: str  # one phrase, such as "linear probe over 4 views"
    params: int
    map_channels: tuple[int, ...]
    finetuned: bool


class Teacher:
    """Answers batches of views through the fastest backend."""

    def __init__(self, card: TeacherCard, backend: Backend):
        self.card, self.backend = card, backend

    def __call__(self, views: Tensor) -> TeacherAnswer:
        """(B, 3, H, W) float views in [0, 1] -> TeacherAnswer; resizes and normalises for itself."""
        logits, *maps = self.backend(views)
        return TeacherAnswer(logits, tuple(maps))


def input_size(config: TeacherConfig, source: Source, student_size: tuple[int, int]) -> int:
    """The configured side, else the student's but at least 128 pixels, and no more than the native one.

    A convnet at 128 pixels costs a third of one at 224; fitted at that size, it loses little.
    """
    if config.image_size is not None:
        return config.image_size
    return min(native_image_size(source), max(128, *student_size))


def fit_teacher(
    config: TeacherConfig,
    views: ViewBatches,
    labels: Tensor,
    classes: tuple[str, ...],
    *,
    student_size: tuple[int, int],
    device: torch.device,
    seed: int,
    finetune_batches: FineTuneBatches | None = None,
) -> tuple[Teacher, Network]:
    """Fits a head (and with `fit="finetune"` the backbone) to the labels of the training images.

    labels: (N,) classes, or (N, K) of which an image may have several.
    `views(v)` gives batches of the v-th view of all training images, in order; view 0 is plain.
    Returns the teacher and the network to save.
    """
    source = find_source(config.spec)
    backbone = open_backbone(source, input_size(config, source, student_size))
    backend = choose_backend(Network(backbone, nn.Identity()), student_size, device, config.backend)
    answers = [
        torch.cat([backend(batch)[0].cpu() for batch in views(v)]) for v in range(max(1, config.probe_views))
    ]
    probe = fit_probe(torch.stack(answers), labels, len(classes), seed)
    network = Network(backbone, probe.head)
    how = f"linear probe over {len(answers)} views, {probe.holdout}"
    if config.fit == "finetune":
        if finetune_batches is None:
            raise DeitkitError("fine-tuning a teacher needs training batches; use fit=probe")
        epochs = finetune(network, finetune_batches, device, several=labels.ndim == 2)
        how = f"fine-tuned for {epochs} epochs from a linear probe"
    channels = tuple(m.shape[1] for m in backend(next(iter(views(0))))[1:])
    card = TeacherCard(
        name=source.name,
        weights=str(source.weights.name) if source.weights else None,
        image_size=backbone.image_size,
        classes=classes,
        how=how,
        params=sum(p.numel() for p in network.parameters()),
        map_channels=channels,
        finetuned=config.fit == "finetune",
    )
    return Teacher(card, choose_backend(network, student_size, device, config.backend)), network


def native_teacher(config: TeacherConfig, *, student_size: tuple[int, int], device: torch.device) -> Teacher:
    """The teacher with the head that its weights came with, which knows ImageNet's thousand classes.

    Raises DeitkitError where it has another number of outputs.
    """
    source = find_source(config.spec)
    backbone, head = open_with_head(source, input_size(config, source, student_size))
    network = Network(backbone, head)
    backend = choose_backend(network, student_size, device, config.backend)
    logits, *maps = backend(torch.zeros(2, 3, *student_size))
    classes = tuple(ImageNetInfo().label_names())
    if logits.shape[1] != len(classes):
        raise DeitkitError(
            f"the teacher {source.name} has {logits.shape[1]} outputs; give one that was trained on "
            f"ImageNet's {len(classes)} classes"
        )
    card = TeacherCard(
        name=source.name,
        weights=source.weights.name if source.weights else None,
        image_size=backbone.image_size,
        classes=classes,
        how="its own head",
        params=sum(p.numel() for p in network.parameters()),
        map_channels=tuple(m.shape[1] for m in maps),
        finetuned=False,
    )
    return Teacher(card, backend)


def save_teacher(folder: Path, teacher: Teacher, network: Network) -> None:
    """Writes `teacher.json`, and the head (all weights, where they were fine-tuned) as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state_dict() if teacher.card.finetuned else network.head.state_dict()
    write_tensors(folder / "teacher.safetensors", state)
    card = folder / "teacher.json"  # last, and whole: it says that the teacher is there
    card.with_suffix(".part").write_text(json.dumps(dataclasses.asdict(teacher.card), indent=2))
    card.with_suffix(".part").replace(card)


def load_teacher(
    folder: Path, config: TeacherConfig, *, student_size: tuple[int, int], device: torch.device
) -> Teacher:
    """The teacher that `save_teacher` wrote, with the backbone's weights from where they came from."""
    try:
        saved = json.loads((folder / "teacher.json").read_text())
        state = load_file(folder / "teacher.safetensors")
    except Exception as error:
        raise DeitkitError(
            f"the teacher in {folder} cannot be read ({type(error).__name__}); delete the run and train again"
        ) from None
    for key in ("classes", "map_channels"):
        saved[key] = tuple(saved[key])
    card = TeacherCard(**saved)
    backbone: Backbone = open_backbone(find_source(config.spec), card.image_size)
    width = state["head.weight" if card.finetuned else "weight"].shape[1]
    network = Network(backbone, nn.Linear(width, len(card.classes)).requires_grad_(False))
    (network if card.finetuned else network.head).load_state_dict(state)
    return Teacher(card, choose_backend(network, student_size, device, config.backend))
