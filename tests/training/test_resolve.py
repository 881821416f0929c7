"""Every "auto" is chosen by the images and the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from deitkit import recipes
from deitkit.config import Config, DataConfig, ResolvedConfig
from deitkit.data.dataset import find_splits
from deitkit.data.image_set import ImageSet
from deitkit.data.splits import Splits
from deitkit.errors import DeitkitError
from deitkit.training import resolve as resolving
from deitkit.training.resolve import resolve
from deitkit.training.session import open_session
from tests.conftest import write_images

CPU = torch.device("cpu")


def splits_of(count: int) -> Splits:
    images = ImageSet(
        Path("nowhere"), tuple(f"{i}.jpg" for i in range(count)), np.arange(count) % 2, ("a", "b")
    )
    return Splits(images, images, None, "made up")


def resolved(count: int, side: int, monkeypatch: pytest.MonkeyPatch, **settings) -> ResolvedConfig:
    monkeypatch.setattr(resolving, "_median_side", lambda *_: side)
    return resolve(recipes.get("small-data").override(settings), splits_of(count), CPU)


@pytest.mark.parametrize(("count", "epochs"), [(100, 200), (2000, 60), (9469, 13), (50_000, 10)])
def test_few_images_are_seen_more_often(count, epochs, monkeypatch):
    config = resolved(count, 300, monkeypatch)
    assert config.train.epochs == epochs and f"{epochs} epochs" in config.reasons


def test_given_epochs_or_a_budget_are_kept(monkeypatch):
    config = resolved(2000, 300, monkeypatch, **{"train.epochs": "7"})
    assert config.train.epochs == 7 and "epochs" not in config.reasons
    config = resolved(2000, 300, monkeypatch, **{"train.budget_s": 60})
    assert "epochs" not in config.reasons


@pytest.mark.parametrize(("side", "image", "patch"), [(32, 32, 4), (64, 64, 8), (300, 96, 12)])
def test_a_cpus_student_has_64_patches_at_any_size(side, image, patch, monkeypatch):
    config = resolved(2000, side, monkeypatch)
    assert config.student.name == "nano"
    assert config.student.image_size == (image, image) and config.student.patch_size == (patch, patch)
    assert f"nano at {image}x{image}" in config.reasons and f"about {side} pixels" in config.reasons


@pytest.fixture
def start(tmp_path, monkeypatch) -> Path:
    """A hybrid's weights, and those of its stem, wherever they are looked for."""
    file = tmp_path / "weights"
    file.write_bytes(b"")
    monkeypatch.setattr(resolving, "packaged_file", lambda package: file)
    monkeypatch.setattr(resolving, "shipped_file", lambda student: file)
    monkeypatch.setattr(resolving, "recognition", lambda files, max_pixels: 0.27)
    return file


@pytest.mark.parametrize(
    ("side", "changes", "recipe"),
    [
        (81, {}, "hybrid"),
        (300, {"train.epochs": 3, "data.split": "blocks", "teacher.fit": "probe"}, "hybrid"),
        (80, {}, "small-data"),
        (300, {"student.name": "nano"}, "small-data"),
        (300, {"student.initial_weights": "none"}, "small-data"),
        (300, {"teacher.spec": "none"}, "small-data"),
        (300, {"distillation.mode": "hard"}, "small-data"),
        (300, {"optim.lr": 1e-3}, "small-data"),
        (300, {"train.start_size": 48}, "small-data"),
    ],
)
def test_the_recipe_suits_the_images(side, changes, recipe, start, monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: side)
    assert resolving.recipe_for(changes, splits_of(20), CPU) == recipe
    assert resolving.recipe_for(changes, splits_of(20), torch.device("cuda")) == "small-data"


def test_images_unlike_imagenets_are_none_for_a_hybrid(start, monkeypatch, caplog):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 300)
    monkeypatch.setattr(resolving, "recognition", lambda files, max_pixels: len(list(files)) / 1000)
    with caplog.at_level("INFO"):
        assert resolving.recipe_for({}, splits_of(200), CPU) == "small-data"  # 64 images are asked about
    assert "unlike ImageNet's" in caplog.text and "6 % sure on average" in caplog.text


def test_without_its_weights_there_is_no_hybrid(start, monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 300)
    start.unlink()
    assert resolving.recipe_for({}, splits_of(20), CPU) == "small-data"
    monkeypatch.setattr(resolving, "packaged_file", lambda package: None)
    assert resolving.recipe_for({}, splits_of(20), CPU) == "small-data"


def test_a_hybrid_needs_fewer_epochs_and_on_few_images_more_views(monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 300)
    for images, epochs, views in ((90, 40, 32), (600, 40, 10), (20_000, 10, 4)):
        config = resolve(recipes.get("hybrid"), splits_of(images), CPU)
        assert (config.train.epochs, config.data.views) == (epochs, views)
        assert resolve(recipes.get("small-data"), splits_of(images), CPU).data.views is None
    config = resolve(recipes.get("hybrid"), splits_of(2000), CPU)
    assert config.train.epochs == 20
    assert config.student.image_size == (128, 128) and config.student.patch_size == (32, 32)


def test_a_share_of_the_training_images_leaves_validation_alone(image_folder):
    whole = find_splits(image_folder, DataConfig())
    fewer = find_splits(image_folder, DataConfig(train_fraction=0.5))
    assert fewer.val.paths == whole.val.paths
    assert set(fewer.train.paths) < set(whole.train.paths)
    assert fewer.train.counts().tolist() == [4, 4] and whole.train.counts().tolist() == [9, 9]
    assert "8 of 18" in fewer.how


def test_a_share_of_the_validation_images_leaves_training_and_test_alone(tmp_path):
    for part in ("train", "val", "test"):
        write_images(tmp_path / part, count=8)
    splits = find_splits(tmp_path, DataConfig(eval_fraction=0.25))
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 4, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.start_size": 20}, "train.start_size 20x20 does not fit.*multiple of the patch size 8x8"),
        ({"train.start_size": 32}, "below 32x24"),
        ({"train.start_size": "32,24"}, "below 32x24"),
        ({"train.start_size": 16, "train.start_share": 1.0}, "train.start_share is 1"),
    ],
)
def test_impossible_start_sizes_are_refused(image_folder, settings, message):
    config = Config().override({"student.image_size": "32,24", "student.patch_size": 8} | settings)
    splits = find_splits(image_folder, config.data)
    with pytest.raises(DeitkitError, match=message):
        resolve(config, splits, CPU)


def test_a_gpus_patch_follows_the_size_that_is_asked_for(image_folder, monkeypatch):
    monkeypatch.setattr(resolving, "memory_bytes", lambda device: None)
    config = Config().override({"student.image_size": 224})
    resolved = resolve(config, find_splits(image_folder, config.data), torch.device("cuda"))
    assert resolved.student.patch_size == (16, 16)


def test_a_gpu_takes_a_large_batch_in_parts(monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 300)
    # A micro-batch of base at 224 pixels keeps about 0.12 GB an image.
    cases = [(1024, 85e9, 256), (64, 85e9, 64), (1024, 24e9, 64), (1024, 8e9, 16), (1024, 1e6, 1)]
    for batch, memory, micro in cases:
        monkeypatch.setattr(resolving, "memory_bytes", lambda device, memory=memory: memory)
        config = Config().override(
            {"train.batch_size": batch, "student.name": "base", "student.image_size": 224}
        )
        resolved = resolve(config, splits_of(2000), torch.device("cuda"))
        assert (resolved.train.batch_size, resolved.train.micro_batch_size) == (batch, micro)


@pytest.mark.parametrize("size", [8, "32,16", "8,24"])
def test_possible_start_sizes_are_kept(image_folder, size):
    sizes = {"student.image_size": "32,24", "student.patch_size": 8, "train.start_size": size}
    config = Config().override(sizes)
    resolved = resolve(config, find_splits(image_folder, config.data), CPU)
    assert resolved.train.start_size == config.train.start_size


@pytest.mark.parametrize("key", ["data.train_fraction", "data.eval_fraction"])
@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_shares_outside_their_range(image_folder, key, share):
    with pytest.raises(DeitkitError, match=key):
        open_session(Config().override({key: share}), partial(find_splits, image_folder))


def uneven_splits(counts: tuple[int, ...], val: tuple[int, ...] = (9, 9)) -> Splits:
    def images(of: tuple[int, ...]) -> ImageSet:
        labels = np.repeat(np.arange(len(of)), of)
        return ImageSet(Path("nowhere"), tuple(f"{i}.jpg" for i in range(len(labels))), labels, ("a", "b"))

    return Splits(images(counts), images(val), None, "made up")


@pytest.mark.parametrize(
    ("counts", "settings", "balance"),
    [
        ((100, 100), {}, "none"),
        ((100, 21), {}, "none"),
        ((100, 20), {}, "loss"),
        ((100, 20), {"train.loss": "bce"}, "sqrt-sampler"),
        ((100, 20), {"train.metric": "top1"}, "none"),
        ((100, 20), {"train.balance": "none"}, "none"),
        ((100, 100), {"train.balance": "sampler"}, "sampler"),
    ],
)
def test_uneven_classes_are_balanced_by_a_rule(counts, settings, balance, monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 64)
    config = resolve(recipes.get("small-data").override(settings), uneven_splits(counts), CPU)
    assert config.train.balance == balance
    chosen = balance != "none" and "train.balance" not in settings
    assert (f"train.balance {balance}: classes have from 20 to 100" in config.reasons) == chosen


def test_a_sigmoid_has_no_logits_to_adjust(monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 64)
    asked = recipes.get("small-data").override({"train.balance": "loss", "train.loss": "bce"})
    with pytest.raises(DeitkitError, match=r"train\.balance loss adjusts the logits of a softmax"):
        resolve(asked, splits_of(100), CPU)


@pytest.mark.parametrize(
    ("val", "asked", "metric"),
    [((9, 9), "auto", "top1"), ((90, 9), "auto", "balanced"), ((90, 9), "macro-f1", "macro-f1")],
)
def test_the_metric_suits_the_validation_images(val, asked, metric, monkeypatch):
    monkeypatch.setattr(resolving, "_median_side", lambda *_: 64)
    config = recipes.get("small-data").override({"train.metric": asked})
    assert resolve(config, uneven_splits((50, 50), val), CPU).train.metric == metric
    with pytest.raises(DeitkitError, match="map is for multilabel images"):
        resolve(config.override({"train.metric": "map"}), uneven_splits((50, 50), val), CPU)
