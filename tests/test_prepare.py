"""What is settled before training, by the data and the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deitkit import prepare, recipes
from deitkit.data.images import ImageSet
from deitkit.data.splits import Splits

CPU = torch.device("cpu")


def splits_of(count: int) -> Splits:
    images = ImageSet(
        Path("nowhere"), tuple(f"{i}.jpg" for i in range(count)), np.arange(count) % 2, ("a", "b")
    )
    return Splits(images, images, None, "made up")


def chosen(count: int, side: int, monkeypatch: pytest.MonkeyPatch, **settings):
    monkeypatch.setattr(prepare, "_median_side", lambda images: side)
    config = recipes.get("small-data").override(settings)
    return prepare.choose_student(config, splits_of(count), CPU)


@pytest.mark.parametrize(("count", "epochs"), [(100, 200), (2000, 60), (9469, 13), (50_000, 10)])
def test_few_images_are_seen_more_often(count, epochs, monkeypatch):
    config, why = chosen(count, 300, monkeypatch)
    assert config.train.epochs == epochs and f"{epochs} epochs" in why


def test_who_names_the_epochs_or_a_budget_is_obeyed(monkeypatch):
    config, why = chosen(2000, 300, monkeypatch, **{"train.epochs": "7"})
    assert config.train.epochs == 7 and "epochs" not in why
    _, why = chosen(2000, 300, monkeypatch, **{"train.budget_s": 60})
    assert "epochs" not in why


@pytest.mark.parametrize(("side", "image", "patch"), [(32, 32, 4), (64, 64, 8), (300, 96, 12)])
def test_a_cpus_student_has_64_patches_at_any_size(side, image, patch, monkeypatch):
    config, why = chosen(2000, side, monkeypatch)
    assert config.student.name == "nano"
    assert config.student.image_size == (image, image) and config.student.patch_size == (patch, patch)
    assert f"nano at {image}x{image}" in why and f"about {side} pixels" in why
