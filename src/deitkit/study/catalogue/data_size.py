"""The title's claim: how much data a transformer needs, and how far training and a teacher reduce that."""

import math
from typing import Any

from ..description import EVERY_PRESET, Arm, Axis, Claim, Row, Size, Study

_SHARES = {"1 %": 0.01, "5 %": 0.05, "10 %": 0.1, "30 %": 0.3, "100 %": 1.0}
_LARGE = ("standard", "full")

# ViT's training of table 9 except dropout and weight decay: crops and flips only.
_PLAIN = {
    "distillation.mode": "none",
    "augment.randaugment_ops": 0,
    "augment.color_jitter": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.erasing": 0.0,
    "data.repeats": 1,
    "student.drop_path_rate": 0.0,
    "train.label_smoothing": 0.0,
}
_KINDS: dict[str, dict[str, Any]] = {
    "plain ViT": {"settings": _PLAIN},
    "DeiT, no teacher": {"settings": {"distillation.mode": "none"}},
    "DeiT, distilled": {},
    "convnet": {"settings": {"distillation.mode": "none"}, "convnet": True},
}


def _arm(kind: str, share: str) -> Arm:
    fraction = _SHARES[share]
    return Arm(
        name=f"{kind} {share}".lower().replace(",", "").replace(" %", "").replace(" ", "-"),
        images=fraction,
        # Fewer images are seen more often, but for fewer steps.
        epochs=1 / math.sqrt(fraction),
        presets=EVERY_PRESET if fraction >= 0.1 else _LARGE,
        **_KINDS[kind],
    )


def _row(kind: str, share: str) -> Row:
    whole = {"plain ViT": 77.9, "DeiT, no teacher": 81.8, "DeiT, distilled": 83.4}
    paper = whole.get(kind) if share == "100 %" else None
    return Row(name=f"{kind}, {share}", arm=_arm(kind, share).name, series=kind, paper=paper)


STUDY = Study(
    name="data",
    title="Share of the training data",
    source="arXiv 2012.12877, table 5 (all of ImageNet; ViT-B at 384 pixels; shares of it are not published)",
    # With the light augmentation of small-data, a plain ViT and DeiT would hardly differ.
    recipe="deit-distilled",
    sizes={
        "quick": Size(epochs=9, images=1000),
        "standard": Size(epochs=8, images=10_000),
        "full": Size(epochs=300),
    },
    arms=tuple(_arm(kind, share) for kind in _KINDS for share in _SHARES),
    rows=tuple(_row(kind, share) for kind in _KINDS for share in _SHARES),
    claims=(
        Claim(
            says="on all images, DeiT's training beats a plain ViT's",
            contrast={"DeiT, no teacher, 100 %": 1, "plain ViT, 100 %": -1},
        ),
        Claim(
            says="on all images, a teacher adds to that",
            contrast={"DeiT, distilled, 100 %": 1, "DeiT, no teacher, 100 %": -1},
        ),
        Claim(
            says="a teacher adds more with a tenth of the images than with all",
            contrast={
                "DeiT, distilled, 10 %": 1,
                "DeiT, no teacher, 10 %": -1,
                "DeiT, distilled, 100 %": -1,
                "DeiT, no teacher, 100 %": 1,
            },
        ),
        Claim(
            says="with a tenth of the images a convnet from scratch beats a plain ViT",
            contrast={"convnet, 10 %": 1, "plain ViT, 10 %": -1},
        ),
    ),
    axis=Axis(column="train_images", label="training images", log=True),
)
