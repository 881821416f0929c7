"""The numbers that each setting may be, and one sentence for a number that it may not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Config, flatten
from .errors import SettingError


@dataclass(frozen=True)
class _Range:
    low: float
    high: float = math.inf
    open_low: bool = False  # the lowest number itself is out
    open_high: bool = False
    wanted: str = ""

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below  # so that one that is not a number is in no range


_COUNT = _Range(1, wanted="1 or more")
_SHARE = _Range(0, 1, wanted="a share from 0 to 1")
_SHARE_BELOW_1 = _Range(0, 1, open_high=True, wanted="a share from 0 up to, but not, 1")
_PART = _Range(0, 1, open_low=True, wanted="a share above 0, and 1 for all images")
_INSIDE = _Range(0, 1, open_low=True, open_high=True, wanted="more than 0 and less than 1")
_FROM_ZERO = _Range(0, open_high=True, wanted="0 or more")
_ABOVE_ZERO = _Range(0, open_low=True, open_high=True, wanted="more than 0")
_SEED = _Range(0, 2**32 - 1, wanted=f"a whole number from 0 to {2**32 - 1}")

_RANGES = {
    "student.image_size": _COUNT,
    "student.patch_size": _COUNT,
    "student.drop_path_rate": _SHARE_BELOW_1,
    "student.patch_drop_rate": _SHARE_BELOW_1,
    "student.layer_scale": _ABOVE_ZERO,
    "data.split_seed": _SEED,
    "data.train_fraction": _PART,
    "data.eval_fraction": _PART,
    "data.unlabeled_share": _INSIDE,
    "data.eval_crop": _ABOVE_ZERO,
    "data.repeats": _COUNT,
    "data.cache_gb": _FROM_ZERO,
    "data.workers": _FROM_ZERO,
    "augment.flip": _SHARE,
    "augment.randaugment_ops": _FROM_ZERO,
    "augment.randaugment_magnitude": _FROM_ZERO,
    "augment.randaugment_std": _FROM_ZERO,
    "augment.color_jitter": _FROM_ZERO,
    "augment.erasing": _SHARE,
    "augment.mixup": _FROM_ZERO,
    "augment.cutmix": _FROM_ZERO,
    "augment.mix_probability": _SHARE,
    "augment.cutmix_share": _SHARE,
    "augment.crop_scale": _ABOVE_ZERO,
    "augment.crop_ratio": _ABOVE_ZERO,
    "teacher.image_size": _COUNT,
    "teacher.probe_views": _COUNT,
    "teacher.std": _ABOVE_ZERO,
    "distillation.alpha": _SHARE,
    "distillation.distill_until": _SHARE,
    "distillation.temperature": _ABOVE_ZERO,
    "distillation.smoothing": _SHARE_BELOW_1,
    "distillation.feature_weight": _FROM_ZERO,
    "distillation.feature_until": _SHARE,
    "optim.lr": _FROM_ZERO,
    "optim.lr_batch": _COUNT,
    "optim.min_lr": _FROM_ZERO,
    "optim.warmup_lr": _FROM_ZERO,
    "optim.warmup_epochs": _FROM_ZERO,
    "optim.weight_decay": _FROM_ZERO,
    "optim.betas": _SHARE_BELOW_1,
    "optim.clip_grad": _ABOVE_ZERO,
    "optim.ema_decay": _SHARE,
    "train.epochs": _COUNT,
    "train.budget_s": _ABOVE_ZERO,
    "train.start_size": _COUNT,
    "train.batch_size": _COUNT,
    "train.micro_batch_size": _COUNT,
    "train.label_smoothing": _SHARE_BELOW_1,
    "train.patience": _COUNT,
    "train.seed": _SEED,
}


def refuse_out_of_range(config: Config) -> None:
    """Raises DeitkitError, naming the setting and what it may be, for the first that is out of range."""
    settings = flatten(config.to_dict())
    for key, allowed in _RANGES.items():
        value = settings[key]
        numbers = value if isinstance(value, list) else [value]
        if any(number is not None and number not in allowed for number in numbers):
            raise SettingError(f"{key} is {value}; give {allowed.wanted}")
    distillation = config.distillation
    if distillation.mode != "none" and distillation.token == "distill" and distillation.alpha in (0, 1):
        head = "distillation" if distillation.alpha == 0 else "class"
        raise SettingError(
            f"distillation.alpha {distillation.alpha:g} would leave the {head} head at its random values, "
            "and both heads answer; give a value between 0 and 1, or distillation.token=class"
        )
    if config.optim.name == "sgd" and config.optim.betas[0] == 0:
        raise SettingError(
            "optim.name sgd takes its momentum from the first of optim.betas; give more than 0"
        )
