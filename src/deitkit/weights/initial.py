"""Where the weights for `--init auto` come from, student by student."""

from __future__ import annotations

import importlib.resources
import threading
from dataclasses import dataclass
from pathlib import Path

SHIPPED = "deitkit:"  # and a student's name: weights that come with the package
_ANSWER_SECONDS = 6.0  # a hub that takes longer to say that a file exists counts as unreachable


@dataclass(frozen=True)
class Published:
    """One set of published ImageNet-1k weights: its names on the hub, top-1 in percent, pixels a side."""

    timm: str
    transformers: str
    top1: float
    image_size: int = 224
    distilled: bool = True


# Read from the official repository's table of models; distilled ones first.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "nano": (),
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

_COST = "it starts from scratch, which takes more epochs and on little data ends lower"


def find_initial(student: str) -> tuple[str, str]:
    """What `--init auto` stands for, as `read` takes it ("none" for nothing), and a sentence on it.

    student: a name of `VARIANTS`. In this order: weights that come with the package, the published
    distilled ones in the local cache, then on the hub, which is asked for a few seconds at most, and
    only where something is published. Never raises for a missing network.
    """
    if shipped_file(student).is_file():
        return f"{SHIPPED}{student}", f"initial weights: those that come with deitkit for {student}"
    if not PUBLISHED.get(student):
        return "none", f"no trained weights are published for {student}: {_COST}"
    first = PUBLISHED[student][0]
    for name in (f"timm/{first.timm}", first.transformers):
        if _cached(name):
            return f"hf:{name}", f"initial weights: {name}, from the local cache"
    name = f"timm/{first.timm}"
    if _on_hub(name):
        return f"hf:{name}", f"initial weights: {name}, from the hub"
    return "none", f"the hub could not be reached for the published weights of {student}: {_COST}"


def shipped_file(student: str) -> Path:
    """Where weights for the student lie inside the package, if there are any; a model card lies beside."""
    return Path(str(importlib.resources.files(__package__))) / "data" / f"{student}.safetensors"


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def _on_hub(name: str) -> bool:
    """Whether the hub answers for a file, in time: a network that swallows packets must not hold a run up."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    found: list[bool] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(hf_hub_url(name, "model.safetensors"), timeout=_ANSWER_SECONDS / 2)
        except Exception:  # each cause has an error of its own; none of them gives weights
            return
        found.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_SECONDS)
    return bool(found)
