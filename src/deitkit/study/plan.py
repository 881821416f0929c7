"""Plans the runs of a study: arms and seeds with their folders, settings and expected cost."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import recipes
from ..config import OF_THIS_CALL, Config
from ..data.dataset import find_splits, refuse_multilabel
from ..errors import SettingError
from ..models import VARIANTS
from ..settings import AUTO
from ..soft_labels.manifest import view_settings
from ..soft_labels.student_config import epochs_read
from .cost import expected_seconds
from .description import Arm, Study
from .presets import HELD, Preset, choose_preset

# Soft labels of all classes are exact at any temperature; for more classes they would outgrow the images.
_MOST_CLASSES = 100


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """A study to run on a folder of images, with its results in `out`.

    target: a second data set, for a study that needs one. settings: "section.key" to value, over those of
    the preset and the study.
    """

    study: Study
    preset: str
    data: Path
    out: Path
    target: Path | None = None
    seeds: Sequence[int] = (0, 1, 2)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of a run."""
        return self.out / "runs" / arm / f"seed-{seed}"


@dataclass(frozen=True)
class SharedSoftLabels:
    """Soft labels that several runs read. epochs: of the longest run. top_k: None for hard labels."""

    folder: Path
    epochs: int
    top_k: int | None


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study."""

    arm: Arm
    seed: int
    folder: Path
    data: Path
    config: Config
    seconds: float  # expected
    classes: int
    soft_labels: SharedSoftLabels | None = None  # None: the teacher runs live


@dataclass(frozen=True)
class DataSize:
    """The number of training images, validation images and classes in a folder."""

    folder: Path
    train_images: int
    val_images: int
    classes: int


def plan_runs(job: StudyJob) -> list[PlannedRun]:
    """All runs of a study, each after those it needs.

    Raises SettingError for settings that the study varies, for a student without fixed name and sizes, and if
    a second data set is missing or superfluous.
    """
    study, preset, arms = job.study, choose_preset(job.preset), job.study.arms_of(job.preset)
    fine = preset.fine if any(arm.starts_from for arm in arms) else {}
    study.refuse_varied(job.settings, also=fine)
    if any(arm.on_target for arm in arms) != (job.target is not None):
        wanted = "needs a second data set; add --target FOLDER" if job.target is None else "takes no --target"
        raise SettingError(f"the study {study.name!r} {wanted}")
    size = study.sizes[job.preset]
    base = recipes.get(study.recipe or preset.recipe).override(
        HELD | dict(preset.settings) | dict(study.held) | {"train.epochs": size.epochs} | dict(job.settings)
    )
    _refuse_open_student(base)
    sizes = {False: _count(job.data, base)}
    if job.target is not None:
        sizes[True] = _count(job.target, base)
    runs = []
    for seed in job.seeds:
        for arm in arms:
            source = sizes[arm.on_target]
            shares = _shares(source, size.images, preset.eval_images)
            limited = base.override({k: v for k, v in shares.items() if k not in job.settings})
            config = _config_of(arm, limited, preset, seed, job)
            images = config.data.train_fraction * source.train_images
            seconds = expected_seconds(config, preset, images)
            folder = job.folder(arm.name, seed)
            runs.append(PlannedRun(arm, seed, folder, source.folder, config, seconds, source.classes))
    return share_soft_labels(runs, job.out)


def share_soft_labels(runs: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """Gives runs whose teacher would see the same views one set of soft labels, so that it runs once.

    Such runs agree in all settings of views and teacher (docs/soft-labels.md), need no feature maps, and lose
    no precision: all of them use hard labels, or there are few enough classes to store all of them.
    """
    groups: dict[tuple[Path, str], list[PlannedRun]] = defaultdict(list)
    for run in runs:
        if _can_read(run):
            views = json.dumps(view_settings(run.config.to_dict()), sort_keys=True)
            groups[run.data, views].append(run)
    shared: dict[Path, SharedSoftLabels] = {}
    for group in groups.values():
        first = group[0]
        top_k = first.classes if first.classes <= _MOST_CLASSES else None
        hard = all(run.config.distillation.mode == "hard" for run in group)
        if len(group) == 1 or not (hard or top_k):
            continue
        folder = out / "soft-labels" / first.arm.name / f"seed-{first.seed}"
        epochs = max(epochs_read(run.config) for run in group)
        soft_labels = SharedSoftLabels(folder, epochs, None if hard else top_k)
        shared |= {run.folder: soft_labels for run in group}
    return [replace(run, soft_labels=shared.get(run.folder)) for run in runs]


def _can_read(run: PlannedRun) -> bool:
    own_teacher = run.arm.convnet or run.arm.taught_by
    live_only = run.config.distillation.feature_weight > 0 or run.config.train.start_size is not None
    return run.config.has_live_teacher and not (own_teacher or live_only)


def command_of(run: PlannedRun) -> list[str]:
    """The `deitkit train` command of this run; empty for a convnet, which has none."""
    if run.arm.convnet:
        return []
    command = ["deitkit", "train", str(run.data), "--out", str(run.folder), "--recipe", run.config.recipe]
    for key, value in changed_settings(run.config).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        command += ["--set", f"{key}={text}"]
    return command


def changed_settings(config: Config) -> dict[str, Any]:
    """The settings in which a config differs from its recipe, "section.key" to value."""
    changed = {key: now for key, (_, now) in recipes.get(config.recipe).differences(config).items()}
    allowed = {key: getattr(config.teacher, key.partition(".")[2]) for key in OF_THIS_CALL}
    return changed | {key: value for key, value in allowed.items() if value}


def _refuse_open_student(config: Config) -> None:
    """Raises SettingError for a student whose name or sizes would depend on the data."""
    config.check()
    student = config.student
    if student.name not in VARIANTS:
        raise SettingError(f"a study has no student {student.name!r}; choose {', '.join(VARIANTS)}")
    for key, size in (("image_size", student.image_size), ("patch_size", student.patch_size)):
        if size == AUTO:
            raise SettingError(f"a study compares students of one size; give student.{key} in pixels")


def _count(folder: Path, config: Config) -> DataSize:
    whole = config.override({"data.train_fraction": 1.0, "data.eval_fraction": 1.0})
    splits = find_splits(folder, whole.data)
    refuse_multilabel(splits.train, "a study")
    return DataSize(folder, len(splits.train), len(splits.val), len(splits.train.classes))


def _shares(source: DataSize, train_images: int | None, eval_images: int | None) -> dict[str, float]:
    """The shares of the images that keep to the preset's limits."""
    return {
        "data.train_fraction": min(1.0, (train_images or source.train_images) / source.train_images),
        "data.eval_fraction": min(1.0, (eval_images or source.val_images) / source.val_images),
    }


def _config_of(arm: Arm, held: Config, preset: Preset, seed: int, job: StudyJob) -> Config:
    """The settings of one run."""
    if held.train.epochs == AUTO:
        raise SettingError("a study compares runs of one length; give train.epochs a number")
    epochs = int(held.train.epochs) * arm.epochs * (preset.fine_epochs if arm.starts_from else 1.0)
    changes: dict[str, Any] = {
        "train.seed": seed,
        "train.epochs": max(1, round(epochs)),
        "data.train_fraction": held.data.train_fraction * arm.images,
    }
    if arm.image_size != 1.0:
        image, patch = held.student.image_size, held.student.patch_size
        assert image != AUTO and patch != AUTO, "plan_runs refuses others"
        scaled = [max(p, round(i * arm.image_size / p) * p) for i, p in zip(image, patch, strict=True)]
        changes["student.image_size"] = scaled
    if arm.starts_from:
        changes |= {**preset.fine, "student.initial_weights": str(job.folder(arm.starts_from, seed))}
    if arm.taught_by:
        taught_by = job.folder(arm.taught_by, seed)
        changes |= {"teacher.spec": f"run:{taught_by}", "teacher.image_size": AUTO}  # a run has its own size
    config = held.override(changes | dict(arm.settings))
    if config.distillation.mode == "none":  # without the teacher and its images of the other arms
        config = config.override({"teacher.spec": "none", "data.unlabeled": None})
    return config
