"""Teachers worth trying, with the accuracy that their authors published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Suggestion:
    """ImageNet-1k top-1 in percent, of the weights as they are or of a linear probe on them."""

    spec: str
    top1: float
    source: str
    note: str = ""


_LITE = "tensorflow/tpu, EfficientNet-Lite"
_DINOV2 = "arXiv 2304.07193, table 4"

PUBLISHED = (
    Suggestion("lite0", 75.1, _LITE, "fast on a CPU; its weights come as a package"),
    Suggestion("lite1", 76.7, _LITE, "likewise"),
    Suggestion("lite2", 77.6, _LITE, "likewise"),
    Suggestion("timm:regnety_160.deit_in1k", 82.9, "arXiv 2012.12877, table 2", "the paper's teacher"),
    Suggestion("timm:vit_small_patch14_dinov2.lvd142m", 81.1, _DINOV2, "linear probe, for a GPU"),
    Suggestion("timm:vit_base_patch14_dinov2.lvd142m", 84.5, _DINOV2, "linear probe, for a GPU"),
    Suggestion("hf:facebook/dinov2-small", 81.1, _DINOV2, "linear probe, for a GPU"),
)
_TORCHVISION = ("mobilenet_v3_large", "resnet50", "regnet_y_16gf", "convnext_tiny", "efficientnet_v2_s")


def suggestions() -> list[Suggestion]:
    """Those above, and torchvision's, whose accuracies stand in the package."""
    import torchvision

    found = list(PUBLISHED)
    for name in _TORCHVISION:
        meta: dict[str, Any] = torchvision.models.get_model_weights(name).DEFAULT.meta  # type: ignore[attr-defined]
        top1 = meta["_metrics"]["ImageNet-1K"]["acc@1"]
        found.append(Suggestion(f"torchvision:{name}", top1, "torchvision"))
    return found
