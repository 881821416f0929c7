"""Which image is seen when, and with what randomness: pure functions of the seed.

Nothing here keeps a state. A view's key is a hash of (seed, epoch, image, repeat), and every random
number behind that view is a hash of its key and a slot. So any view can be made again, bit for bit,
in any order, by any number of workers or processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def hashed(key: NDArray[np.uint64] | int, value: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """`key` and `value` stirred into 64 new bits (splitmix64: Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(key, np.uint64) + (np.asarray(value).astype(np.uint64) + np.uint64(1)) * _STEP
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(keys: NDArray[np.uint64], slot: int) -> NDArray[np.float64]:
    """One number in [0, 1) for each key; another slot gives an independent one."""
    return (hashed(keys, slot) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: NDArray[np.uint64], slot: int) -> NDArray[np.float64]:
    """One standard normal number for each key (Box-Muller); uses slots `slot` and `slot + 1`."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(keys, slot)))
    return radius * np.cos(2.0 * np.pi * uniform(keys, slot + 1))


@dataclass(frozen=True)
class Batch:
    """The views of one optimizer update: image indices (b,), view keys (b,), and the views' size."""

    indices: NDArray[np.int64]
    keys: NDArray[np.uint64]
    image_size: tuple[int, int] | None = None  # height, width in pixels; None: the student's

    def below(self, index: int) -> Batch:
        """The batch without images from `index` on."""
        kept = self.indices < index
        return replace(self, indices=self.indices[kept], keys=self.keys[kept])


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Optimizer updates in an epoch of `num_images` views; no image is left out."""
    return -(-num_images // batch_size)


def image_keys(num_images: int, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """A key for each image (n,), from which the keys of its views in that epoch are made."""
    return hashed(hashed(hashed(seed, 0), epoch), np.arange(num_images))


def view_keys(num_images: int, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Keys (n,) of one view of each image, in the images' order: the first that `plan_epoch` makes of it."""
    return hashed(image_keys(num_images, seed=seed, epoch=epoch), 0)


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
    """The batches of one epoch: `num_images` views (rounded up to whole repeats) in random order.

    With `repeats` > 1 a batch holds so many views of each of its images (repeated augmentation, Berman et
    al., arXiv 1902.05509; Hoffer et al., arXiv 1901.09335), and an epoch visits 1/repeats of the images, as
    in DeiT; it works on one device and for any number of images. Batches differ in size by one image at
    most, so that none is too small.

    Unlabelled images, numbered from `num_images` on, fill `unlabeled_share` of each batch beside the
    labelled ones; few of them come round several times an epoch, many not all in one.
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
        # Tiled, not interleaved: neighbours are mixed with each other and must be different images.
        unlabelled = slice(step * beside, (step + 1) * beside)
        keys = np.concatenate([own_keys[images], extra_keys[unlabelled]])
        images = np.concatenate([images, num_images + extra[unlabelled]])
        repeat = np.repeat(np.arange(repeats), len(images))
        batches.append(Batch(np.tile(images, repeats), hashed(np.tile(keys, repeats), repeat)))
    return batches


def _repeated_passes(num_images: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The first `count` images and keys of passes over all images, each in an order of its own."""
    passes = -(-count // num_images) if num_images else 0
    keys = [hashed(hashed(seed, i), np.arange(num_images)) for i in range(passes)]
    orders = [np.argsort(k, kind="stable") for k in keys]
    images = np.concatenate([np.zeros(0, np.int64), *orders])
    return images[:count], np.concatenate([np.zeros(0, np.uint64), *map(np.sort, keys)])[:count]
