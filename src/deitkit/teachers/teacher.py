"""A teacher: one frozen model or an ensemble, with heads for the data's classes.

It is not part of the student's module tree, so no optimizer can train it by accident.

A head that was fitted to uneven classes may be adjusted for them (logit adjustment, Menon et al., arXiv
2007.07314, equation 9): log pi is taken off its logits, so that it answers as if the classes were equally
frequent. Adding log pi to the logits while a linear probe is fitted gives the same head, since the probe's
bias is not penalised. The fitted head stays as it is, and a student learns from it (`Teacher.unadjusted`):
see `distillation.class_balance`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..inference.backends import CONVERTED, Backend
from ..inference.unfamiliarity import unit
from ..preprocessing import Preprocessing
from ..weights.packaged import published_name


@dataclass(frozen=True)
class TeacherOutput:
    """Of a batch: logits (B, K), and feature maps (B, C, h, w) if the teacher has any.

    embedding: (B, F) what the heads of the members read; None for stored soft labels.
    """

    logits: Tensor
    feature_maps: tuple[Tensor, ...]
    embedding: Tensor | None = None

    @classmethod
    def cat(cls, outputs: Sequence[TeacherOutput]) -> TeacherOutput:
        """The outputs of several batches as those of one, without feature maps."""
        embeddings = [each.embedding for each in outputs if each.embedding is not None]
        logits = torch.cat([each.logits for each in outputs])
        return cls(logits, (), torch.cat(embeddings) if embeddings else None)

    def split(self, sizes: list[int]) -> list[TeacherOutput | None]:
        """The outputs of parts of the batch, without feature maps."""
        logits = self.logits.split(sizes)
        embeddings = [None] * len(sizes) if self.embedding is None else self.embedding.split(sizes)
        return [TeacherOutput(part, (), of) for part, of in zip(logits, embeddings, strict=True)]


@dataclass(frozen=True)
class MemberCard:
    """How a member was made.

    head: the checkpoint's own ("pretrained"), or one fitted to the data ("linear"). columns: the outputs of
    the pretrained head that are the classes, in order; None if all of them are. backend: the one that was
    chosen, so that a resumed run uses it again. adjustment: what is taken off the logits of a fitted head,
    one number per output, where the teacher answers for itself; None for nothing.
    """

    spec: str  # as `spec.parse_member` reads it
    name: str
    weight: float
    preprocessing: Preprocessing
    head: Literal["pretrained", "linear"]
    columns: tuple[int, ...] | None
    how: str  # a phrase, such as "linear probe over 4 views"
    params: int
    map_channels: tuple[int, ...]
    finetuned: bool
    backend: str
    adjustment: tuple[float, ...] | None = None

    @property
    def described(self) -> str:
        """The model and its head in words, such as "EfficientNet-Lite0 with a linear probe"."""
        head = "its own head" if self.head == "pretrained" else "a linear probe"
        return f"{published_name(self.name)}{', fine-tuned' if self.finetuned else f' with {head}'}"


@dataclass(frozen=True)
class TeacherCard:
    """How a teacher was made."""

    classes: tuple[str, ...]
    members: tuple[MemberCard, ...]
    multilabel: bool = False

    @property
    def name(self) -> str:
        return self._joined([m.name for m in self.members])

    @property
    def described(self) -> str:
        """The members and their heads in words."""
        return self._joined([m.described for m in self.members])

    def _joined(self, members: Sequence[str]) -> str:
        """Words for the members, with their weights if there are several."""
        total = sum(m.weight for m in self.members)
        if len(members) == 1:
            return members[0]
        weights = [f"{m.weight / total:.2g}" for m in self.members]
        return " + ".join(f"{weight} {words}" for weight, words in zip(weights, members, strict=True))

    @property
    def how(self) -> str:
        """How the head was made, as one phrase; for an ensemble the members' different phrases."""
        adjusted = ", adjusted for uneven classes" if any(m.adjustment for m in self.members) else ""
        return "; ".join(dict.fromkeys(m.how for m in self.members)) + adjusted

    @property
    def fitted(self) -> bool:
        """Whether every head was fitted to the data, so that the logits know how frequent each class is."""
        return all(m.head == "linear" or m.finetuned for m in self.members)

    @property
    def params(self) -> int:
        return sum(m.params for m in self.members)

    @property
    def feature_member(self) -> int | None:
        """The index of the member that provides the feature maps: the first that has any."""
        return next((i for i, m in enumerate(self.members) if m.map_channels), None)

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Channels of each feature map; empty if no member has any."""
        return () if self.feature_member is None else self.members[self.feature_member].map_channels


class TeacherMember:
    """A member of a teacher: its backbone on a backend, and its head.

    head: as it was fitted; the attribute `head` is the one that answers, adjusted if the card says so.
    finetuned: the fine-tuned backbone, which is saved; None if the backbone is the pretrained one. backbone:
    the backbone if it was asked for and is a PyTorch network, such as for an export.
    """

    def __init__(
        self,
        card: MemberCard,
        backend: Backend,
        head: nn.Module,
        finetuned: nn.Module | None = None,
        backbone: nn.Module | None = None,
    ):
        self.card, self.backend, self.finetuned, self.backbone = card, backend, finetuned, backbone
        self.fitted_head = head.eval().requires_grad_(False)
        self.head = self.fitted_head
        if card.adjustment is not None:
            self.head = _adjusted(self.fitted_head, torch.tensor(card.adjustment))
        self.on_cpu = backend.name in CONVERTED

    def with_card(self, **changes: Any) -> TeacherMember:
        """A copy with other values on its card."""
        card = dataclasses.replace(self.card, **changes)
        return TeacherMember(card, self.backend, self.fitted_head, self.finetuned, self.backbone)

    def adjusted(self, log_shares: Tensor | None) -> TeacherMember:
        """With `log_shares` (K,) of the classes taken off the logits of a fitted head; None for nothing.

        A pretrained head knows nothing of the shares and stays as it is.
        """
        if log_shares is None or self.card.head != "linear":
            return self.with_card(adjustment=None)
        assert isinstance(self.fitted_head, nn.Linear)
        taken_off = torch.zeros(self.fitted_head.out_features)
        taken_off[slice(None) if self.card.columns is None else list(self.card.columns)] = log_shares
        return self.with_card(adjustment=tuple(taken_off.tolist()))

    def features(self, views: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) float views in [0, 1] -> pooled features (B, F) and maps, on the views' device."""
        images = self.card.preprocessing.resize(views)
        if self.on_cpu:
            images = images.cpu()
        return tuple(out.to(views.device) for out in self.backend(images))

    def all_outputs(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits of all outputs of the head, and the feature maps."""
        logits, maps, _ = self._run(views)
        return logits, maps

    def __call__(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Logits of the classes, the feature maps, and the pooled features (B, F)."""
        logits, maps, pooled = self._run(views)
        return self.class_logits(logits), maps, pooled

    @torch.no_grad()
    def _run(self, views: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        pooled, *maps = self.features(views)
        # In float32 even under training's autocast: the head is small.
        with torch.autocast(views.device.type, enabled=False):
            return self.head.to(views.device)(pooled.float()), tuple(maps), pooled

    def class_logits(self, logits: Tensor) -> Tensor:
        """Selects the classes, in order, from the logits of all outputs."""
        return logits if self.card.columns is None else logits[:, list(self.card.columns)]


class Teacher:
    """Predicts batches of views. An ensemble's probabilities are the weighted mean of its members'."""

    def __init__(self, card: TeacherCard, members: Sequence[TeacherMember]):
        self.card, self.members = card, tuple(members)

    @property
    def backend(self) -> str:
        """The names of the backends in use, such as "openvino"."""
        return " + ".join(dict.fromkeys(m.backend.name for m in self.members))

    @property
    def embedding_size(self) -> int:
        """Numbers in `TeacherOutput.embedding` for an image; 0 if they are not known."""
        sizes = [getattr(member.fitted_head, "in_features", 0) for member in self.members]
        return sum(sizes) if all(sizes) else 0

    def for_classes(self, classes: tuple[str, ...]) -> Teacher:
        """The same teacher for `classes`, which are all or some of its own, in any order.

        Raises WeightsError, naming the class, for one that it does not know.
        """
        if classes == self.card.classes:
            return self
        unknown = [name for name in classes if name not in self.card.classes]
        if unknown:
            raise WeightsError(
                f"the fitted teacher {self.card.name} does not know the class {unknown[0]!r}; "
                f"it knows {', '.join(self.card.classes[:8])}; fit it again"
            )
        indices = [self.card.classes.index(name) for name in classes]
        members = []
        for member in self.members:
            columns = member.card.columns or tuple(range(len(self.card.classes)))
            members.append(member.with_card(columns=tuple(columns[i] for i in indices)))
        return self._with(members, classes)

    def adjusted(self, log_shares: Tensor | None) -> Teacher:
        """The teacher as it answers for itself: `log_shares` (K,) taken off the logits of fitted heads."""
        return self._with([member.adjusted(log_shares) for member in self.members], self.card.classes)

    def unadjusted(self) -> Teacher:
        """The teacher as a student learns from it."""
        return self.adjusted(None)

    def _with(self, members: Sequence[TeacherMember], classes: tuple[str, ...]) -> Teacher:
        return Teacher(TeacherCard(classes, tuple(m.card for m in members), self.card.multilabel), members)

    def __call__(self, views: Tensor) -> TeacherOutput:
        """(B, 3, H, W) float views in [0, 1] -> logits and maps. Each member resizes and normalises."""
        outputs = [member(views) for member in self.members]
        i = self.card.feature_member
        return TeacherOutput(
            self.combine([logits for logits, _, _ in outputs]),
            outputs[i][1] if i is not None else (),
            joined_embedding([pooled for _, _, pooled in outputs]),
        )

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """The ensemble's logits (B, K) from those of each member, in the order of `members`."""
        weights = [m.weight for m in self.card.members]
        return mean_of_probabilities(logits, weights, multilabel=self.card.multilabel)


def _adjusted(head: nn.Module, taken_off: Tensor) -> nn.Linear:
    """The linear `head` with `taken_off` (K,) subtracted from its bias."""
    assert isinstance(head, nn.Linear)
    adjusted = nn.Linear(head.in_features, head.out_features)
    adjusted.load_state_dict({"weight": head.weight, "bias": head.bias.cpu() - taken_off})
    return adjusted.eval().requires_grad_(False)


def joined_embedding(pooled: Sequence[Tensor]) -> Tensor:
    """The members' pooled features (B, F) side by side, each of length 1 if there are several."""
    return pooled[0] if len(pooled) == 1 else torch.cat([unit(each.float()) for each in pooled], dim=-1)


def mean_of_probabilities(
    logits: Sequence[Tensor], weights: Sequence[float], *, multilabel: bool = False
) -> Tensor:
    """Logits (B, K) whose probabilities are the weighted mean of the members'.

    Probabilities are a softmax, or a sigmoid if `multilabel`. The logits of a single member are unchanged.
    """
    if len(logits) == 1:
        return logits[0]
    total = sum(weights)
    parts = list(zip(logits, weights, strict=True))
    if multilabel:
        return torch.stack([one.sigmoid() * (w / total) for one, w in parts]).sum(0).logit(eps=1e-6)
    return torch.stack([one.log_softmax(-1) + math.log(w / total) for one, w in parts]).logsumexp(0)
