"""Epochs show each image once, however batches are shared out, in orders like random ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deitkit.data.loader import prefetch
from deitkit.data.sampler import Batch, ClassShares, plan_epoch


def orders(images: int, epochs: int, batch_size: int = 32) -> list[np.ndarray]:
    planned = (
        plan_epoch(images, batch_size=batch_size, repeats=1, seed=5, epoch=epoch) for epoch in range(epochs)
    )
    return [np.concatenate([batch.indices for batch in batches]) for batches in planned]


@pytest.mark.parametrize("images", [1, 31, 97, 256])  # which divide by neither batches nor ranks
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [0, 3])
def test_each_image_once_at_any_world_size_and_worker_count(images, world, workers):
    def share(batch: Batch) -> list[np.ndarray]:
        return [batch.indices[rank::world] for rank in range(world)]

    batches = plan_epoch(images, batch_size=32, repeats=1, seed=1, epoch=2)
    shown = [part for parts in prefetch(share, batches, workers) for part in parts]
    assert sorted(np.concatenate(shown).tolist()) == list(range(images))


def test_epochs_are_as_far_from_sorted_as_random_orders():
    images, epochs = 2000, 40
    found = np.stack(orders(images, epochs))
    # Neighbours in a random permutation of n are (n + 1) / 3 apart on average.
    apart = np.abs(np.diff(found, axis=1)).mean()
    assert abs(apart / ((images + 1) / 3) - 1) < 0.01
    # Each image's places over the epochs: mean and deviation of a uniform distribution.
    places = np.argsort(found, axis=1) / images
    assert abs(places.mean() - 0.5) < 0.01 and abs(places.std() - 12**-0.5) < 0.01
    assert np.abs(places.mean(0) - 0.5).max() < 6 * (12 * epochs) ** -0.5
    # The images of a class, which follow each other in a folder, are spread over all batches.
    of_class = np.stack([(row.reshape(40, 50) < 200).mean(1) for row in found])
    assert 0.5 < of_class.var() / (0.1 * 0.9 / 50 * (images - 50) / (images - 1)) < 1.5
    # One epoch says nothing of the next.
    follows = [abs(np.corrcoef(a, b)[0, 1]) for a, b in itertools.pairwise(places)]
    assert np.mean(follows) < 2 * images**-0.5


@pytest.mark.parametrize("shares", [None, ClassShares(np.repeat([0, 1], [40, 10]), 0.0)])
def test_views_are_shown_again_in_another_order(shares):
    """With `views`, epoch e shows those of epoch e mod `views`; the order is what it is without."""

    def plan(epoch: int, views: int | None) -> tuple[np.ndarray, np.ndarray]:
        batches = plan_epoch(
            50, batch_size=8, repeats=1, views=views, seed=3, epoch=epoch, num_unlabeled=5,
            unlabeled_share=0.5, shares=shares,
        )  # fmt: skip
        return np.concatenate([b.indices for b in batches]), np.concatenate([b.keys for b in batches])

    shown = [set(plan(epoch, 2)[1].tolist()) for epoch in range(4)]
    if shares is None:  # with shares, epochs show other images of a large class
        assert shown[0] == shown[2] and shown[1] == shown[3]
    assert not shown[0] & shown[1]
    assert len(set.union(*shown)) <= 2 * 3 * (50 + 50)
    for epoch in range(4):
        (images, keys), (own_images, own_keys) = plan(epoch, 2), plan(epoch, None)
        labelled = images < 50
        assert np.array_equal(images[labelled], own_images[labelled])
        assert (epoch < 2) == np.array_equal(keys, own_keys)
    assert not np.array_equal(plan(0, 2)[0], plan(2, 2)[0])
