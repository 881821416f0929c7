"""Finds the initial weights for `--init auto`: those that come with deitkit, or the published ones."""

from __future__ import annotations

import importlib.resources
import threading
from dataclasses import dataclass
from pathlib import Path

from ..models import VARIANTS

SHIPPED = "deitkit:"  # before a student's name: weights that come with the package
_ANSWER_SECONDS = 6.0  # the hub counts as unreachable if it does not answer within this time


@dataclass(frozen=True)
class Published:
    """Published ImageNet-1k weights: their names on the hub, top-1 in percent, image size in pixels."""

    timm: str
    transformers: str
    top1: float
    image_size: int = 224
    distilled: bool = True


# From the official repository's table of models; distilled ones first.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "nano": (),
    "nano-hybrid": (),
    "tiny": (
        Published(
            "deit_tiny_distilled_patch16_224.fb_in1k", "facebook/deit-tiny-distilled-patch16-224", 74.5
        ),
        Published("deit_tiny_patch16_224.fb_in1k", "facebook/deit-tiny-patch16-224", 72.2, distilled=False),
    ),
    "small": (
        Published(
            "deit_small_distilled_patch16_224.fb_in1k", "facebook/deit-small-distilled-patch16-224", 81.2
        ),
        Published("deit_small_patch16_224.fb_in1k", "facebook/deit-small-patch16-224", 79.9, distilled=False),
    ),
    "base": (
        Published(
            "deit_base_distilled_patch16_224.fb_in1k", "facebook/deit-base-distilled-patch16-224", 83.4
        ),
        Published("deit_base_patch16_224.fb_in1k", "facebook/deit-base-patch16-224", 81.8, distilled=False),
        Published(
            "deit_base_distilled_patch16_384.fb_in1k", "facebook/deit-base-distilled-patch16-384", 85.2, 384
        ),
        Published(
            "deit_base_patch16_384.fb_in1k", "facebook/deit-base-patch16-384", 82.9, 384, distilled=False
        ),
    ),
}

_COST = "training from scratch, which needs more epochs and is less accurate on little data"


def find_initial(student: str) -> tuple[str, str]:
    """Resolves `--init auto`: the weights, as `read` takes them, or "none"; and the reason.

    student: a key of `VARIANTS`. The order:

    1. weights that come with deitkit;
    2. for a hybrid none: its stem comes from EfficientNet-Lite0, see `stem_weights`;
    3. the published distilled weights in the local cache;
    4. those on the hub, which is given a few seconds to answer.

    Does not raise without a network.
    """
    if shipped_file(student).is_file():
        return f"{SHIPPED}{student}", f"initial weights: {SHIPPED}{student}, which comes with deitkit"
    if VARIANTS[student].hybrid:
        return "none", "initial weights: EfficientNet-Lite0's first stages; the blocks start afresh"
    if not PUBLISHED.get(student):
        return "none", f"there are no published weights for {student}: {_COST}"
    first = PUBLISHED[student][0]
    for name in (f"timm/{first.timm}", first.transformers):
        if _cached(name):
            return f"hf:{name}", f"initial weights: {name}, from the local cache"
    name = f"timm/{first.timm}"
    if _on_hub(name):
        return f"hf:{name}", f"initial weights: {name}, from the hub"
    return "none", f"the hub with the published weights of {student} is unreachable: {_COST}"


def shipped_file(student: str) -> Path:
    """The path of the weights that come with deitkit for a student, whether or not there are any."""
    return Path(str(importlib.resources.files(__package__))) / "data" / f"{student}.safetensors"


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def _on_hub(name: str) -> bool:
    """Whether the hub has a file. In a thread, so that a network that drops packets does not delay a run."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    found: list[bool] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, "model.safetensors"), timeout=_ANSWER_SECONDS / 2)
        except Exception:  # whatever the cause, there are no weights
            return
        found.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return bool(found)
