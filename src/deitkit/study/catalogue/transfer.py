"""Tables 6 and 7: trained on one data set, fine-tuned on another, with and without distillation."""

from ..description import Arm, Claim, Row, Size, Study

_PLAIN = {"distillation.mode": "none"}

STUDY = Study(
    name="transfer",
    title="Transfer to another data set",
    source="arXiv 2012.12877, table 7 and section 5.4, DeiT-B, ImageNet to CIFAR-10",
    sizes={
        "quick": Size(epochs=12, images=1500),
        "standard": Size(epochs=30, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="trained-plain", settings=_PLAIN),
        Arm(name="trained-distilled"),
        Arm(name="scratch", settings=_PLAIN, on_target=True),
        Arm(name="plain-plain", settings=_PLAIN, starts_from="trained-plain", on_target=True),
        Arm(name="distilled-plain", settings=_PLAIN, starts_from="trained-distilled", on_target=True),
        Arm(name="distilled-distilled", starts_from="trained-distilled", on_target=True),
    ),
    rows=(
        Row(name="from scratch", arm="scratch", paper=97.5),
        Row(name="trained and fine-tuned without a teacher", arm="plain-plain", paper=99.1),
        Row(name="trained distilled, fine-tuned without a teacher", arm="distilled-plain"),
        Row(name="trained and fine-tuned distilled", arm="distilled-distilled", paper=99.1),
    ),
    claims=(
        Claim(
            says="training on another data set first beats training from scratch",
            contrast={"trained and fine-tuned without a teacher": 1, "from scratch": -1},
        ),
        Claim(
            says="distillation in both stages beats none in either",
            contrast={
                "trained and fine-tuned distilled": 1,
                "trained and fine-tuned without a teacher": -1,
            },
        ),
        Claim(
            says="distilling while fine-tuning beats fine-tuning the same student on labels alone",
            contrast={
                "trained and fine-tuned distilled": 1,
                "trained distilled, fine-tuned without a teacher": -1,
            },
        ),
    ),
)
