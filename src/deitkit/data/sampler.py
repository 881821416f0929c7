"""Plans epochs: which images form a batch, and the key of each view. Pure functions of the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rng import hashed, image_keys, uniform

# Samplers of `train.balance`: an image of a class with n images is drawn in proportion to n^(power - 1), so
# the class has a share of n^power.
SAMPLER_POWERS: Mapping[str, float] = {"sampler": 0.0, "sqrt-sampler": 0.5}


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
class ClassShares:
    """Draws classes by other shares than they have: n^power for a class with n images.

    power: 0 shows each class equally often, 0.5 by the square root of its images (Mahajan et al., arXiv
    1805.00932, section 2.2). labels: (N,) the class of each labelled image.
    """

    labels: NDArray[np.int64]
    power: float


@dataclass(frozen=True)
class Sampler:
    """The batches of every epoch of a run; see `plan_epoch`.

    views: different views of each image; None for new ones in every epoch. shares: None draws each image
    equally often.
    """

    num_images: int  # labelled
    batch_size: int
    repeats: int = 1
    views: int | None = None
    seed: int = 0
    num_unlabeled: int = 0
    unlabeled_share: float = 0.0
    shares: ClassShares | None = field(default=None, compare=False)

    def epoch(self, epoch: int) -> list[Batch]:
        """The batches of an epoch (from 0)."""
        return plan_epoch(
            self.num_images,
            batch_size=self.batch_size,
            repeats=self.repeats,
            views=self.views,
            seed=self.seed,
            epoch=epoch,
            num_unlabeled=self.num_unlabeled,
            unlabeled_share=self.unlabeled_share,
            shares=self.shares,
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
    views: int | None = None,
    seed: int,
    epoch: int,
    num_unlabeled: int = 0,
    unlabeled_share: float = 0.0,
    shares: ClassShares | None = None,
) -> list[Batch]:
    """The batches of one epoch: `num_images` views, rounded up to whole repeats, in random order.

    With `repeats` > 1 a batch holds that many views of each of its images (repeated augmentation, Berman et
    al., arXiv 1902.05509; Hoffer et al., arXiv 1901.09335), and an epoch visits 1/repeats of the images, as
    in DeiT, but on one device and with any number of images. Batch sizes differ by at most one image, so
    that none is too small.

    With `views` V, epoch e shows the views of epoch e mod V again, in an order of its own.

    Unlabelled images, with indices from `num_images` on, fill `unlabeled_share` of each batch. If there are
    few of them, an epoch repeats them; if there are many, it does not show all.

    With `shares`, an epoch has as many views, but shows some images of small classes several times, as
    different views, and leaves out some of large ones; over the epochs those of a class are shown about
    equally often.
    """
    beside = max(1, round(batch_size * unlabeled_share / repeats)) if num_unlabeled else 0
    own_keys = image_keys(num_images + 1, seed=seed, epoch=epoch)
    shown_keys = own_keys
    if views is not None:
        shown_keys = image_keys(num_images + 1, seed=seed, epoch=epoch % views)
    shown_keys, unlabeled_key = shown_keys[:-1], int(shown_keys[-1])
    count = -(-num_images // repeats)
    order, order_keys = _order(own_keys[:-1], shown_keys, count, shares, seed, epoch)
    labelled = max(1, batch_size - beside * repeats)
    steps = min(steps_per_epoch(num_images, labelled), len(order))
    parts = zip(np.array_split(order, steps), np.array_split(order_keys, steps), strict=True)
    extra, extra_keys = _repeated_passes(num_unlabeled, steps * beside, unlabeled_key)
    batches = []
    for step, (images, keys) in enumerate(parts):
        # Tiled, not interleaved: mixup pairs neighbours, which must be different images.
        unlabelled = slice(step * beside, (step + 1) * beside)
        keys = np.concatenate([keys, extra_keys[unlabelled]])
        images = np.concatenate([images, num_images + extra[unlabelled]])
        repeat = np.repeat(np.arange(repeats), len(images))
        batches.append(Batch(np.tile(images, repeats), hashed(np.tile(keys, repeats), repeat)))
    return batches


def _order(
    own_keys: NDArray[np.uint64],
    shown_keys: NDArray[np.uint64],
    count: int,
    shares: ClassShares | None,
    seed: int,
    epoch: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The labelled images of an epoch, in the order of `own_keys`, and the key of each one's views."""
    if shares is None:
        order = np.argsort(own_keys, kind="stable")[:count]
        return order, shown_keys[order]
    per_class = np.bincount(shares.labels)
    weights = np.where(per_class > 0, np.power(per_class.astype(np.float64), shares.power), 0.0)
    wanted = count * weights / weights.sum()  # images of each class per epoch
    draws_key = hashed(hashed(seed, 2), epoch)
    # Systematic sampling: whole numbers that add up to `count`, each within one of what is wanted.
    edges = np.floor(np.append(0.0, wanted.cumsum()) + uniform(draws_key, 0)).astype(np.int64)
    edges[-1] = count + edges[0]
    images: list[NDArray[np.int64]] = []
    own: list[NDArray[np.uint64]] = []
    shown: list[NDArray[np.uint64]] = []
    for k, drawn in enumerate(np.diff(edges)):
        members = np.flatnonzero(shares.labels == k)
        if drawn == 0:
            continue
        first = int(epoch * wanted[k])  # where the epochs before stopped, so that all have their turn
        passes = range(first // len(members), (first + drawn - 1) // len(members) + 1)
        turns = [members[np.argsort(hashed(hashed(hashed(seed, 3), p), members))] for p in passes]
        skipped = first - passes[0] * len(members)
        turn = np.repeat(np.arange(len(passes)), len(members))[skipped : skipped + drawn]
        of_class = np.concatenate(turns)[skipped : skipped + drawn]
        images.append(of_class)
        # The first view of an image in an epoch is the one that it has without shares.
        for keys, of in ((own, own_keys), (shown, shown_keys)):
            keys.append(np.where(turn == 0, of[of_class], hashed(of[of_class], turn)))
    order = np.argsort(np.concatenate(own), kind="stable")
    return np.concatenate(images)[order], np.concatenate(shown)[order]


def _repeated_passes(num_images: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The first `count` images and keys of repeated passes over all images, each pass in another order."""
    passes = -(-count // num_images) if num_images else 0
    keys = [hashed(hashed(seed, i), np.arange(num_images)) for i in range(passes)]
    orders = [np.argsort(k, kind="stable") for k in keys]
    images = np.concatenate([np.zeros(0, np.int64), *orders])
    return images[:count], np.concatenate([np.zeros(0, np.uint64), *map(np.sort, keys)])[:count]
