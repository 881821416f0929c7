"""Table 2: convnets of growing strength as teachers, and a transformer."""

from ..description import Arm, Claim, Row, Size, Study

_SMALL = ("quick", "standard")
_FULL = ("full",)

STUDY = Study(
    name="teachers",
    title="Teachers",
    source="arXiv 2012.12877, table 2, DeiT-B at 224 pixels",
    sizes={
        "quick": Size(epochs=12, images=1500),
        "standard": Size(epochs=25, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="none", settings={"distillation.mode": "none"}),
        Arm(name="lite0", settings={"teacher.spec": "lite0"}, presets=_SMALL),
        Arm(name="lite1", settings={"teacher.spec": "lite1"}, presets=_SMALL),
        Arm(name="lite2", settings={"teacher.spec": "lite2"}, presets=_SMALL),
        Arm(name="regnety-4gf", settings={"teacher.spec": "timm:regnety_040.ra3_in1k"}, presets=_FULL),
        Arm(name="regnety-8gf", settings={"teacher.spec": "timm:regnety_080.ra3_in1k"}, presets=_FULL),
        Arm(name="regnety-16gf", settings={"teacher.spec": "timm:regnety_160.deit_in1k"}, presets=_FULL),
        Arm(name="deit-b", settings={"teacher.spec": "timm:deit_base_patch16_224.fb_in1k"}, presets=_FULL),
        # No package has a pretrained transformer, so the student's own architecture, trained here, teaches.
        Arm(name="transformer", taught_by="none", presets=_SMALL),
    ),
    rows=(
        Row(name="no teacher", arm="none", paper=81.8),
        Row(name="EfficientNet-Lite0", arm="lite0"),
        Row(name="EfficientNet-Lite1", arm="lite1"),
        Row(name="EfficientNet-Lite2", arm="lite2"),
        Row(name="RegNetY-4GF", arm="regnety-4gf", paper=82.7),
        Row(name="RegNetY-8GF", arm="regnety-8gf", paper=82.7),
        Row(name="RegNetY-16GF", arm="regnety-16gf", paper=83.1),
        Row(name="DeiT-B", arm="deit-b", paper=81.9),
        Row(name="transformer without a teacher", arm="transformer"),
    ),
    claims=(
        Claim(
            says="a convnet teaches better than a transformer",
            contrast={"EfficientNet-Lite0": 1, "transformer without a teacher": -1},
        ),
        Claim(
            says="a stronger convnet teaches better than a weaker one",
            contrast={"EfficientNet-Lite2": 1, "EfficientNet-Lite0": -1},
        ),
        Claim(
            says="a convnet teaches better than a transformer of like accuracy",
            contrast={"RegNetY-8GF": 1, "DeiT-B": -1},
        ),
        Claim(
            says="a RegNetY of 16 GFLOPs teaches better than one of 4",
            contrast={"RegNetY-16GF": 1, "RegNetY-4GF": -1},
        ),
    ),
)
