"""Makes the teacher ready for a folder of images: fitted on the student's own views, or read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import log
from ..config import AugmentConfig, Config
from ..data.dataset import Dataset
from ..data.loader import TrainingViews
from ..data.rng import view_keys
from ..data.sampler import Batch, plan_epoch
from ..run_folder import TEACHER_FOLDER
from .fit import FitData, fit_teacher
from .saved import kept_teacher
from .teacher import Teacher

_PLAIN = AugmentConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    flip=0.0,
    randaugment_ops=0,
    erasing=0.0,
    mixup=0.0,
    cutmix=0.0,
)
_PROBE_SEED = 7  # whatever the run's: the probe's views do not change with it
_PROBE_BATCH, _TUNED_BATCH = 64, 32


def prepare_teacher(out: Path, config: Config, data: Dataset, device: torch.device) -> Teacher | None:
    """The fitted teacher, from `out` where it lies there already; None where none answers live."""
    if not config.taught_live:
        return None
    return kept_teacher(
        out / TEACHER_FOLDER, config.teacher, device, lambda: fit_to_data(config, data, device)
    )


def fit_to_data(config: Config, data: Dataset, device: torch.device) -> Teacher:
    """The teacher with heads for the data's classes, fitted on views as the student will see them."""
    assert config.student.image_size is not None
    # Seen by the probe: the student's own views, without mixing, so that every view has one label.
    augment = replace(config.augment, mixup=0.0, cutmix=0.0, erasing=0.0)
    views = training_views(replace(config, augment=augment), data, device)
    plain = training_views(replace(config, augment=_PLAIN), data, device)
    n = len(data.train.images)
    with log.progress_bar("fitting the teacher", config.teacher.probe_views * n) as advance:

        def probe_batches(v: int) -> Iterator[Tensor]:
            keys = view_keys(n, seed=_PROBE_SEED, epoch=v)
            for first in range(0, n, _PROBE_BATCH):
                indices = np.arange(first, min(first + _PROBE_BATCH, n))
                yield (plain if v == 0 else views).make(Batch(indices, keys[indices])).images
                advance(len(indices))

        def finetune_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            plan = plan_epoch(n, batch_size=_TUNED_BATCH, repeats=1, seed=config.train.seed, epoch=epoch)
            yield from ((made.images, made.targets) for made in map(views.make, plan))

        labels, seed = data.train.labels, config.train.seed
        fit_data = FitData(probe_batches, labels, data.classes, finetune_batches, seed)
        return fit_teacher(config.teacher, fit_data, student_size=config.student.image_size, device=device)


def training_views(config: Config, data: Dataset, device: torch.device) -> TrainingViews:
    """The views of the training images, as the settings ask."""
    assert config.student.image_size is not None
    return TrainingViews(
        data.pool.store,
        data.pool.images.labels,
        len(data.classes),
        config.augment,
        config.student.image_size,
        device,
    )
