"""Fits a teacher to a dataset, on the views that the student will see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .. import log
from ..config import AugmentConfig, TeacherConfig
from ..data.dataset import Dataset
from ..data.rng import view_keys
from ..data.sampler import Batch, plan_epoch
from .fit import FitData, fit_teacher
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
_PROBE_SEED = 7
_PROBE_BATCH, _FINETUNE_BATCH = 64, 32


def fit_to_dataset(
    config: TeacherConfig,
    dataset: Dataset,
    *,
    augment: AugmentConfig,
    image_size: tuple[int, int],
    seed: int,
    device: torch.device,
    seconds: float | None = None,
) -> Teacher:
    """The teacher of `config` with heads for the dataset's classes.

    augment, image_size: of the student, whose views the teacher is fitted on. seed: of fine-tuning; the
    probe's views do not depend on it. seconds: that a probe's views may take; None for any.
    """
    # Without mixing, so that every view has one label.
    plain = dataset.views(_PLAIN, image_size, device)
    views = dataset.views(replace(augment, mixup=0.0, cutmix=0.0, erasing=0.0), image_size, device)
    n = len(dataset.train.images)
    with log.progress_bar("fitting the teacher", config.probe_views * n) as advance:

        def probe_batches(v: int) -> Iterator[Tensor]:
            keys = view_keys(n, seed=_PROBE_SEED, epoch=v)
            for first in range(0, n, _PROBE_BATCH):
                indices = np.arange(first, min(first + _PROBE_BATCH, n))
                yield (plain if v == 0 else views).make(Batch(indices, keys[indices])).images
                advance(len(indices))

        def finetune_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            plan = plan_epoch(n, batch_size=_FINETUNE_BATCH, repeats=1, seed=seed, epoch=epoch)
            yield from ((made.images, made.targets) for made in map(views.make, plan))

        data = FitData(probe_batches, dataset.train.labels, dataset.classes, finetune_batches, seed, seconds)
        return fit_teacher(config, data, student_size=image_size, device=device)
