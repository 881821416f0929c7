"""A image file as evaluation and `predict` see it, against timm and transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from deitkit.data.decode import center_crop, open_with_extent

SIZES = [(224, 224), (60, 40), (300, 400), (400, 300), (299, 400), (641, 427), (1333, 1000), (2400, 1601)]
VIEWS = [pytest.param(224, 0.875, id="224"), pytest.param(96, 1.0, id="96"), pytest.param(224, 0.9, id="0.9")]


def photograph(width: int, height: int) -> Image.Image:
    """Random phases under the spectrum of natural images, amplitude 1 / frequency; three channels alike."""
    rng = np.random.default_rng(width * height)
    down, along = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(1 / max(width, height), np.hypot(down, along))

    def field() -> np.ndarray:
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        return np.fft.irfft2(amplitude * phase, (height, width))

    grey = field()
    pixels = np.stack([grey + 0.3 * field() for _ in range(3)], -1)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for width, height in SIZES:
        for suffix in ("png", "jpg"):
            photograph(width, height).save(folder / f"{width}x{height}.{suffix}", quality=92)
    return folder


def seen(path: Path, size: int, crop: float) -> np.ndarray:
    """(3, H, W), through the same two steps as validation and `predict`."""
    image, extent = open_with_extent(path, at_least=round(2 * size / crop))
    return center_crop(image, (size, size), crop, extent).astype(int)


def assert_near(difference: np.ndarray, largest: int, mean: float) -> None:
    print(f"grey levels, largest {difference.max()}, mean {difference.mean():.3f}")
    assert difference.max() <= largest and difference.mean() <= mean


def is_reduced(path: Path, size: int, crop: float) -> bool:
    """Whether a JPEG is decoded at half its sides or less."""
    with Image.open(path) as image:
        return path.suffix == ".jpg" and min(image.size) >= 2 * round(2 * size / crop)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("source", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("size", "crop"), VIEWS)
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_transformers_image_processor(backend, size, crop, source, suffix, files):
    """To the bit with Pillow; torchvision rounds otherwise; a large JPEG is decoded at a reduced scale."""
    transformers = pytest.importorskip("transformers")
    name = {"pil": "CLIPImageProcessorPil", "torchvision": "CLIPImageProcessor"}[backend]
    processor = getattr(transformers, name)(
        size={"shortest_edge": math.floor(size / crop)},
        crop_size={"height": size, "width": size},
        resample=3,
        do_rescale=False,
        do_normalize=False,
    )
    path = files / f"{source[0]}x{source[1]}.{suffix}"
    theirs = processor(Image.open(path), return_tensors="np").pixel_values[0].astype(int)
    difference = np.abs(seen(path, size, crop) - theirs)
    if is_reduced(path, size, crop):
        assert_near(difference, 12, 1.5)
    elif backend == "pil":
        assert_near(difference, 0, 0)
    else:
        assert_near(difference, 2, 0.02)


@pytest.mark.parametrize("source", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(("size", "crop"), VIEWS)
def test_timm_evaluation_transform(size, crop, source, files):
    """To the bit, except that torchvision rounds half a pixel of the cut to the even side, here down."""
    transform = timm.data.create_transform(
        (3, size, size), interpolation="bicubic", crop_pct=crop, mean=(0, 0, 0), std=(1, 1, 1)
    )
    path = files / f"{source[0]}x{source[1]}.png"
    theirs = (transform(Image.open(path)) * 255).round().numpy().astype(int)
    ours = seen(path, size, crop)
    short = math.floor(size / crop)
    cut = [int(short * side / min(source)) - size for side in (source[1], source[0])]
    later = [(c + 1) // 2 - c // 2 if c % 4 == 3 else 0 for c in cut]
    top, left = later
    shifted = ours[:, top:, left:], theirs[:, : size - top, : size - left]
    assert_near(np.abs(shifted[0] - shifted[1]), 0, 0)
