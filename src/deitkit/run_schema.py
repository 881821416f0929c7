"""What each file of a run folder holds, as dataclasses; `run_folder` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .config import Config
from .preprocessing import Preprocessing
from .tasks import Task


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
    """The length of a run."""

    epochs: int
    steps: int | None = None
    why_student: str = ""


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """The name of a run's teacher, and how its head was chosen or fitted."""

    name: str
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """`config.json`: what is needed to use, repeat or judge a run.

    data, plan and config are None for weights that `deitkit convert` wrote, which were not trained here.
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


@dataclass(frozen=True, kw_only=True)
class SavedSplit:
    """`split.json`: paths of the images in each split, relative to the data folder."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] | None = None
    unlabeled: tuple[str, ...] = ()
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class SkippedImage:
    """An entry of `skipped.json`: an image that could not be read."""

    path: str
    reason: str


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

    interval: 95 % confidence interval of the main score. images_per_s: at inference, batch 32.
    """

    name: str
    params: int
    images_per_s: float
    interval: tuple[float, float] | None = None
    backend: str = ""
    how: str = ""
    bytes: int | None = None
    scores: dict[str, float | None] = field(default_factory=dict)


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

    confusion: counts by true class (row) and predicted class, multiclass only. per_class: scores of each
    label, multilabel only. test: scores on the test split. weights: which weights were saved.
    """

    student: ModelResult
    train: TrainingResult
    val: ValResult
    weights: Literal["ema", "raw"]
    task: Task = "multiclass"
    teacher: ModelResult | None = None
    baseline: ModelResult | None = None
    verdict: str = ""
    machine: str = ""
    date: str = ""
    test: dict[str, float | None] | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    per_class: tuple[dict[str, float | None], ...] | None = None
