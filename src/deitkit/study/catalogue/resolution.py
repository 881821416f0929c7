"""Table 10: a trained student fine-tuned at other image sizes."""

from ..description import Arm, Axis, Claim, Row, Size, Study

# Factors of the training size: at 224 pixels and patches of 16 these are 160, 224, 320 and 384.
_SIZES = {"0.7 x": 160 / 224, "1 x": 1.0, "1.4 x": 320 / 224, "1.7 x": 384 / 224}
_PAPER = {"0.7 x": 79.9, "1 x": 81.8, "1.4 x": 82.7, "1.7 x": 83.1}

STUDY = Study(
    name="resolution",
    title="Fine-tuning at other image sizes",
    source="arXiv 2012.12877, table 10, DeiT-B trained at 224 pixels",
    held={"distillation.mode": "none"},
    sizes={
        "quick": Size(epochs=10, images=1500),
        "standard": Size(epochs=45, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="trained"),
        *(
            Arm(name=f"fine-tuned-{label[:-2]}", starts_from="trained", image_size=factor)
            for label, factor in _SIZES.items()
        ),
    ),
    rows=tuple(
        Row(name=f"{label} the size", arm=f"fine-tuned-{label[:-2]}", paper=_PAPER[label]) for label in _SIZES
    ),
    claims=(
        Claim(
            says="fine-tuning at a larger size beats fine-tuning at the training size",
            contrast={"1.7 x the size": 1, "1 x the size": -1},
        ),
        Claim(
            says="a smaller size costs accuracy",
            contrast={"1 x the size": 1, "0.7 x the size": -1},
        ),
        Claim(
            says="the step to 1.7 times the size adds to the one to 1.4 times",
            contrast={"1.7 x the size": 1, "1.4 x the size": -1},
        ),
    ),
    axis=Axis(column="image_size", label="image size, pixels a side"),
)
