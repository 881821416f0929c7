"""Views as timm makes them: sample for sample where it can be fed our random numbers, else in distribution.

Largest differences are printed (`pytest -rP`). Tests of distribution are at a level of 0.001, on fixed seeds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
import timm.data.random_erasing as timm_erasing
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.mixup import mixup_target, rand_bbox

from deitkit.config import AugmentConfig
from deitkit.data import color
from deitkit.data.augment import (
    _ERASE,
    _RANDAUGMENT,
    ViewMaker,
    _crop_boxes,
    _draw_operations,
    _erased_boxes,
    _geometric,
)
from deitkit.data.mixup import _cut_box, mix_pairs
from deitkit.data.rng import hashed, normal, uniform
from deitkit.data.sampler import plan_epoch
from deitkit.distillation import losses

from .distributions import chi_square, kolmogorov_smirnov

TIMMS_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
GEOMETRIC = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
KEYS = hashed(21, np.arange(3000))


class Told:
    """Stands for the module `random`: gives the numbers it was told, as timm asks for them."""

    def __init__(self, flat: list[float], bell: float = 0.0):
        self.flat: Iterator[float] = iter(flat)
        self.bell = bell

    def random(self) -> float:
        return next(self.flat)

    def gauss(self, mean: float, std: float) -> float:
        return mean + std * self.bell

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self.flat)

    def randint(self, low: int, high: int) -> int:
        return low + int(next(self.flat) * (high - low + 1))


def timms_operations() -> dict[str, timm_augment.AugmentOp]:
    ops = timm_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": (128, 128, 128)}).ops
    return {op.name: op for op in ops}


def test_randaugment_has_timms_operations():
    assert sorted(timms_operations()) == sorted(TIMMS_NAMES.values())


def test_randaugment_operation_by_operation(monkeypatch):
    """Each drawn operation is applied as often, as strongly and in the same direction as timm does it."""
    augment, timms = AugmentConfig(), timms_operations()
    [(names, magnitudes, signs), _] = _draw_operations(augment, KEYS)
    drawn = (uniform(KEYS, _RANDAUGMENT) * 15).astype(int)
    apply, bell, side = (f(KEYS, _RANDAUGMENT + s) for f, s in ((uniform, 1), (normal, 2), (uniform, 4)))
    rng = np.random.RandomState(0)
    picture = rng.randint(0, 256, (20, 24, 3)).astype(np.uint8)
    image = Image.fromarray(picture)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    difference = {"strength": 0.0, "pixels": 0.0}
    asked: list[tuple] = []  # the arguments that timm gives its operation
    for i in range(len(KEYS)):
        ours = list(dict.fromkeys([*GEOMETRIC, *color.OPERATIONS]))[drawn[i]]
        op = timms[TIMMS_NAMES[ours]]
        # timm negates above 0.5, we below: the same side when told the complement.
        monkeypatch.setattr(timm_augment, "random", Told([apply[i], 1 - side[i]], bell[i]))
        asked.clear()
        with monkeypatch.context() as patch:
            patch.setattr(op, "aug_fn", lambda img, *a, **k: asked.append(a) or img)
            op(image)
        assert bool(asked) == (names[i] == ours), "applied by one of the two only"
        if not asked:
            continue
        if ours in GEOMETRIC:
            apart = abs(asked[0][0] - GEOMETRIC[ours] * magnitudes[i] * signs[i])
            difference["strength"] = max(difference["strength"], apart)
        else:
            theirs = np.asarray(op.aug_fn(image, *asked[0], **op.kwargs)).astype(float)
            level = torch.tensor(magnitudes[i] * signs[i], dtype=torch.float32).view(1, 1, 1, 1)
            mine = color.OPERATIONS[ours](tensor.clone(), level)[0].permute(1, 2, 0).numpy()
            difference["pixels"] = max(difference["pixels"], np.abs(mine - theirs).max())
    print(difference)
    assert difference["strength"] < 1e-12
    assert difference["pixels"] <= 2  # grey levels: Pillow rounds in between


# timm shears about the upper left corner, deitkit about the centre: a shift of half the shear's height.
CORNER = {"shear_x": (0.5, 0.0), "shear_y": (0.0, 0.5)}


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("level", [-0.8, 0.5])
def test_randaugment_moves_pixels_as_timm_does(name, level):
    """Bilinear on both sides, where neither shows the outside of the image, filled differently on purpose."""
    H, W = 48, 64
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round().byte()
    strength = GEOMETRIC[name] * level
    matrix = _geometric(np.array([name]), np.array([level]), W / H)[0]
    dx, dy = (share * strength for share in CORNER.get(name, (0.0, 0.0)))
    matrix[0, 2] += 2 * dx * H / W
    matrix[1, 2] += 2 * dy * W / H

    def both(pictures: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        image = Image.fromarray(pictures[0].permute(1, 2, 0).numpy())
        operation = timm_augment.NAME_TO_OP[TIMMS_NAMES[name]]
        theirs = operation(image, strength, fillcolor=(0, 0, 0), resample=Image.Resampling.BILINEAR)
        mine = ViewMaker(AugmentConfig(), (H, W))._warp(pictures, matrix[None, :2])
        return mine[0].permute(1, 2, 0).numpy(), np.asarray(theirs).astype(float)

    whole = np.logical_and(*(side.min(-1) > 254.5 for side in both(torch.full_like(pixels, 255))))
    mine, theirs = both(pixels)
    difference = np.abs(mine - theirs)[whole].max()
    print(f"largest difference: {difference:.2f} grey levels")
    assert whole.mean() > 0.4 and difference < 3


def test_randaugment_chooses_operations_as_often():
    """Chi-square, two samples of 40,000 draws."""
    np.random.seed(3)
    order = sorted(TIMMS_NAMES.values())
    theirs = np.random.choice(order, 40_000, replace=True)
    ours = np.array([TIMMS_NAMES[n] for n in [*GEOMETRIC, *color.OPERATIONS]])[
        (uniform(hashed(5, np.arange(40_000)), _RANDAUGMENT) * 15).astype(int)
    ]
    counts = [np.unique(x, return_counts=True)[1] for x in (ours, theirs)]
    statistic = chi_square(*counts)
    print(f"chi-square over its critical value: {statistic:.2f}")
    assert statistic < 1


@pytest.mark.parametrize("image_size", [(32, 32), (24, 40)])
def test_random_erasing_rectangle_by_rectangle(image_size, monkeypatch):
    H, W = image_size
    boxes = _erased_boxes(KEYS, image_size)
    chance, tops, lefts = (uniform(KEYS, _ERASE + s) for s in (0, 1, 2))
    areas, ratios = ([uniform(KEYS, _ERASE + s + t) for t in range(10)] for s in (10, 20))
    timms = timm_erasing.RandomErasing(0.25, mode="pixel", device="cpu")
    different = 0
    for i in range(1500):
        # timm draws attempt by attempt and stops at the first that fits; then the place.
        attempts = [u[i] for pair in zip(areas, ratios, strict=True) for u in pair]
        fitting = next(t for t in range(11) if t == 10 or fits(areas[t][i], ratios[t][i], H, W))
        told = [chance[i], *attempts[: 2 * min(fitting + 1, 10)], tops[i], lefts[i]]
        monkeypatch.setattr(timm_erasing, "random", Told(told))
        image = torch.zeros(3, H, W)
        timms(image)
        erased = image.abs().amax(0) > 0
        expected = torch.zeros(H, W, dtype=torch.bool)
        top, left, h, w = boxes[i] if chance[i] <= 0.25 else (0, 0, 0, 0)
        expected[top : top + h, left : left + w] = True
        different += int((erased != expected).any())
    print(f"rectangles that differ: {different} of 1500")
    assert different == 0


def fits(area: float, ratio: float, H: int, W: int) -> bool:
    target = (0.02 + (1 / 3 - 0.02) * area) * H * W
    aspect = np.exp(np.log(0.3) + ratio * (np.log(1 / 0.3) - np.log(0.3)))
    return round(np.sqrt(target * aspect)) < H and round(np.sqrt(target / aspect)) < W


def test_cutmix_box_by_box():
    different = 0
    for seed in range(2000):
        weight = np.random.RandomState(10_000 + seed).rand()
        np.random.seed(seed)
        top, bottom, left, right = rand_bbox((3, 24, 40), weight)
        mine = _cut_box(np.random.RandomState(seed), weight, 24, 40)
        different += mine != (top, bottom, left, right)
    print(f"boxes that differ: {different} of 2000")
    assert different == 0


def test_mixing_weights_are_distributed_alike():
    """Kolmogorov-Smirnov on the weights of both mixes, chi-square on which is taken; 4000 pairs each."""
    pairs = 4000
    views = torch.zeros(2 * pairs, 1, 16, 16)
    views[1::2] = 1.0  # a pair: black and white
    targets = torch.nn.functional.one_hot(torch.arange(2 * pairs) % 2, 2).float()
    mixed, soft = mix_pairs(
        views, targets, hashed(1, np.arange(2 * pairs)), AugmentConfig(mixup=0.8, cutmix=1.0)
    )
    np.random.seed(0)
    timms = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, mode="pair", label_smoothing=0.0, num_classes=2)
    # timm pairs the first with the last.
    labels = torch.cat([torch.zeros(pairs, dtype=torch.long), torch.ones(pairs, dtype=torch.long)])
    their_views, their_soft = timms(labels.view(-1, 1, 1, 1).float().expand(-1, 1, 16, 16).clone(), labels)

    def parts(images: torch.Tensor, weights: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Weights of mixup, and of CutMix; a view that is one image alone counts as CutMix."""
        cut = ((images == 0) | (images == 1)).flatten(1).all(1)
        return weights[~cut].numpy(), weights[cut].numpy()

    ours = parts(mixed[::2], soft[::2, 0])
    theirs = parts(their_views[:pairs], their_soft[:pairs, 0])
    statistics = {
        "mixup": kolmogorov_smirnov(ours[0], theirs[0]),
        "cutmix": kolmogorov_smirnov(ours[1], theirs[1]),
        "which": chi_square(*(np.array([len(p) for p in side]) for side in (ours, theirs))),
    }
    print({k: round(v, 2) for k, v in statistics.items()})
    assert max(statistics.values()) < 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_and_smoothed_targets(smoothing):
    labels, weight = torch.arange(6), 0.3
    one_hot = torch.nn.functional.one_hot(labels, 7).float()
    mixed = weight * one_hot + (1 - weight) * one_hot.flip(0)
    theirs = mixup_target(labels, 7, weight, smoothing)
    difference = (losses.smooth(mixed, smoothing) - theirs).abs().max().item()
    print(f"largest difference: {difference:.1e}")
    assert difference < 1e-6


def test_crops_are_distributed_alike():
    """Kolmogorov-Smirnov on width, height and place of 4000 crops of a 60 x 40 image."""
    crop = create_transform((32, 32), is_training=True, hflip=0, color_jitter=None).transforms[0]
    random.seed(0)
    torch.manual_seed(0)
    image = Image.new("RGB", (60, 40))
    theirs = np.array([crop.get_params(image, crop.scale, crop.ratio) for _ in range(4000)], float)
    height, width = theirs.T[2:]
    ours = _crop_boxes(AugmentConfig(), np.full(4000, 1.5), 1.0, hashed(8, np.arange(4000)))
    # timm crops whole pixels: both sides are rounded to them.
    pairs = {
        "width": (np.rint(ours[2] * 60), width),
        "height": (np.rint(ours[3] * 40), height),
        "area": (np.rint(ours[2] * 60) * np.rint(ours[3] * 40), width * height),
    }
    statistics = {name: kolmogorov_smirnov(*pair) for name, pair in pairs.items()}
    print({k: round(v, 2) for k, v in statistics.items()})
    assert max(statistics.values()) < 1


@pytest.mark.parametrize("n", [512, 2560])
def test_repeated_augmentation_visits_as_many_images(n):
    """timm rounds an epoch down to whole batches of 256, we up to whole images."""
    theirs = list(RepeatAugSampler(range(n), num_replicas=1, rank=0, num_repeats=3, selected_round=256))
    plan = plan_epoch(n, batch_size=256, repeats=3, seed=0, epoch=0)
    ours = np.concatenate([b.indices for b in plan])
    assert 0 <= len(ours) - len(theirs) < 3
    assert len(np.unique(ours)) == len(set(theirs)) == -(-n // 3)
    assert (np.unique(ours, return_counts=True)[1] == 3).all()
