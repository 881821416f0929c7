import numpy as np
import pytest

from deitkit.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt


@pytest.fixture
def picture():
    """Colours, not square, with detail of every size and at no grid's edges."""
    rng = np.random.RandomState(1)
    y, x = np.mgrid[:96, :128]
    waves = rng.uniform(-1.5, 1.5, (3, 40, 2)) * rng.uniform(0, 1, (3, 40, 1)) ** 2
    phases = waves[..., :1, None] * y + waves[..., 1:, None] * x + rng.uniform(0, 6, (3, 40, 1, 1))
    return (128 + 15 * np.sin(phases).sum(1)).clip(0, 255).astype(np.uint8)


def change(picture, name, severity):
    return np.abs(corrupt(picture, name, severity, 0).astype(float) - picture).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_grows_with_severity_and_keeps_the_shape(picture, name):
    before = picture.copy()
    first, second, third = (change(picture, name, s) for s in SEVERITIES)
    assert 0 < first < second < third
    assert corrupt(picture, name, 3, 0).shape == picture.shape
    assert corrupt(picture, name, 3, 0).dtype == np.uint8
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_picture_and_seed_give_the_same_pixels(picture, name):
    np.testing.assert_array_equal(corrupt(picture, name, 3, 7), corrupt(picture, name, 3, 7))
    same = np.array_equal(corrupt(picture, name, 3, 7), corrupt(picture, name, 3, 8))
    assert same == (name != "gaussian noise")  # nothing else is random


def test_noise_has_the_published_strength():
    grey = np.full((3, 100, 100), 128, np.uint8)
    for severity, std in zip(SEVERITIES, (0.08, 0.18), strict=False):  # the third is clipped
        noise = corrupt(grey, "gaussian noise", severity, 0) / 255 - 128 / 255
        assert noise.std() == pytest.approx(std, rel=0.03) and abs(noise.mean()) < 0.005


def test_blur_keeps_what_is_even_and_scales_with_the_picture():
    even = np.full((3, 32, 32), 77, np.uint8)
    np.testing.assert_array_equal(corrupt(even, "gaussian blur", 5, 0), even)
    # A point in the middle of a image of 224 pixels spreads as a Gaussian of sigma 3.
    point = np.zeros((3, 225, 225), np.uint8)
    point[:, 112, :] = 255
    profile = corrupt(point, "gaussian blur", 3, 0)[0, :, 112] / 255
    places = np.arange(225) - 112
    expected = np.exp(-0.5 * (places / 3) ** 2) / (3 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(profile, expected, atol=0.004)


def test_brightness_keeps_the_hue_and_raises_black_to_grey():
    pixels = np.zeros((3, 2, 2), np.uint8)
    pixels[:, 0, 0] = (100, 50, 25)
    bright = corrupt(pixels, "brightness", 1, 0)
    assert bright[:, 0, 0] == pytest.approx([126, 63, 31], abs=1)  # the value is 25.5 larger
    assert bright[:, 1, 1].tolist() == [26, 26, 26]


def test_contrast_shrinks_around_each_channels_mean(picture):
    x = picture.transpose(1, 2, 0) / 255
    expected = ((x - x.mean((0, 1))) * 0.2 + x.mean((0, 1))) * 255
    np.testing.assert_allclose(corrupt(picture, "contrast", 3, 0).transpose(1, 2, 0), expected, atol=0.51)


def test_pixelate_leaves_blocks_of_one_colour():
    x = np.random.RandomState(0).randint(0, 256, (3, 40, 40)).astype(np.uint8)
    blocks = corrupt(x, "pixelate", 5, 0).reshape(3, 10, 4, 10, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    means = x.reshape(3, 10, 4, 10, 4).mean((2, 4))
    np.testing.assert_allclose(blocks[:, :, 0, :, 0], means, atol=1.01)
