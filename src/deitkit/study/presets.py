"""Sizes of studies: half an hour on a laptop, half an hour on a GPU, or as published.

`images_per_s` is the assumed training speed of a preset's student with its teacher, for the expected duration
only: on two CPU cores (quick), one data-centre GPU (standard), eight V100s as in the paper (full: 300 epochs
of DeiT-B in 53 hours, arXiv 2012.12877, section 5.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError

IMAGENET_TRAIN_IMAGES = 1_281_167

# The paper's student and distillation, without deitkit's additions.
HELD = {
    "student.initial_weights": "none",
    "student.init_scheme": "published",
    "distillation.mode": "hard",
    "distillation.alpha": 0.5,
    "distillation.temperature": 3.0,
    "distillation.distill_until": 1.0,
    "distillation.feature_weight": 0.0,
    "data.split_seed": 0,
    "teacher.deploy_sizes": None,  # a study compares students
}
_SMALL_BATCH = {
    "train.batch_size": 64,
    "optim.lr": 1e-3,
    "optim.lr_batch": 64,
    "optim.warmup_epochs": 2,
    "optim.ema_decay": 0.998,
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of every study at one size."""

    recipe: str
    settings: Mapping[str, Any]
    fine: Mapping[str, Any]  # settings of an arm that starts from another
    fine_epochs: float  # factor of the study's epochs, for such an arm
    eval_images: int | None  # at most, for validation; None: all
    images_per_s: float
    overhead_s: float  # of a run besides its steps: start, teacher, measurements, report


PRESETS = {
    "quick": Preset(
        recipe="small-data",
        settings={
            **_SMALL_BATCH,
            "student.name": "nano",
            "student.image_size": (64, 64),
            "student.patch_size": (16, 16),
            "teacher.image_size": 96,
            "teacher.probe_views": 2,
        },
        # Long enough to leave the weights of so short a first training (docs/findings.md).
        fine={"optim.lr": 5e-4, "optim.warmup_epochs": 1},
        fine_epochs=0.75,
        eval_images=1000,
        images_per_s=200,
        overhead_s=20,
    ),
    "standard": Preset(
        recipe="small-data",
        settings={
            **_SMALL_BATCH,
            "train.batch_size": 256,
            "optim.lr_batch": 256,
            "student.name": "tiny",
            "student.image_size": (128, 128),
            "student.patch_size": (16, 16),
        },
        fine={"optim.lr": 1e-4, "optim.warmup_epochs": 1},
        fine_epochs=0.3,
        eval_images=None,
        images_per_s=3000,
        overhead_s=15,
    ),
    "full": Preset(
        recipe="deit-distilled",
        settings={"student.name": "base", "teacher.spec": "timm:regnety_160.deit_in1k"},
        # The published fine-tuning: 25 of 300 epochs at a small, constant learning rate.
        fine={"optim.lr": 5e-6, "optim.min_lr": 5e-6, "optim.weight_decay": 1e-8},
        fine_epochs=25 / 300,
        eval_images=None,
        images_per_s=IMAGENET_TRAIN_IMAGES * 300 / (53 * 3600),
        overhead_s=600,
    ),
}


def choose_preset(name: str) -> Preset:
    """The preset `name`. Raises SettingError for an unknown one."""
    if name not in PRESETS:
        raise SettingError(f"there is no preset {name!r}; choose {', '.join(PRESETS)}")
    return PRESETS[name]
