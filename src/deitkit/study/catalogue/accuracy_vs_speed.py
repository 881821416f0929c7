"""Figure 1 and table 5: accuracy against images per second, of students, teacher and convnet."""

from ...config import flatten
from ...recipes import small_data
from ..description import Arm, Axis, Claim, Row, Size, Study
from ..presets import HELD

_PLAIN = {"distillation.mode": "none"}
# deitkit's additions to the paper's student, at the same size and speed.
_RECIPE = {
    key: value for key, value in flatten(small_data().to_dict()).items() if value != HELD.get(key, value)
}

STUDY = Study(
    name="throughput",
    title="Accuracy against throughput",
    source="arXiv 2012.12877, figure 1 and table 5, DeiT-B at 224 pixels, teacher RegNetY-16GF",
    sizes={
        "quick": Size(epochs=8, images=800),
        "standard": Size(epochs=10, images=10_000),
        "full": Size(epochs=300),
    },
    arms=(
        Arm(name="plain", settings=_PLAIN),
        Arm(name="distilled"),
        Arm(name="distilled-larger-images", image_size=1.5),
        Arm(name="plain-larger-student", settings=_PLAIN | {"student.name": "tiny"}, presets=("quick",)),
        Arm(name="distilled-larger-student", settings={"student.name": "tiny"}, presets=("quick",)),
        Arm(
            name="plain-other-student",
            settings=_PLAIN | {"student.name": "small"},
            presets=("standard", "full"),
        ),
        Arm(name="distilled-other-student", settings={"student.name": "small"}, presets=("standard", "full")),
        Arm(name="convnet", settings=_PLAIN, convnet=True),
        Arm(name="small-data", settings=_RECIPE, presets=("quick",)),
    ),
    rows=(
        Row(name="no teacher", arm="plain", series="no teacher", paper=81.8),
        Row(name="distilled", arm="distilled", series="distilled", paper=83.4),
        Row(name="distilled, larger images", arm="distilled-larger-images", series="distilled"),
        Row(name="tiny, no teacher", arm="plain-larger-student", series="no teacher"),
        Row(name="tiny, distilled", arm="distilled-larger-student", series="distilled"),
        Row(name="small, no teacher", arm="plain-other-student", series="no teacher", paper=79.8),
        Row(name="small, distilled", arm="distilled-other-student", series="distilled", paper=81.2),
        Row(name="teacher", arm="distilled", metric="teacher_top1", series="teacher", paper=82.9),
        Row(name="convnet from scratch", arm="convnet", series="convnet"),
        Row(name="distilled, recipe small-data", arm="small-data", series="small-data"),
    ),
    claims=(
        Claim(
            says="a teacher raises accuracy at the student's own throughput",
            contrast={"distilled": 1, "no teacher": -1},
        ),
        Claim(
            says="the distilled student is more accurate than its teacher",
            contrast={"distilled": 1, "teacher": -1},
        ),
        Claim(
            says="the distilled student is more accurate than a convnet of like cost",
            contrast={"distilled": 1, "convnet from scratch": -1},
        ),
        Claim(
            says="so is one under deitkit's recipe for little data",
            contrast={"distilled, recipe small-data": 1, "convnet from scratch": -1},
        ),
    ),
    axis=Axis(column="images_per_s", label="images/s at inference, batch 32", log=True),
)
