"""Named starting points: each function returns a Config and says where it comes from.

`get(name)` finds one; a misspelt name is refused with the nearest one named.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from .config import (
    AugmentConfig,
    Config,
    DataConfig,
    DistillationConfig,
    OptimConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from .errors import DeitkitError


def small_data() -> Config:
    """A folder of hundreds to tens of thousands of images, trained from scratch.

    Not the paper's: light augmentation, soft labels, small batches, a structured start, and much
    feature guidance (Locality Guidance, arXiv 2207.10026), which on little data decides everything.
    docs/small-data.md has the runs behind each value.

    Command: deitkit train DATA --out RUN
    """
    return Config(
        recipe="small-data",
        student=StudentConfig(start="structured"),
        augment=AugmentConfig(
            crop_scale=(0.5, 1.0),
            randaugment_ops=0,
            color_jitter=0.2,
            erasing=0.0,
            mixup=0.0,
            cutmix=0.0,
        ),
        distillation=DistillationConfig(mode="soft", alpha=0.5, temperature=2.0, guidance=16.0),
        optim=OptimConfig(lr=1e-3, lr_batch=32, min_lr=1e-5, warmup_epochs=2, ema_decay=0.998),
        train=TrainConfig(epochs=60, batch_size=32),
    )


def deit() -> Config:
    """DeiT, the paper's table 9, with hard distillation through the distillation token.

    Paper: Touvron et al., arXiv 2012.12877. Published on ImageNet-1k at 300 epochs with a
    RegNetY-16GF teacher: Ti 74.5, S 81.2, B 83.4 % top-1 (table 7); two to three days on 4 to 8
    V100s (section 5).

    Command: deitkit train IMAGENET --out RUN --recipe deit --student base --teacher timm:regnety_160
    """
    return Config(
        recipe="deit",
        student=StudentConfig(image_size=(224, 224), patch_size=(16, 16), drop_path_rate=0.1),
        data=DataConfig(repeats=3, eval_crop=0.875),
        augment=AugmentConfig(),
        teacher=TeacherConfig(),
        distillation=DistillationConfig(mode="hard", alpha=0.5),
        optim=OptimConfig(),
        train=TrainConfig(epochs=300, batch_size=1024, label_smoothing=0.1),
    )


def finetune() -> Config:
    """Start from trained weights (`--init`), keep the distillation, a short and gentle schedule.

    Paper: arXiv 2012.12877, section 4 ("Fine-tuning with distillation") and table 9: both heads go
    on learning from a teacher at the target resolution; augmentation as in training, a small
    constant-to-cosine learning rate, 30 epochs.

    Command: deitkit train DATA --out RUN --recipe finetune --init OTHER_RUN
    """
    return Config(
        recipe="finetune",
        student=StudentConfig(drop_path_rate=0.1),
        augment=AugmentConfig(crop_scale=(0.35, 1.0), erasing=0.0, mixup=0.0, cutmix=0.0),
        distillation=DistillationConfig(mode="hard", alpha=0.5),
        optim=OptimConfig(lr=2e-4, lr_batch=64, min_lr=1e-6, warmup_epochs=1, ema_decay=0.998, clip_grad=1.0),
        train=TrainConfig(epochs=30, batch_size=64),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "small-data": small_data,
    "deit": deit,
    "finetune": finetune,
}


def get(name: str) -> Config:
    """The recipe of that name; raises DeitkitError, naming the nearest, where there is none."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise DeitkitError(
            f"there is no recipe {name!r}; did you mean {near!r}? There are: {', '.join(RECIPES)}"
        )
    return RECIPES[name]()
