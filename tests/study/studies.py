"""A study small enough for a test, and records as runs would leave them."""

from __future__ import annotations

from deitkit.study.description import Arm, Claim, Row, Size, Study
from deitkit.study.records import RunRecord

TINY = Study(
    name="tiny",
    title="A tiny study",
    source="a table",
    sizes={"quick": Size(epochs=2, images=12), "standard": Size(epochs=1), "full": Size(epochs=1)},
    held={
        "distillation.mode": "none",
        "student.image_size": (16, 16),
        "student.patch_size": (8, 8),
        "train.batch_size": 8,
        "train.device": "cpu",
    },
    arms=(
        Arm(name="smooth"),
        Arm(name="sharp", settings={"train.label_smoothing": 0.0}),
        Arm(name="fine", starts_from="smooth", image_size=1.5),
        Arm(name="peer", convnet=True, images=0.5),
    ),
    rows=(
        Row(name="smoothed", arm="smooth", paper=80.0),
        Row(name="not smoothed", arm="sharp", paper=78.5),
        Row(name="fine-tuned", arm="fine"),
        Row(name="convnet", arm="peer"),
    ),
    claims=(
        Claim(says="smoothing helps", contrast={"smoothed": 1, "not smoothed": -1}),
        Claim(says="fine-tuning helps", contrast={"fine-tuned": 1, "smoothed": -1}),
    ),
)


def record(arm: str, seed: int, top1: float) -> RunRecord:
    """A finished run, as far as tables and figures need it."""
    return RunRecord(arm=arm, seed=seed, top1=top1, images_per_s=10.0, epochs=2)
