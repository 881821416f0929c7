"""Table 3: soft, hard and token distillation."""

from ..description import Arm, Claim, Row, Size, Study

STUDY = Study(
    name="distillation",
    title="Ways of distilling",
    source="arXiv 2012.12877, table 3, DeiT-B at 224 pixels",
    sizes={
        "quick": Size(epochs=14, images=1500),
        "standard": Size(epochs=35, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="none", settings={"distillation.mode": "none"}),
        Arm(
            name="soft",
            settings={
                "distillation.mode": "soft",
                "distillation.token": "class",
                "distillation.alpha": 0.1,
            },
        ),
        Arm(name="hard", settings={"distillation.mode": "hard", "distillation.token": "class"}),
        Arm(name="token", settings={"distillation.mode": "hard", "distillation.token": "distill"}),
    ),
    rows=(
        Row(name="no distillation", arm="none", paper=81.8),
        Row(name="soft, class token", arm="soft", paper=81.8),
        Row(name="hard, class token", arm="hard", paper=83.0),
        Row(name="DeiT, class head", arm="token", metric="top1_class", paper=83.0),
        Row(name="DeiT, distillation head", arm="token", metric="top1_distill", paper=83.1),
        Row(name="DeiT, joint", arm="token", paper=83.4),
    ),
    claims=(
        Claim(
            says="DeiT's distillation beats training on labels alone",
            contrast={"DeiT, joint": 1, "no distillation": -1},
        ),
        Claim(
            says="hard labels of the teacher beat soft ones",
            contrast={"hard, class token": 1, "soft, class token": -1},
        ),
        Claim(
            says="a token of its own beats distilling through the class token",
            contrast={"DeiT, joint": 1, "hard, class token": -1},
        ),
        Claim(
            says="the distillation head beats the class head",
            contrast={"DeiT, distillation head": 1, "DeiT, class head": -1},
        ),
    ),
)
