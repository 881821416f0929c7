"""From a description to runs: every arm and seed with its folder, its settings and its expected cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import recipes
from ..config import Config
from ..data.dataset import find_splits, refuse_multilabel
from ..errors import SettingError
from ..models.deit import VARIANTS
from ..settings import AUTO
from .cost import expected_seconds
from .description import Arm, Study
from .presets import HELD, PRESETS, Preset
from .sharing import SharedLabels, share_labels


@dataclass(frozen=True)
class PlannedRun:
    """One training that a study asks for."""

    arm: Arm
    seed: int
    folder: Path
    data: Path
    config: Config
    seconds: float  # expected
    classes: int
    labels: SharedLabels | None = None  # answers that it shares with other runs


@dataclass(frozen=True)
class DataSet:
    """A folder of images: how many there are to train and to validate on, and of how many classes."""

    folder: Path
    train_images: int
    val_images: int
    classes: int


def choose_preset(name: str) -> Preset:
    """The preset of that name; raises DeitkitError where there is none."""
    if name not in PRESETS:
        raise SettingError(f"there is no preset {name!r}; choose {', '.join(PRESETS)}")
    return PRESETS[name]


def plan_runs(
    study: Study,
    preset_name: str,
    data: Path,
    out: Path,
    *,
    target: Path | None,
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> list[PlannedRun]:
    """All runs of a study, each after those it needs.

    settings: "section.key" to value, over what preset and study hold; raises DeitkitError for one
    that the study varies, for a student whose cost nobody could tell, and where `target` is missing or
    not asked for.
    """
    preset, arms = choose_preset(preset_name), study.arms_of(preset_name)
    fine = preset.fine if any(arm.starts_from for arm in arms) else {}
    study.refuse_varied(settings, also=fine)
    if any(arm.on_target for arm in arms) != (target is not None):
        wanted = "needs a second data set; add --target FOLDER" if target is None else "takes no --target"
        raise SettingError(f"the study {study.name!r} {wanted}")
    size = study.sizes[preset_name]
    base = recipes.get(study.recipe or preset.recipe).override(
        HELD | dict(preset.settings) | dict(study.held) | {"train.epochs": size.epochs} | dict(settings)
    )
    _refuse_open_student(base)
    sets = {
        on_target: _count(folder, base) for on_target, folder in ((False, data), (True, target)) if folder
    }
    runs = []
    for seed in seeds:
        for arm in arms:
            source = sets[arm.on_target]
            limited = _limit(base, source, size.images, preset.eval_images, settings)
            config = _settings_of(arm, limited, preset, seed, out)
            images = config.data.train_fraction * source.train_images
            seconds = expected_seconds(config, preset, images)
            folder = run_folder(out, arm.name, seed)
            runs.append(PlannedRun(arm, seed, folder, source.folder, config, seconds, source.classes))
    return share_labels(runs, out)


def run_folder(out: Path, arm: str, seed: int) -> Path:
    """Where a study in `out` keeps a run."""
    return out / "runs" / arm / f"seed-{seed}"


def command_of(run: PlannedRun) -> list[str]:
    """The `deitkit train` command that makes this run alone; empty for a convnet, which has none."""
    if run.arm.convnet:
        return []
    command = ["deitkit", "train", str(run.data), "--out", str(run.folder), "--recipe", run.config.recipe]
    for key, value in changed_settings(run.config).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        command += ["--set", f"{key}={text}"]
    return command


def changed_settings(config: Config) -> dict[str, Any]:
    """What makes of its recipe this very config, as "section.key" to value."""
    return {key: now for key, (_, now) in recipes.get(config.recipe).differences(config).items()}


def _refuse_open_student(config: Config) -> None:
    """Raises DeitkitError for a student that the data would choose, and for one that cannot be."""
    config.check()
    student = config.student
    if student.name not in VARIANTS:
        raise SettingError(f"a study has no student {student.name!r}; choose {', '.join(VARIANTS)}")
    for key, size in (("image_size", student.image_size), ("patch_size", student.patch_size)):
        if size == AUTO:
            raise SettingError(f"a study compares students of one size; give student.{key} in pixels")


def _count(folder: Path, config: Config) -> DataSet:
    whole = config.override({"data.train_fraction": 1.0, "data.eval_fraction": 1.0})
    splits = find_splits(folder, whole.data)
    refuse_multilabel(splits.train, "a study")
    return DataSet(folder, len(splits.train), len(splits.val), len(splits.train.classes))


def _limit(
    config: Config,
    source: DataSet,
    train_images: int | None,
    eval_images: int | None,
    settings: Mapping[str, Any],
) -> Config:
    """`config` with the shares that keep a set of images to the preset's limits."""
    shares = {
        "data.train_fraction": min(1.0, (train_images or source.train_images) / source.train_images),
        "data.eval_fraction": min(1.0, (eval_images or source.val_images) / source.val_images),
    }
    return config.override({key: share for key, share in shares.items() if key not in settings})


def _settings_of(arm: Arm, held: Config, preset: Preset, seed: int, out: Path) -> Config:
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
        changes |= dict(preset.fine) | {
            "student.initial_weights": str(run_folder(out, arm.starts_from, seed))
        }
    if arm.taught_by:
        taught_by = run_folder(out, arm.taught_by, seed)
        changes |= {"teacher.spec": f"run:{taught_by}", "teacher.image_size": None}  # a run has its own size
    config = held.override(changes | dict(arm.settings))
    if config.distillation.mode == "none":  # whoever would have taught the other arms
        config = config.override({"teacher.spec": "none", "data.unlabeled": None})
    return config
