"""A folder of images, split and decoded once, ready for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import log
from ..config import AugmentConfig, DataConfig, TrainConfig
from ..errors import DataError
from ..io import write_json
from ..tasks import Task
from .cache import Decoder, DevicePixels, PixelStore, on_device, open_pixels, refuse_many_unreadable
from .image_set import ImageSet, has_label
from .loader import TrainingViews
from .sampler import SAMPLER_POWERS, ClassShares, Sampler
from .splits import Splits, load_splits
from .unlabeled import find_unlabeled

_CACHE_SCALE = 1.15  # stored side over the view's: a crop is then rarely enlarged by much


@dataclass(frozen=True)
class Split:
    """The readable images of one split and their pixels."""

    images: ImageSet
    store: PixelStore

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.images.labels)

    def subset(self, indices: NDArray[np.int64]) -> Split:
        return Split(self.images.subset(indices), self.store.subset(indices))


@dataclass(frozen=True)
class Dataset:
    """All splits. Training images are stored a little larger than a view, the others as evaluated."""

    splits: Splits
    train: Split
    pool: Split  # training images, then unlabelled ones
    val: Split
    test: Split | None
    skipped: tuple[tuple[str, str], ...]  # (path, reason)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits.train.classes

    @property
    def task(self) -> Task:
        return self.splits.train.task

    @property
    def num_unlabeled(self) -> int:
        """Unlabelled images, which come last in `pool`."""
        return len(self.pool.images) - len(self.train.images)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the training images' names, sizes, labels and classes, wherever the folder lies."""
        return self.pool.images.fingerprint(times=False)

    def views(
        self, augment: AugmentConfig, image_size: tuple[int, int], device: torch.device
    ) -> TrainingViews:
        """Makes augmented training views of `pool` on `device`."""
        labels, num_classes = self.pool.images.labels, len(self.classes)
        store = self._on_gpu if device.type == "cuda" else self.pool.store
        return TrainingViews(store, labels, num_classes, augment, image_size, device)

    @cached_property
    def _on_gpu(self) -> PixelStore | DevicePixels:
        """The pixels of `pool` in the GPU's memory, if they take less than half of what is free there."""
        free, _ = torch.cuda.mem_get_info()
        with log.progress_bar("copying images to the GPU", len(self.pool.store)) as advance:
            return on_device(self.pool.store, torch.device("cuda"), free // 2, advance)

    def sampler(self, train: TrainConfig, data: DataConfig, *, unlabeled: bool) -> Sampler:
        """The batches of every epoch; with unlabelled images only if a teacher labels them."""
        assert data.views != "auto", "it is resolved"
        return Sampler(
            len(self.train.images),
            batch_size=train.batch_size,
            repeats=data.repeats,
            views=data.views,
            seed=train.seed,
            num_unlabeled=self.num_unlabeled if unlabeled else 0,
            unlabeled_share=data.unlabeled_share,
            shares=self.class_shares(train.balance),
        )

    def class_shares(self, balance: str) -> ClassShares | None:
        """The shares by which `train.balance` draws the classes; None to draw each image equally often."""
        power = SAMPLER_POWERS.get(balance)
        return None if power is None else ClassShares(self.train.images.labels, power)

    def write_lists(self, run: Path) -> None:
        """Writes `split.json`, the images of each split, and `skipped.json`, the unreadable files."""
        self.splits.write(run / "split.json")
        write_json(run / "skipped.json", [{"path": p, "reason": r} for p, r in self.skipped])
        if self.skipped:
            log.info(f"{run}/skipped.json lists the unreadable images")


def find_splits(data: Path, config: DataConfig) -> Splits:
    """The splits of the images in `data`, with the unlabelled images of `config.unlabeled`.

    Raises DataError if the folder cannot be used.
    """
    splits = load_splits(data, config)
    used = use_share(splits, config.train_fraction, config.eval_fraction, config.split_seed)
    if config.unlabeled is None:
        return used
    held_out = [part for part in (splits.val, splits.test) if part is not None]
    unlabeled, copies = find_unlabeled(Path(config.unlabeled), held_out)
    left_out = f"; {len(copies)} left out as copies of held-out images, such as {copies[0]}" if copies else ""
    log.info(f"{len(unlabeled)} unlabelled images{left_out}")
    return replace(used, unlabeled=unlabeled)


def refuse_multilabel(images: ImageSet, what: str) -> None:
    """Raises DataError if the images are multilabel, which `what` does not support."""
    if images.task == "multilabel":
        raise DataError(f"{what} needs one class per image, and the images in {images.root} are multilabel")


def use_share(splits: Splits, of_train: float, of_val: float, seed: int) -> Splits:
    """The splits with shares of their training and validation images; 1 keeps all."""
    if of_train == of_val == 1:
        return splits
    train, val = splits.train.keep_fraction(of_train, seed), splits.val.keep_fraction(of_val, seed)
    how = f"{splits.how}; {len(train)} of {len(splits.train)} and {len(val)} of {len(splits.val)} images used"
    return replace(splits, train=train, val=val, how=how, duplicates=None)


def open_dataset(
    splits: Splits,
    image_size: tuple[int, int],
    config: DataConfig,
    *,
    view_size: tuple[int, int] | None = None,
) -> Dataset:
    """Decodes every split once. Unreadable images are dropped.

    image_size: height, width of images to evaluate. view_size: of training views; the same if None.
    Raises DataError if more than `config.max_broken` are unreadable, or all of a class or of a split.
    """
    H, W = view_size or image_size
    stored = (round(H * _CACHE_SCALE), round(W * _CACHE_SCALE))
    evaluated = Decoder(image_size, "center_crop", config.eval_crop, config.max_pixels)
    everything = splits.train.joined(splits.unlabeled) if splits.unlabeled is not None else splits.train
    total = sum(len(images) for images in (everything, splits.val, splits.test) if images is not None)
    skipped: list[tuple[str, str]] = []
    with log.progress_bar("decoding", total) as advance:

        def part(images: ImageSet, decoder: Decoder) -> Split:
            store, unreadable = open_pixels(images, decoder, config, advance)
            kept = np.setdiff1d(np.arange(len(images)), [i for i, _ in unreadable])
            skipped.extend((str(images.file(i)), reason) for i, reason in unreadable)
            return Split(images, store).subset(kept)

        pool = part(everything, Decoder(stored, "resize", max_pixels=config.max_pixels))
        val = part(splits.val, evaluated)
        test = part(splits.test, evaluated) if splits.test is not None else None
    train = pool.subset(np.flatnonzero(has_label(pool.images.labels)))
    refuse_many_unreadable(skipped, total, config.max_broken)
    _refuse_unreadable_split(splits, train, val, skipped)
    return Dataset(splits, train, pool, val, test, tuple(skipped))


def _refuse_unreadable_split(
    splits: Splits, train: Split, val: Split, skipped: Sequence[tuple[str, str]]
) -> None:
    """Raises DataError if no training image of a class, or no validation image, can be read."""
    what = "validation image"
    labelled = bool(splits.train.classes)
    gone = (splits.train.counts() > 0) & (train.images.counts() == 0) if labelled else np.zeros(0, bool)
    if gone.any():
        what = f"training image of class {splits.train.classes[int(gone.argmax())]!r}"
    elif len(val.images) > 0:
        return
    path, reason = skipped[0]
    raise DataError(
        f"no {what} can be read ({len(skipped)} files are unreadable, such as {path}: {reason}); "
        "repair them, or add images"
    )
