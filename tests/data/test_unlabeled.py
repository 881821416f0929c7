"""Images without labels: found, planned beside the labelled ones, and never a held-out one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from deitkit.config import DataConfig
from deitkit.data.image_set import NO_LABEL
from deitkit.data.rng import view_keys
from deitkit.data.sampler import plan_epoch
from deitkit.data.splits import load_splits
from deitkit.data.unlabeled import find_unlabeled
from deitkit.errors import DeitkitError

from ..conftest import write_images


def splits_of(folder):
    return load_splits(folder, DataConfig())


def test_finds_images_at_any_depth_and_no_held_out_one(tmp_path):
    splits = splits_of(write_images(tmp_path / "labelled", ("cat", "dog"), count=8))
    extra = write_images(tmp_path / "extra", ("x", "y/z"), count=3, side=30)
    held = splits.val.file(0)
    shutil.copy(held, extra / "renamed.png")
    found, copies = find_unlabeled(extra, [splits.val])
    assert len(found) == 6 and set(found.labels) == {NO_LABEL}
    assert copies == [str(extra / "renamed.png")]


def test_only_held_out_images_are_refused(tmp_path):
    splits = splits_of(write_images(tmp_path / "labelled", ("cat", "dog"), count=8))
    (tmp_path / "extra").mkdir()
    shutil.copy(splits.val.file(1), tmp_path / "extra")
    with pytest.raises(DeitkitError, match="not held out already"):
        find_unlabeled(tmp_path / "extra", [splits.val])


def test_joined_sets_keep_their_files(tmp_path):
    splits = splits_of(write_images(tmp_path / "labelled", ("cat", "dog"), count=8))
    found, _ = find_unlabeled(write_images(tmp_path / "extra", ("x",), count=3, side=30), [])
    joined = splits.train.joined(found)
    assert len(joined) == len(splits.train) + 3 and joined.classes == ("cat", "dog")
    assert all(joined.file(i).is_file() for i in range(len(joined)))
    assert (joined.labels[-3:] == NO_LABEL).all()


def test_both_may_move_and_are_the_same_images(tmp_path):
    def joined(labelled, extra):
        found, _ = find_unlabeled(tmp_path / extra, [])
        return splits_of(tmp_path / labelled).train.joined(found)

    write_images(tmp_path / "labelled", ("cat", "dog"), count=8)
    write_images(tmp_path / "extra", ("x", "y"), count=3, side=30)
    before = joined("labelled", "extra").fingerprint(times=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "labelled").rename(tmp_path / "elsewhere" / "l")
    (tmp_path / "extra").rename(tmp_path / "moved")
    assert joined("elsewhere/l", "moved").fingerprint(times=False) == before
    (tmp_path / "moved" / "x" / "0.png").unlink()
    assert joined("elsewhere/l", "moved").fingerprint(times=False) != before


def test_keys_of_single_views_are_those_of_a_plan():
    plan = plan_epoch(101, batch_size=16, repeats=2, seed=7, epoch=3)
    keys = view_keys(101, seed=7, epoch=3)
    for batch in plan:
        first = len(batch.indices) // 2  # tiled: one view of each image, then the other
        assert (batch.keys[:first] == keys[batch.indices[:first]]).all()
        assert (batch.keys[first:] != keys[batch.indices[first:]]).all()


@pytest.mark.parametrize(("few_or_many", "repeats"), [(3, 1), (500, 1), (40, 2)])
def test_a_plan_mixes_both_at_the_share(few_or_many, repeats):
    settings = dict(batch_size=16, repeats=repeats, seed=1, num_unlabeled=few_or_many, unlabeled_share=0.25)
    first, second = (plan_epoch(60, epoch=e, **settings) for e in (0, 1))
    for batch in first:
        assert (batch.indices >= 60).sum() == 4
    seen = np.concatenate([b.indices for b in first])
    labelled, others = seen[seen < 60], seen[seen >= 60]
    assert len(set(labelled)) == 60 // repeats and others.max() < 60 + few_or_many
    counts = np.bincount(others - 60, minlength=few_or_many)
    assert counts.max() - counts.min() <= repeats  # whole passes, none favoured
    keys = np.concatenate([b.keys for b in first + second])
    assert len(set(keys.tolist())) == len(keys)  # every view is another one


def test_labelled_plan_is_the_same_without_them():
    plain = plan_epoch(20, batch_size=8, repeats=1, seed=5, epoch=2)
    beside = plan_epoch(20, batch_size=16, repeats=1, seed=5, epoch=2, num_unlabeled=9, unlabeled_share=0.5)
    for a, b in zip(plain, beside, strict=True):
        assert b.indices[: len(a.indices)].tolist() == a.indices.tolist()
        assert b.keys[: len(a.keys)].tolist() == a.keys.tolist()
