"""A folder's images opened: split, checked against the settings, decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import log
from ..config import Config
from ..errors import DataError
from ..io import write_json
from ..ranges import refuse_out_of_range
from ..tasks import Task
from .cache import Decoder, PixelStore, default_cache_dir, open_store, refuse_many_unreadable
from .folder import find_unlabeled
from .image_set import ImageSet, has_label
from .splits import Splits, load_splits

_CACHE_SCALE = 1.15  # stored side over the view's: a crop is then rarely enlarged by much


@dataclass(frozen=True)
class Split:
    """One split with its pixels; unreadable images are already gone."""

    images: ImageSet
    store: PixelStore

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.images.labels)

    def subset(self, indices: NDArray[np.int64]) -> Split:
        return Split(self.images.subset(indices), self.store.subset(indices))


@dataclass(frozen=True)
class Dataset:
    """All splits: training images squashed and stored larger, the others as evaluation sees them."""

    splits: Splits
    train: Split
    pool: Split  # what the student sees: the training images, then those without a label
    val: Split
    test: Split | None
    skipped: tuple[tuple[str, str], ...]  # (path, reason)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits.train.classes

    @property
    def task(self) -> Task:
        return self.splits.train.task

    def write_lists(self, run: Path) -> None:
        """Which image is in which part, and which could not be read: `split.json`, `skipped.json`."""
        self.splits.write(run / "split.json")
        write_json(run / "skipped.json", [{"path": p, "reason": r} for p, r in self.skipped])
        if self.skipped:
            log.info(f"{len(self.skipped)} unreadable images were skipped; {run}/skipped.json lists them")


def find_splits(data: Path, config: Config) -> Splits:
    """The splits of `data` as the settings ask, and the unlabelled images beside them.

    Raises DeitkitError for a setting out of its range, before anything is read.
    """
    refuse_out_of_range(config)
    splits = load_splits(
        data, split=config.data.split, val_fraction=config.data.val_fraction, seed=config.data.split_seed
    )
    if splits.train.task == "multilabel":
        _refuse_settings_of_classes(config)
    if config.data.unlabeled is None:
        return _used_share(splits, config)
    if config.distillation.mode == "none" or config.teacher.spec == "none":
        raise DataError("images without labels need a teacher to answer them; leave out --unlabeled")
    held_out = [part for part in (splits.val, splits.test) if part is not None]
    unlabeled, copies = find_unlabeled(Path(config.data.unlabeled), held_out)
    left_out = f"; {len(copies)} left out, which are held-out images, such as {copies[0]}" if copies else ""
    log.info(f"{len(unlabeled)} images without labels{left_out}")
    return replace(_used_share(splits, config), unlabeled=unlabeled)


def refuse_several_labels(images: ImageSet, what: str) -> None:
    """Raises DeitkitError where an image may have several labels, which `what` has no answer for."""
    if images.task == "multilabel":
        raise DataError(f"{what} needs one class an image, and those in {images.root} have several labels")


def _refuse_settings_of_classes(config: Config) -> None:
    """Raises DeitkitError for settings that mean nothing where an image may have several labels."""
    for wrong, what in (
        (
            config.train.loss == "cross-entropy",
            "train.loss cross-entropy is for one class an image; use bce",
        ),
        (config.distillation.mode == "dist", "distillation.mode dist compares softmaxes; use soft or hard"),
        (config.distillation.standardise, "distillation.standardise ranks classes; leave it out"),
        (config.data.unlabeled is not None, "data.unlabeled needs one class an image; leave it out"),
        (
            config.teacher.soft_labels is not None,
            "teacher.soft_labels are of one class an image; use a live teacher",
        ),
    ):
        if wrong:
            raise DataError(f"the images have several labels, and {what}")


def _used_share(splits: Splits, config: Config) -> Splits:
    """The shares of training and validation images that are used."""
    seed = config.data.split_seed
    train_share, eval_share = config.data.train_fraction, config.data.eval_fraction
    if train_share == eval_share == 1:
        return splits
    train, val = splits.train.keep_fraction(train_share, seed), splits.val.keep_fraction(eval_share, seed)
    how = f"{splits.how}; {len(train)} of {len(splits.train)} and {len(val)} of {len(splits.val)} images used"
    return replace(splits, train=train, val=val, how=how)


def open_pixels(
    images: ImageSet, decoder: Decoder, config: Config, on_progress: Callable[[int], None]
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """The images decoded, from the user's cache where they are there; and which cannot be read, and why."""
    return open_store(
        images,
        decoder,
        cache_dir=default_cache_dir(),
        limit_bytes=int(config.data.cache_gb * 1e9),
        workers=config.data.workers or os.cpu_count() or 1,
        on_progress=on_progress,
    )


def open_data(splits: Splits, config: Config) -> Dataset:
    """Decodes every split once; unreadable images are dropped up to 1 % of all, beyond that refused."""
    size = config.student.image_size
    assert size is not None, "choose_student comes first"
    stored = (round(size[0] * _CACHE_SCALE), round(size[1] * _CACHE_SCALE))
    evaluated = Decoder(size, "center_crop", config.data.eval_crop)
    everything = splits.train.joined(splits.unlabeled) if splits.unlabeled is not None else splits.train
    total = sum(len(images) for images in (everything, splits.val, splits.test) if images is not None)
    skipped: list[tuple[str, str]] = []
    with log.progress_bar("decoding", total) as advance:

        def part(images: ImageSet, decoder: Decoder) -> Split:
            store, unreadable = open_pixels(images, decoder, config, advance)
            kept = np.setdiff1d(np.arange(len(images)), [i for i, _ in unreadable])
            skipped.extend((str(images.full_path(i)), reason) for i, reason in unreadable)
            return Split(images, store).subset(kept)

        pool = part(everything, Decoder(stored, "resize"))
        val = part(splits.val, evaluated)
        test = part(splits.test, evaluated) if splits.test is not None else None
    train = pool.subset(np.flatnonzero(has_label(pool.images.labels)))
    refuse_many_unreadable(skipped, total)
    return Dataset(splits, train, pool, val, test, tuple(skipped))
