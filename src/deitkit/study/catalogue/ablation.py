"""Table 8: each augmentation and regulariser taken away in turn, and another optimizer."""

from typing import Any

from ..description import Arm, Claim, Row, Size, Study

# Settings that change, and the accuracy in table 8 after pre-training at 224 pixels.
_ABLATIONS: dict[str, tuple[dict[str, Any], float]] = {
    # SGD's learning rate is not published; this one makes a step about as large as AdamW's.
    "SGD": ({"optim.name": "sgd", "optim.lr": 5e-2}, 74.5),
    "no RandAugment": ({"augment.randaugment_ops": 0}, 79.6),
    "no mixup": ({"augment.mixup": 0.0}, 78.7),
    "no CutMix": ({"augment.cutmix": 0.0}, 80.0),
    "no mixup, no CutMix": ({"augment.mixup": 0.0, "augment.cutmix": 0.0}, 75.8),
    "no erasing": ({"augment.erasing": 0.0}, 4.3),
    "no stochastic depth": ({"student.drop_path_rate": 0.0}, 3.4),
    "no repeated augmentation": ({"data.repeats": 1}, 76.5),
}


def _arm_name(row: str) -> str:
    return row.lower().replace(",", "").replace(" ", "-")


STUDY = Study(
    name="ablation",
    title="Parts of the training",
    source="arXiv 2012.12877, table 8, DeiT-B at 224 pixels (4.3 and 3.4 did not train well there)",
    recipe="deit",
    held={"distillation.mode": "none"},
    sizes={
        "quick": Size(epochs=9, images=1000),
        "standard": Size(epochs=14, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="deit"),
        *(Arm(name=_arm_name(row), settings=settings) for row, (settings, _) in _ABLATIONS.items()),
    ),
    rows=(
        Row(name="DeiT", arm="deit", paper=81.8),
        *(Row(name=row, arm=_arm_name(row), paper=paper) for row, (_, paper) in _ABLATIONS.items()),
    ),
    claims=tuple(
        Claim(says=f"DeiT's training beats the same with {row}", contrast={"DeiT": 1, row: -1})
        for row in _ABLATIONS
    ),
)
