"""Stores a teacher's logits in a few bytes per view.

- Top-K: three bytes per class kept, for any number of classes. The 24-bit word, lowest byte first, is
  `class + num_classes * level`: the class takes only the bits that it needs, and the probability all others.
  That is 1.7 million levels for 10 classes, 16,777 for 1,000 (about the precision of float16), and 768 for
  ImageNet-21k. A two-byte index and a float16 would take 40 bytes at K = 10, instead of 30.
- A level is a logit's distance from the highest one, divided by the temperature: 0 to -24 in even steps. The
  first entry is the highest class, whose distance is 0; its level is that of each class outside the top K
  instead, so that those classes share the remaining probability.
- Hard: the predicted class in one or two bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError, WeightsError

MOST_CLASSES = 65536  # in two bytes, which leaves 256 levels for a probability
_RANGE = 24.0  # exp(-24) = 4e-11


@dataclass(frozen=True)
class SoftLabelFormat:
    """What is stored of each view. k and temperature: of "top-k" only."""

    kind: Literal["top-k", "hard"]
    k: int | None = None
    temperature: float | None = None

    @property
    def name(self) -> str:
        return "hard" if self.kind == "hard" else f"top-{self.k}"

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Codec(Protocol):
    """Encodes logits of B views and C classes as rows of unsigned integers."""

    @property
    def format(self) -> SoftLabelFormat: ...

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of a view's row."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def bytes_per_view(self) -> int: ...

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) logits -> (B, *row_shape) rows on the CPU. Raises WeightsError if they are not finite."""
        ...

    def decode(self, rows: Tensor) -> Tensor:
        """(B, *row_shape) -> (B, C) float32, up to an offset per view and to what was not stored."""
        ...


@dataclass(frozen=True)
class HardCodec:
    """The predicted class: one byte for up to 256 classes, two for more."""

    num_classes: int

    @property
    def format(self) -> SoftLabelFormat:
        return SoftLabelFormat("hard")

    @property
    def row_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8 if self.num_classes <= 256 else torch.uint16

    @property
    def bytes_per_view(self) -> int:
        return self.dtype.itemsize

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B,)."""
        _refuse_not_finite(logits)
        return logits.argmax(-1).cpu().to(self.dtype)

    def decode(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, C): 1 for the predicted class, 0 elsewhere. For hard distillation only."""
        return F.one_hot(rows.long(), self.num_classes).float()


@dataclass(frozen=True)
class TopKCodec:
    """The k most probable classes at `temperature`; the others share the remaining probability evenly.

    At that temperature, the k probabilities and the sum of the others are exact up to the step of the levels;
    with k = num_classes this holds at every temperature. The highest class is always the argmax of the
    logits, even if another class ties with it.
    """

    num_classes: int
    k: int
    temperature: float

    @property
    def format(self) -> SoftLabelFormat:
        return SoftLabelFormat("top-k", self.k, self.temperature)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.k, 3

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def bytes_per_view(self) -> int:
        return 3 * self.k

    @property
    def step(self) -> float:
        """The distance between levels, in logits over temperature: the relative error of a probability."""
        return _RANGE / (2**24 // self.num_classes - 1)

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B, k, 3) uint8."""
        _refuse_not_finite(logits)
        first = logits.argmax(-1, keepdim=True).cpu()
        relative = logits.cpu().double() / self.temperature
        relative = relative - relative.gather(1, first)
        found, classes = relative.scatter(1, first, 1.0).topk(self.k)
        others = relative.scatter(1, classes, -torch.inf).logsumexp(1)
        count = max(1, self.num_classes - self.k)  # with no others, the value is -inf and never read
        differences = torch.cat([others[:, None] - torch.log(torch.tensor(float(count))), found[:, 1:]], 1)
        # Never level 0, so that rounding makes no class tie with the first one.
        levels = (differences.clamp_min(-_RANGE) / -self.step).round().long().clamp_min(1)
        words = classes + self.num_classes * levels
        return torch.stack([words >> shift & 255 for shift in (0, 8, 16)], -1).to(torch.uint8)

    def decode(self, rows: Tensor) -> Tensor:
        """(B, k, 3) -> (B, C), with the highest class at 0."""
        low, middle, high = rows.long().unbind(-1)
        words = low + (middle << 8) + (high << 16)
        classes = words % self.num_classes
        values = (words // self.num_classes).float() * (-self.step * self.temperature)
        logits = values[:, :1].expand(-1, self.num_classes).clone()
        values[:, 0] = 0.0
        return logits.scatter_(1, classes, values)


def make_codec(num_classes: int, wanted: SoftLabelFormat) -> Codec:
    """The codec for `wanted`; a k above `num_classes` keeps all classes."""
    if num_classes > MOST_CLASSES:
        raise SettingError(
            f"soft labels of {num_classes} classes cannot be stored, at most {MOST_CLASSES}; "
            "train with a live teacher"
        )
    if wanted.kind == "hard":
        return HardCodec(num_classes)
    assert wanted.k is not None and wanted.temperature is not None
    return TopKCodec(num_classes, min(wanted.k, num_classes), wanted.temperature)


def _refuse_not_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise WeightsError("the teacher's logits are not finite; choose another --teacher")
