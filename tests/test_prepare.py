"""What the settings make of a folder before training."""

from __future__ import annotations

import pytest

from deitkit.config import Config
from deitkit.errors import DeitkitError
from deitkit.prepare import find_splits

from .conftest import write_pictures


def test_a_share_of_the_training_images_leaves_validation_alone(pictures):
    whole = find_splits(pictures, Config())
    fewer = find_splits(pictures, Config().override({"data.train_fraction": 0.5}))
    assert fewer.val.paths == whole.val.paths
    assert set(fewer.train.paths) < set(whole.train.paths)
    assert fewer.train.counts().tolist() == [4, 4] and whole.train.counts().tolist() == [9, 9]
    assert "8 of 18" in fewer.how


def test_a_share_of_the_validation_images_leaves_training_and_test_alone(tmp_path):
    for part in ("train", "val", "test"):
        write_pictures(tmp_path / part, count=8)
    splits = find_splits(tmp_path, Config().override({"data.eval_fraction": 0.25}))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 4, 16)


@pytest.mark.parametrize("key", ["data.train_fraction", "data.eval_fraction"])
@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_outside_their_range(pictures, key, share):
    with pytest.raises(DeitkitError, match=key):
        find_splits(pictures, Config().override({key: share}))
