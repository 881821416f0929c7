"""Distillation losses: the paper's two, and two later ones."""

from ..description import Arm, Claim, Row, Size, Study

_TEMPERATURES = (1, 3, 5)

STUDY = Study(
    name="losses",
    title="Distillation losses",
    source=(
        "arXiv 2012.12877, section 4; DIST: arXiv 2205.10536; standardised logits: arXiv 2403.01427 "
        "(none published for this student)"
    ),
    sizes={
        "quick": Size(epochs=10, images=1200),
        "standard": Size(epochs=20, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="none", settings={"distillation.mode": "none"}),
        Arm(name="hard", settings={"distillation.mode": "hard"}),
        *(
            Arm(name=f"soft-t{t}", settings={"distillation.mode": "soft", "distillation.temperature": t})
            for t in _TEMPERATURES
        ),
        Arm(
            name="standardised",
            settings={
                "distillation.mode": "soft",
                "distillation.standardise": True,
                "distillation.temperature": 2,
            },
        ),
        Arm(name="dist", settings={"distillation.mode": "dist", "distillation.temperature": 1}),
    ),
    rows=(
        Row(name="no teacher", arm="none"),
        Row(name="hard", arm="hard"),
        *(Row(name=f"soft, T = {t}", arm=f"soft-t{t}") for t in _TEMPERATURES),
        Row(name="soft, standardised logits, T = 2", arm="standardised"),
        Row(name="DIST, T = 1", arm="dist"),
    ),
    claims=(
        Claim(says="hard labels beat soft ones at T = 3", contrast={"hard": 1, "soft, T = 3": -1}),
        Claim(says="DIST beats soft labels at T = 3", contrast={"DIST, T = 1": 1, "soft, T = 3": -1}),
        Claim(
            says="standardised logits beat raw ones at T = 3",
            contrast={"soft, standardised logits, T = 2": 1, "soft, T = 3": -1},
        ),
    ),
)
