"""Planted wrong labels and foreign images are found in features that separate the classes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from deitkit.errors import DependencyError
from deitkit.evaluation.label_check import find_outliers, find_wrong_labels
from deitkit.teachers.probe import out_of_fold

ALONE = np.arange(300)


@pytest.fixture
def features() -> torch.Tensor:
    """Three clusters of 100 images, in order."""
    centres = 12 * torch.eye(3, 16).repeat_interleave(100, 0)
    return centres + torch.randn(300, 16, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(3).repeat_interleave(100)


def test_probabilities_are_of_images_that_were_left_out(features):
    probabilities = out_of_fold(features, LABELS, 3, torch.from_numpy(ALONE), seed=0)
    assert probabilities.shape == (300, 3) and torch.allclose(probabilities.sum(1), torch.ones(300))
    assert (probabilities.argmax(1) == LABELS).double().mean() > 0.95
    # A label of its own for one image cannot be known by the others.
    odd = LABELS.clone()
    odd[5] = 2
    assert out_of_fold(features, odd, 3, torch.from_numpy(ALONE), seed=0)[5].argmax() == 0


def test_copies_do_not_vouch_for_each_other(features):
    """Twenty copies of one image, all with the same wrong label."""
    copied = torch.cat([features, features[:1].repeat(20, 1)])
    labels = torch.cat([LABELS, torch.full((20,), 2)])
    groups = np.concatenate([np.arange(300), np.zeros(20, np.int64)])
    apart = out_of_fold(copied, labels, 3, torch.arange(320), seed=0)[300:, 2]
    together = out_of_fold(copied, labels, 3, torch.from_numpy(groups), seed=0)[300:, 2]
    assert together.max() < apart.min()


def test_planted_labels_are_found(features):
    pytest.importorskip("cleanlab")
    wrong = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:15]
    planted = LABELS.clone()
    planted[wrong] = (planted[wrong] + 1) % 3
    found = find_wrong_labels(features, planted, 3, ALONE)
    assert len({w.index for w in found} & set(wrong.tolist())) >= 12 and len(found) <= 18
    assert all(w.suggested == LABELS[w.index] for w in found if w.index in wrong)
    doubts = [w.probability_of_label for w in found]
    assert doubts == sorted(doubts)


def test_without_cleanlab(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(DependencyError, match=r'pip install "deitkit\[check\]"'):
        find_wrong_labels(features, LABELS, 3, ALONE)


def test_foreign_images_are_the_farthest(features):
    features[17] = torch.tensor([0.0] * 15 + [12.0])
    [first, *_] = found = find_outliers(features, ALONE)
    assert first.index == 17 and first.distance > 3 * first.typical and len(found) < 30


def test_a_copy_does_not_make_a_foreign_image_usual(features):
    foreign = torch.tensor([0.0] * 15 + [12.0])
    copied = torch.cat([features, foreign.repeat(12, 1)])
    groups = np.concatenate([np.arange(300), np.full(12, 300)])
    assert {o.index for o in find_outliers(copied, groups)} >= set(range(300, 312))


def test_two_images_are_no_outliers():
    assert find_outliers(torch.eye(2, 4), np.arange(2)) == []
