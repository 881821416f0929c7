"""A teacher: one frozen model or several, with heads for the user's classes, run fast.

It is never part of the student's module tree, so nothing can train it by accident.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..inference.backends import CONVERTED, Backend
from ..preprocessing import Preprocessing


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of a batch: logits (B, K), and feature maps (B, C, h, w)."""

    logits: Tensor
    feature_maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class MemberCard:
    """How one member was made; saved beside its head.

    head: "own" is the one that its weights came with, "linear" one fitted here. columns: which of the
    pretrained head's outputs are the classes; None: all, in their order. backend: the backend that was chosen, so
    that a resumed run has the same.
    """

    spec: str  # as spec.parse reads it, without a weight
    name: str
    weight: float
    preprocessing: Preprocessing
    head: str
    columns: tuple[int, ...] | None
    how: str  # one phrase, such as "linear probe over 4 views"
    params: int
    map_channels: tuple[int, ...]
    finetuned: bool
    backend: str


@dataclass(frozen=True)
class TeacherCard:
    """How a teacher was made."""

    classes: tuple[str, ...]
    members: tuple[MemberCard, ...]
    several: bool = False  # an image may have several labels: each logit is a question of its own

    @property
    def name(self) -> str:
        total = sum(m.weight for m in self.members)
        if len(self.members) == 1:
            return self.members[0].name
        return " + ".join(f"{m.weight / total:.2g} {m.name}" for m in self.members)

    @property
    def how(self) -> str:
        """One phrase; of an ensemble each member's, where they differ."""
        return "; ".join(dict.fromkeys(m.how for m in self.members))

    @property
    def params(self) -> int:
        return sum(m.params for m in self.members)

    @property
    def guide(self) -> int | None:
        """The member whose maps guide the student: the first that has any."""
        return next((i for i, m in enumerate(self.members) if m.map_channels), None)

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of the maps; empty where no member gives any."""
        return () if self.guide is None else self.members[self.guide].map_channels


class TeacherMember:
    """One member at work: views in, logits of the classes and maps out."""

    def __init__(self, card: MemberCard, backend: Backend, head: nn.Module, body: nn.Module | None = None):
        self.card, self.backend = card, backend
        self.body = body  # kept where it was fine-tuned, to be saved
        self.head = head.eval().requires_grad_(False)
        self.on_cpu = backend.name in CONVERTED

    def with_card(self, **changes: Any) -> TeacherMember:
        """The same member with other facts on its card."""
        return TeacherMember(dataclasses.replace(self.card, **changes), self.backend, self.head, self.body)

    def features(self, views: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float views in [0, 1] -> pooled features (B, F) and maps, on the views' device."""
        images = self.card.preprocessing.resize(views)
        if self.on_cpu:
            images = images.cpu()
        return tuple(out.to(views.device) for out in self.backend(images))

    @torch.no_grad()
    def whole_answer(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The head's logits over all of its outputs, and the maps."""
        pooled, *maps = self.features(views)
        # In float32 whatever training's autocast says: the head is small.
        with torch.autocast(views.device.type, enabled=False):
            return self.head.to(views.device)(pooled.float()), tuple(maps)

    def __call__(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, maps = self.whole_answer(views)
        return self.of_classes(logits), maps

    def of_classes(self, logits: Tensor) -> Tensor:
        """The columns of a whole answer that are the classes, in their order."""
        return logits if self.card.columns is None else logits[:, list(self.card.columns)]


class Teacher:
    """Answers batches of views; an ensemble's probabilities are the members' weighted mean."""

    def __init__(self, card: TeacherCard, members: Sequence[TeacherMember]):
        self.card, self.members = card, tuple(members)

    @property
    def backend(self) -> str:
        """The backends in use, such as "openvino"."""
        return " + ".join(dict.fromkeys(m.backend.name for m in self.members))

    def for_classes(self, classes: tuple[str, ...]) -> Teacher:
        """The same teacher with its answers in the order of `classes`, all or a part of those it knows.

        Raises DeitkitError, naming the class, for one that it does not know.
        """
        if classes == self.card.classes:
            return self
        unknown = [name for name in classes if name not in self.card.classes]
        if unknown:
            raise WeightsError(
                f"the fitted teacher {self.card.name} does not know the class {unknown[0]!r}; "
                f"it knows {', '.join(self.card.classes[:8])}; fit it again"
            )
        places = [self.card.classes.index(name) for name in classes]
        members = []
        for member in self.members:
            columns = member.card.columns or tuple(range(len(self.card.classes)))
            members.append(member.with_card(columns=tuple(columns[i] for i in places)))
        return Teacher(TeacherCard(classes, tuple(m.card for m in members), self.card.several), members)

    def __call__(self, views: Tensor) -> TeacherOutput:
        """(B, 3, H, W) float views in [0, 1] -> TeacherAnswer; resizes and normalises for itself."""
        answers = [member(views) for member in self.members]
        maps = answers[self.card.guide][1] if self.card.guide is not None else ()
        return TeacherOutput(self.joined([logits for logits, _ in answers]), maps)

    def joined(self, logits: Sequence[Tensor]) -> Tensor:
        """One answer (B, K) of the members' (B, K), in the order of `members`."""
        return mean_of_probabilities(logits, [m.weight for m in self.card.members], self.card.several)


def mean_of_probabilities(
    logits: Sequence[Tensor], weights: Sequence[float], several: bool = False
) -> Tensor:
    """Logits (B, K) whose softmax, or sigmoid of several labels, is the members' weighted mean.

    One member's stay as they are.
    """
    if len(logits) == 1:
        return logits[0]
    total = sum(weights)
    parts = list(zip(logits, weights, strict=True))
    if several:
        return torch.stack([one.sigmoid() * (w / total) for one, w in parts]).sum(0).logit(eps=1e-6)
    return torch.stack([one.log_softmax(-1) + math.log(w / total) for one, w in parts]).logsumexp(0)
