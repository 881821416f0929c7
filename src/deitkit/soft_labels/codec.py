"""A teacher's logits in a few bytes a view, and back.

Top-K entries take three bytes each, whatever the number of classes: the 24-bit word, lowest byte
first, is `class + num_classes * level`. So the class takes only the bits it needs and the
probability all others: 1.7 million levels for 10 classes, 16,777 for 1,000 (about float16's
precision), 768 for ImageNet-21k. Two bytes of index and two of float16 would be 40 bytes at K = 10.

A level stands for a difference of logits to the highest one, divided by the temperature: 0 to -24
in even steps. The first entry, which needs no difference, holds the one that every class outside
the top K gets, so that their probabilities sum to what was left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import RunFolderError

MOST_CLASSES = 65536  # two bytes, and 256 levels for a probability
_RANGE = 24.0  # exp(-24) = 4e-11


class Codec(Protocol):
    """How the labels of views are stored; B views, C classes."""

    @property
    def bytes_per_view(self) -> int: ...

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) logits -> (B, ...) rows of unsigned integers, on the CPU."""
        ...

    def decode(self, rows: Tensor) -> Tensor:
        """The inverse, up to an offset a row and as far as it was stored: (B, C) float32."""
        ...

    def facts(self) -> dict[str, Any]:
        """What `make_codec` needs to build it again."""
        ...


@dataclass(frozen=True)
class HardCodec:
    """Only the teacher's decision: one byte up to 256 classes, two above."""

    num_classes: int

    @property
    def bytes_per_view(self) -> int:
        return 1 if self.num_classes <= 256 else 2

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B,) uint8 or uint16."""
        _refuse_not_finite(logits)
        return logits.argmax(-1).cpu().to(torch.uint8 if self.bytes_per_view == 1 else torch.uint16)

    def decode(self, rows: Tensor) -> Tensor:
        """(B,) -> (B, C): 1 for the decision, 0 elsewhere; good for hard distillation only."""
        return F.one_hot(rows.long(), self.num_classes).float()

    def facts(self) -> dict[str, Any]:
        return {"kind": "hard"}


@dataclass(frozen=True)
class TopKCodec:
    """The k most probable classes at `temperature`; the others share what is left evenly.

    At that temperature the k probabilities and the sum of the others are exact up to the levels'
    step; with k = num_classes they are so at every temperature. The highest class is always the
    one that `argmax` gives for the logits, also where another one ties with it.
    """

    num_classes: int
    k: int
    temperature: float

    @property
    def bytes_per_view(self) -> int:
        return 3 * self.k

    @property
    def step(self) -> float:
        """The distance of two levels, in logits over temperature: a probability's largest relative error."""
        return _RANGE / (2**24 // self.num_classes - 1)

    def encode(self, logits: Tensor) -> Tensor:
        """(B, C) -> (B, k, 3) uint8."""
        _refuse_not_finite(logits)
        first = logits.argmax(-1, keepdim=True).cpu()
        relative = logits.cpu().double() / self.temperature
        relative = relative - relative.gather(1, first)
        found, classes = relative.scatter(1, first, 1.0).topk(self.k)
        others = relative.scatter(1, classes, -torch.inf).logsumexp(1)
        rest = max(1, self.num_classes - self.k)  # without others, the value is -inf and never read
        differences = torch.cat([others[:, None] - torch.log(torch.tensor(float(rest))), found[:, 1:]], 1)
        # Never level 0: nothing may tie with the first class once it is rounded.
        levels = (differences.clamp_min(-_RANGE) / -self.step).round().long().clamp_min(1)
        words = classes + self.num_classes * levels
        return torch.stack([words >> shift & 255 for shift in (0, 8, 16)], -1).to(torch.uint8)

    def decode(self, rows: Tensor) -> Tensor:
        """(B, k, 3) -> (B, C), the highest class at 0."""
        low, middle, high = rows.long().unbind(-1)
        words = low + (middle << 8) + (high << 16)
        classes = words % self.num_classes
        values = (words // self.num_classes).float() * (-self.step * self.temperature)
        logits = values[:, :1].expand(-1, self.num_classes).clone()
        values[:, 0] = 0.0
        return logits.scatter_(1, classes, values)

    def facts(self) -> dict[str, Any]:
        return {"kind": "top-k", "k": self.k, "temperature": self.temperature}


def make_codec(
    num_classes: int, *, kind: Literal["top-k", "hard"], k: int = 10, temperature: float = 1.0
) -> Codec:
    """The codec of that kind; of fewer classes than `k`, all are kept."""
    if num_classes > MOST_CLASSES:
        raise RunFolderError(f"labels of {num_classes} classes cannot be stored; {MOST_CLASSES} are the most")
    if kind == "hard":
        return HardCodec(num_classes)
    return TopKCodec(num_classes, min(k, num_classes), temperature)


def _refuse_not_finite(logits: Tensor) -> None:
    if not torch.isfinite(logits).all():
        raise RunFolderError("the teacher's answers are not finite numbers; choose another --teacher")
