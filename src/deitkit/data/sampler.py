"""Plans epochs: which images form a batch, and the key of each view. Pure functions of the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rng import hashed, image_keys


@dataclass(frozen=True)
class Batch:
    """The views of one optimizer step: image indices (B,), view keys (B,), and the views' size.

    rows: which of them this process makes; None for all.
    """

    indices: NDArray[np.int64]
    keys: NDArray[np.uint64]
    image_size: tuple[int, int] | None = None  # height, width; None for the student's
    rows: range | None = None

    def below(self, index: int) -> Batch:
        """The batch without the images from `index` on."""
        kept = self.indices < index
        return replace(self, indices=self.indices[kept], keys=self.keys[kept])


@dataclass(frozen=True)
class Sampler:
    """The batches of every epoch of a run; see `plan_epoch`."""

    num_images: int  # labelled
    batch_size: int
    repeats: int = 1
    seed: int = 0
    num_unlabeled: int = 0
    unlabeled_share: float = 0.0

    def epoch(self, epoch: int) -> list[Batch]:
        """The batches of an epoch (from 0)."""
        return plan_epoch(
            self.num_images,
            batch_size=self.batch_size,
            repeats=self.repeats,
            seed=self.seed,
            epoch=epoch,
            num_unlabeled=self.num_unlabeled,
            unlabeled_share=self.unlabeled_share,
        )

    @cached_property
    def steps_per_epoch(self) -> int:
        return len(self.epoch(0))


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Optimizer steps in an epoch of `num_images` views; no image is left out."""
    return -(-num_images // batch_size)


def plan_epoch(
    num_images: int,
    *,
    batch_size: int,
    repeats: int,
    seed: int,
    epoch: int,
    num_unlabeled: int = 0,
    unlabeled_share: float = 0.0,
) -> list[Batch]:
    """The batches of one epoch: `num_images` views, rounded up to whole repeats, in random order.

    With `repeats` > 1 a batch holds that many views of each of its images (repeated augmentation, Berman et
    al., arXiv 1902.05509; Hoffer et al., arXiv 1901.09335), and an epoch visits 1/repeats of the images, as
    in DeiT, but on one device and with any number of images. Batch sizes differ by at most one image, so
    that none is too small.

    Unlabelled images, with indices from `num_images` on, fill `unlabeled_share` of each batch. If there are
    few of them, an epoch repeats them; if there are many, it does not show all.
    """
    beside = max(1, round(batch_size * unlabeled_share / repeats)) if num_unlabeled else 0
    own_keys = image_keys(num_images + 1, seed=seed, epoch=epoch)
    own_keys, unlabeled_key = own_keys[:-1], int(own_keys[-1])
    order = np.argsort(own_keys, kind="stable")[: -(-num_images // repeats)]
    labelled = max(1, batch_size - beside * repeats)
    parts = np.array_split(order, min(steps_per_epoch(num_images, labelled), len(order)))
    extra, extra_keys = _repeated_passes(num_unlabeled, len(parts) * beside, unlabeled_key)
    batches = []
    for step, images in enumerate(parts):
        # Tiled, not interleaved: mixup pairs neighbours, which must be different images.
        unlabelled = slice(step * beside, (step + 1) * beside)
        keys = np.concatenate([own_keys[images], extra_keys[unlabelled]])
        images = np.concatenate([images, num_images + extra[unlabelled]])
        repeat = np.repeat(np.arange(repeats), len(images))
        batches.append(Batch(np.tile(images, repeats), hashed(np.tile(keys, repeats), repeat)))
    return batches


def _repeated_passes(num_images: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The first `count` images and keys of repeated passes over all images, each pass in another order."""
    passes = -(-count // num_images) if num_images else 0
    keys = [hashed(hashed(seed, i), np.arange(num_images)) for i in range(passes)]
    orders = [np.argsort(k, kind="stable") for k in keys]
    images = np.concatenate([np.zeros(0, np.int64), *orders])
    return images[:count], np.concatenate([np.zeros(0, np.uint64), *map(np.sort, keys)])[:count]
