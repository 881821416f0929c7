"""Counter-based random numbers: every value is a hash of a key and a slot, nothing keeps a state.

A view's key is a hash of (seed, epoch, image, repeat); each random number used for that view is a hash of
its key and the number of its use, the slot. So any view can be made again bit for bit, in any order, by any
number of workers or processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)


def hashed(key: NDArray[np.uint64] | int, value: NDArray[np.integer] | int) -> NDArray[np.uint64]:
    """Mixes `key` and `value` into 64 bits (splitmix64: Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x: NDArray[np.uint64] = (
            np.asarray(key, np.uint64) + (np.asarray(value).astype(np.uint64) + np.uint64(1)) * _STEP
        )
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
        return mixed


def uniform(keys: NDArray[np.uint64], slot: int) -> NDArray[np.float64]:
    """A number in [0, 1) per key. Numbers of different slots are independent."""
    return (hashed(keys, slot) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(keys: NDArray[np.uint64], slot: int) -> NDArray[np.float64]:
    """A standard normal number per key (Box-Muller). Uses slots `slot` and `slot + 1`."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(keys, slot)))
    return radius * np.cos(2.0 * np.pi * uniform(keys, slot + 1))


def image_keys(num_images: int, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """A key per image (N,), from which the keys of its views in that epoch are hashed."""
    return hashed(hashed(hashed(seed, 0), epoch), np.arange(num_images))


def view_keys(num_images: int, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Keys (N,) of one view per image, in the order of the images: the first view that `plan_epoch` makes."""
    return hashed(image_keys(num_images, seed=seed, epoch=epoch), 0)
