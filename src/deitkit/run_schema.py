"""What each file of a run folder holds, as dataclasses; `run_folder` reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from .config import Config
from .preprocessing import Preprocessing
from .tasks import Task

# A model of a run: "student", "teacher", "baseline", or a candidate such as "teacher-224".
Role = str
Metric = Literal["top1", "balanced_accuracy", "macro_f1", "map"]

_STEADY = 1.3  # most that a speedup may vary between rounds


def role_name(role: Role) -> str:
    """A model in words, such as "student" or "teacher at 224 px"."""
    kind, _, size = role.partition("-")
    return f"{kind} at {size} px" if size else kind


def rounded_count(images: int) -> int:
    """An estimated number of images, to two digits."""
    digits = len(str(images)) - 2
    return images if digits <= 0 else round(images, -digits)


def probability_column(name: str) -> str:
    """The column of `predictions.csv` with the probabilities of a label, multilabel only."""
    return f"p({name})"


@dataclass(frozen=True, kw_only=True)
class StudentInfo:
    """The shape of a student, as `DeiT.describe` gives it. `patch_size` is None for a convnet of a study."""

    name: str = ""
    image_size: tuple[int, int] | None = None  # height, width in pixels
    patch_size: tuple[int, int] | None = None
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    mlp_ratio: float = 4.0
    distilled: bool = False
    hybrid: bool = False
    params: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """The images of a run: their folder, the number in each split, and how they were split."""

    root: str | None = None
    train: int = 0
    val: int = 0
    test: int | None = None
    unlabeled: int = 0
    how: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class PlanInfo:
    """The length of a run. without_baseline: the time budget was too short for the one that was asked for."""

    epochs: int
    steps: int | None = None
    why_student: str = ""
    without_baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """The name of a run's teacher, and how its head was chosen or fitted."""

    name: str
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`config.json`: what is needed to use, repeat or judge a run.

    data, plan and config are None for weights that `deitkit convert` wrote, which were not trained here.
    head_temperature: by which the heads in the weights file are divided, as `deitkit push` writes them, so
    that other projects' probabilities are calibrated.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    student: StudentInfo
    task: Task = "multiclass"
    data: DataInfo | None = None
    plan: PlanInfo | None = None
    teacher: TeacherInfo | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: Config | None = None
    head_temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SavedSplit:
    """`split.json`: paths of the images in each split, relative to the data folder."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] | None = None
    unlabeled: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class DuplicateCounts:
    """`duplicates.json`: how many images show the same as others.

    groups, images: of near-duplicates and copies. exact: images with a copy, byte by byte. conflicting:
    groups with several labels. leaking_val, leaking_test: images that look the same as a training image.
    spared: validation images that would have leaked without `data.group=auto`, which moved so many images;
    spared_same_label: those of them with the label of the training image.

    Of the student, multiclass only, in percent: top1_leaking, top1_others: on the validation images that
    leak, and on the others. top1_pretended: what its top-1 would have looked like if it had remembered those
    that were spared.

    leaking_paths: of the images that leak; None in older files.
    """

    groups: int
    images: int
    exact: int
    conflicting: int
    leaking_val: int
    leaking_test: int
    moved: int = 0
    spared: int = 0
    spared_same_label: int = 0
    top1_leaking: float | None = None
    top1_others: float | None = None
    top1_pretended: float | None = None
    leaking_paths: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """An entry of `skipped.json`: an image that could not be read."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CalibrationInfo:
    """`calibration.json` of one model: what its validation images tell about its probabilities.

    images: validation images; 0 if nothing is known. temperature: of the probabilities of `predict`, see
    `models.tempered`. head_temperatures: of a student with two heads, by which the logits of one head are
    divided: "class", "distill", and "mean" for the mean of both, as timm and transformers evaluate. nll, ece:
    negative log-likelihood in nats and expected calibration error in percent, each image at a temperature
    that the other images gave; nll_before, ece_before: at 1. familiar_up_to: the unfamiliarity that 95 % of
    images like these do not exceed; None for too few images. true_probabilities: of the true class of each
    image, in ascending order, for conformal sets. Of a multilabel model, ece, familiar_up_to and
    true_probabilities are not there.
    """

    images: int = 0
    temperature: float = 1.0
    head_temperatures: dict[str, float] = field(default_factory=dict)
    nll: float | None = None
    nll_before: float | None = None
    ece: float | None = None
    ece_before: float | None = None
    familiar_up_to: float | None = None
    true_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """A line of `metrics.jsonl`.

    train: mean loss terms of the epoch. val, val_ema: metrics of the raw and averaged weights, None for an
    epoch without a measurement.
    """

    epoch: int
    train: dict[str, float]
    step: int | None = None
    lr: float | None = None
    val: dict[str, float | None] | None = None
    val_ema: dict[str, float | None] | None = None
    token_cosine: float | None = None
    images_per_s: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """A model in `results.json`. scores: in percent by name, such as top1, top1_class, map; None if unknown.

    interval, balanced_interval, macro_f1_interval: 95 % confidence intervals of the main score, of balanced
    accuracy and of macro-F1.
    images_per_s: at inference, batch 32; images_per_s_range: the slowest and the fastest round. folder: where
    a teacher is if not in the run's folder. image_size: of a teacher, height and width of its input.
    test, confusion, per_class: as in RunResults, of a baseline or a candidate.
    """

    name: str
    params: int
    images_per_s: float
    images_per_s_range: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    balanced_interval: tuple[float, float] | None = None
    macro_f1_interval: tuple[float, float] | None = None
    backend: str = ""
    how: str = ""
    bytes: int | None = None
    folder: str | None = None
    image_size: tuple[int, int] | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    test: dict[str, float | None] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    per_class: tuple[dict[str, float | None], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A model's score minus another's on the same images, in points, with a 95 % confidence interval."""

    value: float
    low: float
    high: float
    images: int

    @property
    def decided(self) -> bool:
        """Whether the images suffice to tell which model is better: the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def images_needed(self) -> int | None:
        """About how many images would tell, if the difference stays; None if there is no difference.

        The interval narrows with the square root of the number of images.
        """
        if self.value == 0:
            return None
        towards_zero = self.value - self.low if self.value > 0 else self.high - self.value
        return math.ceil(self.images * (towards_zero / abs(self.value)) ** 2)


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times as fast one model is as another: the median over rounds, the least and the most.

    in_turns: the models were measured round by round. Otherwise it is the ratio of two speeds that were
    measured at different times.
    """

    value: float
    low: float
    high: float
    in_turns: bool = True

    @property
    def steady(self) -> bool:
        """Whether the rounds agree roughly."""
        return self.high <= _STEADY * self.low


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The models of a run against each other on the same validation images.

    metric: what they are compared by. differences: of the first model from the second, by "student-teacher",
    "student-baseline" and "baseline-teacher". speedup: of the student over the teacher.
    """

    metric: Metric
    differences: dict[str, Difference] = field(default_factory=dict)
    speedup: Speedup | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The cost of a training.

    epochs, images: those trained on. seconds: of the training loop. job_seconds: of the whole job.
    """

    epochs: int
    seconds: float
    images_per_s: float
    images: int | None = None
    job_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ValResult:
    """The validation split of `results.json`."""

    images: int


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """`results.json`: the accuracies, speeds and the verdict of a finished run.

    candidates: the teacher at other image sizes, by name. recommended: the model to deploy, chosen for
    `prefer`; None if none learnt anything, and in files of version 0.1. confusion:
    counts by true class (row) and predicted class, multiclass only. per_class: scores of each label,
    multilabel only. test: scores on the test split. weights: which weights were saved.
    """

    student: ModelResult
    train: TrainingResult
    val: ValResult
    weights: Literal["ema", "raw"]
    task: Task = "multiclass"
    teacher: ModelResult | None = None
    baseline: ModelResult | None = None
    candidates: dict[str, ModelResult] = field(default_factory=dict)
    prefer: Literal["balanced", "accuracy", "speed"] = "balanced"
    recommended: Role | None = None
    verdict: str = ""
    comparison: Comparison | None = None
    machine: str = ""
    date: str = ""
    test: dict[str, float | None] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    per_class: tuple[dict[str, float | None], ...] | None = None

    @property
    def models(self) -> dict[Role, ModelResult]:
        """Every model of the run, with its scores on the test split and its confusion matrix beside it."""
        student = replace(self.student, test=self.test, confusion=self.confusion, per_class=self.per_class)
        others = {"teacher": self.teacher, **self.candidates, "student": student, "baseline": self.baseline}
        return {role: model for role, model in others.items() if model is not None}
