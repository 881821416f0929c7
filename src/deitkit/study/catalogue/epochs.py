"""Figure 3: accuracy over the number of epochs, and where it saturates."""

from ..description import Arm, Axis, Claim, Row, Size, Study

_LENGTHS = {"short": 0.3, "medium": 0.6, "long": 1.0}  # of 1000 epochs: 300, 600, 1000
_PAPER = {"short": 83.4, "long": 84.2}  # table 5, distilled

STUDY = Study(
    name="epochs",
    title="Length of training",
    source="arXiv 2012.12877, figure 3 and table 5, DeiT-B at 224 pixels",
    sizes={
        "quick": Size(epochs=24, images=1000),
        "standard": Size(epochs=45, images=8_000),
        "full": Size(epochs=1000),
    },
    arms=tuple(
        Arm(name=f"{kind}-{length}", epochs=share, settings={"distillation.mode": mode})
        for kind, mode in (("plain", "none"), ("distilled", "hard"))
        for length, share in _LENGTHS.items()
    ),
    rows=(
        *(
            Row(
                name=f"no teacher, {length}",
                arm=f"plain-{length}",
                series="no teacher",
                paper=81.8 if length == "short" else None,
            )
            for length in _LENGTHS
        ),
        *(
            Row(
                name=f"distilled, {length}",
                arm=f"distilled-{length}",
                series="distilled",
                paper=_PAPER.get(length),
            )
            for length in _LENGTHS
        ),
    ),
    claims=(
        Claim(
            says="a distilled student gains from 3.3 times the epochs",
            contrast={"distilled, long": 1, "distilled, short": -1},
        ),
        Claim(
            says="it still gains from 1.7 times the epochs at the end",
            contrast={"distilled, long": 1, "distilled, medium": -1},
        ),
        Claim(
            says="at that point it gains more than a student without a teacher, which saturates",
            contrast={
                "distilled, long": 1,
                "distilled, medium": -1,
                "no teacher, long": -1,
                "no teacher, medium": 1,
            },
        ),
    ),
    axis=Axis(column="epochs", label="epochs", log=True),
)
