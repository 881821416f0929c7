"""Views can be made again bit for bit, and are distributed as the settings say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from deitkit.config import AugmentConfig
from deitkit.data import color
from deitkit.data.augment import OPERATIONS, ViewMaker, _crop_boxes, _draw_operations
from deitkit.data.cache import PixelStore
from deitkit.data.loader import TrainingViews, prefetch
from deitkit.data.mixup import mix_pairs
from deitkit.data.rng import hashed, normal, uniform
from deitkit.data.sampler import Batch, ClassShares, plan_epoch

EVERYTHING = AugmentConfig(color_jitter=0.3, erasing=0.6, three_augment=True)
NOTHING = AugmentConfig(
    crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, randaugment_ops=0, erasing=0, mixup=0, cutmix=0
)
COUNT = 22


def some_pixels(count: int, side: int = 24) -> np.ndarray:
    """Smooth images with some noise, (count, 3, side, side) uint8."""
    rng = np.random.RandomState(5)
    coarse = torch.from_numpy(rng.rand(count, 3, 4, 4))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").numpy()
    return (smooth * 255 + rng.randn(count, 3, side, side) * 8).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stock() -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    pixels = torch.from_numpy(some_pixels(COUNT))
    aspects = np.random.RandomState(1).uniform(0.5, 2, COUNT).astype(np.float32)
    return pixels, aspects, hashed(77, np.arange(COUNT))


@pytest.fixture(scope="module")
def training_views(stock) -> TrainingViews:
    pixels, aspects, _ = stock
    store = PixelStore(aspects, lambda rows: pixels.numpy()[rows], np.arange(COUNT))
    return TrainingViews(store, np.arange(COUNT) % 3, 3, EVERYTHING, (16, 20), torch.device("cpu"))


def test_view_is_the_same_alone_and_in_any_order(stock):
    pixels, aspects, keys = stock
    make = ViewMaker(EVERYTHING, (16, 20))
    together = make(pixels, aspects, keys)
    for i in range(COUNT):
        assert torch.equal(make(pixels[i : i + 1], aspects[i : i + 1], keys[i : i + 1])[0], together[i])
    order = np.random.RandomState(3).permutation(COUNT)
    assert torch.equal(make(pixels[order], aspects[order], keys[order]), together[order])
    assert torch.equal(make(pixels[order[:5]], aspects[order[:5]], keys[order[:5]]), together[order[:5]])


def test_view_depends_on_its_key(stock):
    pixels, aspects, keys = stock
    make = ViewMaker(EVERYTHING, (16, 16))
    one, two = make(pixels, aspects, keys), make(pixels, aspects, hashed(keys, 1))
    assert all(not torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_only_erased_noise_leaves_the_range(stock):
    pixels, aspects, keys = stock
    views = ViewMaker(replace(EVERYTHING, erasing=0.0), (16, 16))(pixels, aspects, keys)
    assert views.min() >= 0 and views.max() <= 1


def test_nothing_asked_gives_the_image_itself(stock):
    pixels, _, keys = stock
    views = ViewMaker(NOTHING, (24, 24))(pixels, np.ones(COUNT, np.float32), keys)
    assert torch.allclose(views * 255, pixels.float(), atol=0.05)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_mixed_batches_do_not_depend_on_workers(training_views, workers):
    plan = plan_epoch(COUNT, batch_size=5, repeats=2, seed=4, epoch=1)
    expected = [training_views.make(batch) for batch in plan]
    made = list(prefetch(training_views.make, plan, workers))
    assert len(made) == len(expected) > 3
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        assert np.array_equal(a.indices, b.indices)


def test_smaller_views_are_of_the_same_crops_and_labels(training_views):
    """What a key decides are shares of an image's sides: a smaller view is the larger one, shrunk."""
    [batch] = plan_epoch(COUNT, batch_size=COUNT, repeats=1, seed=4, epoch=1)
    smooth = torch.nn.functional.avg_pool2d(training_views.store.fetch(np.arange(COUNT)).float(), 9, 1, 4)
    pixels = smooth.to(torch.uint8).numpy()  # without what a smaller view cannot show
    store = replace(training_views.store, read=lambda rows: pixels[rows])
    augment = replace(EVERYTHING, erasing=0.0, cutmix=0.0, three_augment=False, randaugment_ops=0)
    views = replace(training_views, store=store, augment=augment)
    H, W = views.image_size
    small = views.make(replace(batch, image_size=(H // 2, W // 2)))
    large = views.make(batch)
    assert small.images.shape[-2:] == (H // 2, W // 2)
    shrunk = torch.nn.functional.avg_pool2d(large.images, 2)
    assert (small.images - shrunk).abs().mean() < 0.02
    assert (small.images - shrunk.roll(1, 0)).abs().mean() > 0.06  # what another image's view would give
    assert torch.equal(small.targets, large.targets)
    again = views.make(replace(batch, image_size=(H, W)))
    assert torch.equal(again.images, large.images)


def test_a_smaller_view_does_not_depend_on_its_batch(training_views):
    views = replace(training_views, augment=replace(training_views.augment, mixup=0.0, cutmix=0.0))
    [whole] = plan_epoch(COUNT, batch_size=COUNT, repeats=1, seed=4, epoch=1)
    together = views.make(replace(whole, image_size=(8, 8))).images
    for i in range(COUNT):
        alone = Batch(whole.indices[i : i + 1], whole.keys[i : i + 1], (8, 8))
        assert torch.equal(views.make(alone).images[0], together[i])


def test_an_error_behind_a_worker_arrives():
    def fail(batch: Batch) -> None:
        raise RuntimeError("no pixels")

    plan = plan_epoch(9, batch_size=3, repeats=1, seed=0, epoch=0)
    with pytest.raises(RuntimeError, match="no pixels"):
        list(prefetch(fail, plan, 2))


@pytest.mark.parametrize(("n", "batch_size"), [(5, 8), (5, 2), (100, 32), (97, 10), (1, 4)])
def test_plan_visits_every_image_once(n, batch_size):
    plan = plan_epoch(n, batch_size=batch_size, repeats=1, seed=3, epoch=0)
    assert sorted(np.concatenate([b.indices for b in plan])) == list(range(n))
    assert len(plan) == -(-n // batch_size)
    sizes = [len(b.indices) for b in plan]
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
    assert len(np.unique(np.concatenate([b.keys for b in plan]))) == n


@pytest.mark.parametrize(("n", "batch_size"), [(90, 30), (5, 2), (5, 32), (100, 12)])
def test_repeats_give_three_views_of_a_third(n, batch_size):
    plan = plan_epoch(n, batch_size=batch_size, repeats=3, seed=3, epoch=0)
    images, counts = np.unique(np.concatenate([b.indices for b in plan]), return_counts=True)
    assert len(images) == -(-n // 3) and (counts == 3).all()
    keys = np.concatenate([b.keys for b in plan])
    assert len(np.unique(keys)) == len(keys)
    for batch in plan:  # all views of an image are in one batch
        assert (np.unique(batch.indices, return_counts=True)[1] == 3).all()


def test_plan_is_a_function_of_seed_and_epoch():
    def ask(**changes: int) -> list[tuple]:
        settings = {"batch_size": 8, "repeats": 1, "seed": 2, "epoch": 3} | changes
        return [(b.indices.tolist(), b.keys.tolist()) for b in plan_epoch(40, **settings)]

    assert ask() == ask()
    assert ask(epoch=4) != ask() != ask(seed=5)
    # A longer epoch of the same images has the same keys for them: a key knows nothing of batches.
    one = {k for _, keys in ask() for k in keys}
    assert one == {k for _, keys in ask(batch_size=16) for k in keys}


def test_random_numbers_have_their_distribution():
    keys = hashed(9, np.arange(40_000))
    flat, bell = uniform(keys, 3), normal(keys, 5)
    assert flat.min() >= 0 and flat.max() < 1
    assert np.histogram(flat, 10, (0, 1))[0] == pytest.approx(4000, abs=260)
    assert bell.mean() == pytest.approx(0, abs=0.02) and bell.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(flat, uniform(keys, 4))[0, 1]) < 0.02
    assert abs(np.corrcoef(flat[1:], flat[:-1])[0, 1]) < 0.02


@pytest.mark.parametrize("aspect", [1.0, 1.6])
def test_crops_cover_the_area_that_was_asked_for(aspect):
    augment = replace(NOTHING, crop_scale=(0.1, 0.4), crop_ratio=(3 / 4, 4 / 3))
    keys = hashed(1, np.arange(20_000))
    left, top, width, height = _crop_boxes(augment, np.full(20_000, aspect), 1.0, keys)
    assert (width * height).mean() == pytest.approx(0.25, abs=0.01)
    assert (left >= 0).all() and (left + width <= 1 + 1e-9).all()
    assert (top >= 0).all() and (top + height <= 1 + 1e-9).all()
    ratio = width / height * aspect
    assert ratio.min() >= 0.749 and ratio.max() <= 1.334
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert (left / (1 - width)).mean() == pytest.approx(0.5, abs=0.01)


def test_a_panorama_is_cropped_to_a_legal_ratio():
    augment = replace(NOTHING, crop_scale=(1, 1), crop_ratio=(3 / 4, 4 / 3))
    _, top, width, height = _crop_boxes(augment, np.array([8.0]), 1.0, hashed(1, np.arange(1)))
    assert width[0] / height[0] * 8 == pytest.approx(4 / 3) and height[0] == 1 and top[0] == 0


def test_half_of_all_views_are_mirrored():
    ramp = np.broadcast_to(np.linspace(0, 255, 16).astype(np.uint8), (2000, 3, 16, 16))
    keys = hashed(8, np.arange(2000))
    make = ViewMaker(replace(NOTHING, flip=0.5), (16, 16))
    views = make(torch.from_numpy(ramp.copy()), np.ones(2000, np.float32), keys)
    mirrored = views[:, 0, 8, 0] > views[:, 0, 8, -1]
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.04)


def test_randaugment_draws_every_operation_alike():
    augment = AugmentConfig(randaugment_ops=2, randaugment_magnitude=9, randaugment_std=0.5)
    drawn = _draw_operations(augment, hashed(2, np.arange(30_000)))
    assert len(drawn) == 2
    for name, magnitude, sign in drawn:
        names, counts = np.unique(name, return_counts=True)
        assert set(names) == {*OPERATIONS, ""}
        shares = dict(zip(names, counts / 30_000, strict=True))
        assert shares.pop("") == pytest.approx(0.5, abs=0.01)
        assert list(shares.values()) == pytest.approx([0.5 / 15] * 15, abs=0.006)
        assert magnitude.mean() == pytest.approx(0.9, abs=0.01) and magnitude.max() <= 1
        assert sign.mean() == pytest.approx(0, abs=0.03)


def test_three_augment_changes_every_view_in_one_of_three_ways():
    coloured = torch.from_numpy(some_pixels(1)).expand(900, -1, -1, -1)
    keys = hashed(4, np.arange(900))
    views = ViewMaker(replace(NOTHING, three_augment=True), (24, 24))(
        coloured, np.ones(900, np.float32), keys
    )
    image = coloured.float() / 255
    greyed = (views - views.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-4
    turned = torch.where(image < 127.5 / 255, image, 1 - image)
    solarised = ((views - turned).abs() > 0.01).float().mean((1, 2, 3)) < 0.02  # but for rounding at 128
    assert not (greyed & solarised).any()
    for hit in (greyed, solarised, ~greyed & ~solarised):
        assert hit.float().mean() == pytest.approx(1 / 3, abs=0.06)
    blurred = views[~greyed & ~solarised]  # by strengths from none to two pixels, all different
    spread = blurred.std((1, 2, 3))
    assert len(spread.unique()) > 250 and spread.max() <= image.std() + 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_of_that_width(sigma):
    """A point becomes the Gaussian, and an even image stays as it is, up to the border."""
    point = torch.zeros(1, 3, 31, 33)
    point[:, :, 15, 16] = 200.0
    blurred = color.gaussian_blur(point, torch.full((1, 1, 1, 1), sigma))[0, 0].double().numpy()
    across = blurred.sum(0) / blurred.sum()
    width = np.sqrt((across * (np.arange(33) - 16) ** 2).sum())
    assert blurred.sum() == pytest.approx(200, rel=1e-5)
    assert width == pytest.approx(sigma if sigma > 0.5 else 0, abs=0.02)
    even = torch.full((1, 3, 9, 9), 77.0)
    torch.testing.assert_close(color.gaussian_blur(even, torch.full((1, 1, 1, 1), sigma)), even)


def test_erasing_hits_its_share_and_only_a_rectangle():
    grey = torch.full((1000, 3, 20, 20), 128, dtype=torch.uint8)
    make = ViewMaker(replace(NOTHING, erasing=0.25), (20, 20))
    views = make(grey, np.ones(1000, np.float32), hashed(6, np.arange(1000)))
    changed = (views * 255 - 128).abs().amax(1) > 0.01
    hit = changed.flatten(1).any(1)
    assert hit.float().mean() == pytest.approx(0.25, abs=0.045)
    for one in changed[hit][:50]:
        rows, columns = one.any(1).nonzero(), one.any(0).nonzero()
        box = one[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.97
        assert 0.01 < box.numel() / 400 < 0.36


def two_views(pairs: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Black views of class 0 beside white ones of class 1."""
    views = torch.zeros(2 * pairs, 3, 16, 16)
    views[1::2] = 1.0
    targets = torch.nn.functional.one_hot(torch.arange(2 * pairs) % 2, 2).float()
    return views, targets, hashed(12, np.arange(2 * pairs))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixed_targets_are_the_pasted_area(mixup, cutmix):
    views, targets, keys = two_views(300)
    mixed, mixed_targets = mix_pairs(views, targets, keys, replace(NOTHING, mixup=mixup, cutmix=cutmix))
    white = mixed.mean((1, 2, 3))
    assert torch.allclose(white, mixed_targets[:, 1], atol=1e-5)
    assert torch.allclose(mixed_targets.sum(1), torch.ones(600))
    assert torch.allclose(mixed_targets[::2], mixed_targets[1::2].flip(1), atol=1e-6)
    assert (white[::2] > 0).float().mean() > 0.9
    whole = ((mixed == 0) | (mixed == 1)).flatten(1).all(1).float().mean()  # cut, not blended
    assert whole == pytest.approx({0.0: 0.0, 1.0: 1.0 if mixup == 0 else 0.5}[cutmix], abs=0.1)


def test_mixing_leaves_alone_what_it_should():
    views, targets, keys = two_views(200)
    augment = replace(NOTHING, mixup=0.8, mix_probability=0.25)
    mixed, _ = mix_pairs(views, targets, keys, augment)
    touched = (mixed != views).flatten(1).any(1)[::2].float().mean()
    assert touched == pytest.approx(0.25, abs=0.1)
    odd, odd_targets = mix_pairs(views[:7], targets[:7], keys[:7], replace(augment, mix_probability=1.0))
    assert torch.equal(odd[6], views[6]) and torch.equal(odd_targets[6], targets[6])
    assert torch.equal(mix_pairs(views, targets, keys, NOTHING)[0], views)


def as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


# Each against Pillow's own, over levels in [-1, 1]: (level -> Pillow's image, grey levels apart).
PILLOW = {
    "auto_contrast": (lambda image, level: ImageOps.autocontrast(image), 1.01),
    "equalize": (lambda image, level: ImageOps.equalize(image), 1.01),
    "invert": (lambda image, level: ImageOps.invert(image), 0),
    "posterize": (lambda image, level: posterized(image, 4 - int(abs(level) * 4)), 0),
    "solarize": (lambda image, level: ImageOps.solarize(image, 256 - int(abs(level) * 256)), 0),
    "color": (lambda image, level: ImageEnhance.Color(image).enhance(factor(level)), 2),
    "contrast": (lambda image, level: ImageEnhance.Contrast(image).enhance(factor(level)), 2),
    "brightness": (lambda image, level: ImageEnhance.Brightness(image).enhance(factor(level)), 1.01),
    "sharpness": (lambda image, level: ImageEnhance.Sharpness(image).enhance(factor(level)), 2),
}


def factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


def posterized(image: Image.Image, bits: int) -> Image.Image:
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


@pytest.mark.parametrize("level", [-1.0, -0.87, -0.3, 0.0, 0.45, 0.9, 1.0])
@pytest.mark.parametrize("name", PILLOW)
def test_colour_operation_agrees_with_pillow(name, level):
    reference, apart = PILLOW[name]
    pixels = some_pixels(6, side=32)
    ours = color.OPERATIONS[name](torch.from_numpy(pixels).float(), torch.full((6, 1, 1, 1), level))
    theirs = np.stack([np.asarray(reference(as_image(p), level)).transpose(2, 0, 1) for p in pixels])
    assert np.abs(ours.numpy() - theirs).max() <= apart


def test_solarize_add_brightens_the_dark_only():
    ramp = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    out = color.OPERATIONS["solarize_add"](ramp, torch.full((1, 1, 1, 1), 0.5))
    assert torch.equal(out, torch.where(ramp < 128, ramp + 55, ramp))


@pytest.mark.parametrize("name", ["auto_contrast", "equalize"])
def test_a_flat_image_stays_flat(name):
    flat = torch.full((1, 3, 8, 8), 70.0)
    assert torch.equal(color.OPERATIONS[name](flat, torch.zeros(1, 1, 1, 1)), flat)


UNEVEN = np.random.RandomState(0).permutation(np.repeat([0, 1, 2], [100, 10, 2]))


def balanced(epoch: int = 0, power: float = 0.0, **more: float) -> list[Batch]:
    settings = {"batch_size": 16, "repeats": 1, "seed": 3} | more
    return plan_epoch(len(UNEVEN), **settings, epoch=epoch, shares=ClassShares(UNEVEN, power))


@pytest.mark.parametrize(("power", "expected"), [(0.0, [1, 1, 1]), (0.5, [10, 10**0.5, 2**0.5])])
def test_a_sampler_shows_classes_in_its_shares(power, expected):
    expected = np.array(expected) / sum(expected)
    plain = plan_epoch(len(UNEVEN), batch_size=16, repeats=1, seed=3, epoch=0)
    shown = np.zeros(len(UNEVEN))
    for epoch in range(40):
        plan = balanced(epoch, power)
        images, keys = (np.concatenate([getattr(b, n) for b in plan]) for n in ("indices", "keys"))
        assert [len(b.indices) for b in plan] == [len(b.indices) for b in plain]
        assert len(np.unique(keys)) == len(images) == len(UNEVEN)
        assert abs(np.bincount(UNEVEN[images], minlength=3) - len(images) * expected).max() <= 1
        shown += np.bincount(images, minlength=len(UNEVEN))
    for k in range(3):  # an epoch may start one image early or late
        of_class = shown[k == UNEVEN]
        assert of_class.min() > 0 and of_class.max() - of_class.min() <= 8


def test_a_sampled_plan_is_a_function_of_seed_and_epoch_too():
    def ask(epoch: int, **more: float) -> list[tuple]:
        return [(b.indices.tolist(), b.keys.tolist()) for b in balanced(epoch, **more)]

    assert ask(3) == ask(3) != ask(4) and ask(3) != ask(3, seed=4)


def test_a_sampler_goes_with_repeats_and_unlabelled_images():
    beside = {"num_unlabeled": 7, "unlabeled_share": 0.25}
    plain = plan_epoch(len(UNEVEN), batch_size=16, repeats=3, seed=3, epoch=1, **beside)
    plan = balanced(1, repeats=3, **beside)
    for ours, theirs in zip(plan, plain, strict=True):
        assert len(ours.indices) == len(theirs.indices)
        assert (ours.indices >= len(UNEVEN)).sum() == (theirs.indices >= len(UNEVEN)).sum() > 0
        assert len(np.unique(ours.keys)) == len(ours.keys)
    labelled = np.concatenate([b.below(len(UNEVEN)).indices for b in plan])
    counts = np.bincount(UNEVEN[labelled])
    assert counts.max() - counts.min() <= 2 * 3


def test_even_classes_are_sampled_once_each():
    labels = np.arange(30) % 3
    for epoch in range(3):
        plan = plan_epoch(30, batch_size=8, repeats=1, seed=1, epoch=epoch, shares=ClassShares(labels, 0.0))
        assert sorted(np.concatenate([b.indices for b in plan])) == list(range(30))
