"""Files of every kind come out as upright RGB, and both views at the size that was asked for."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.data import decode
from deitkit.data.decode import (
    UnreadableImage,
    center_crop,
    max_pixel_value,
    open_rgb,
    open_with_extent,
    read_aspect,
    resize,
)

from ..test_bad_input import huge_png

RED, BLUE = (200, 40, 30), (30, 60, 210)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def reopened(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    opened = open_rgb(path)
    assert opened.mode == "RGB"
    return np.asarray(opened).astype(int)


@pytest.mark.parametrize("name", ["cmyk.jpg", "cmyk.tif", "palette.gif", "palette.png", "palette.bmp"])
def test_colours_survive(tmp_path, name):
    image = two_halves()
    pixels = reopened(image.convert("CMYK") if "cmyk" in name else image.quantize(4), tmp_path / name)
    assert np.abs(pixels[10, 5] - RED).max() <= 5 and np.abs(pixels[10, 35] - BLUE).max() <= 5


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.pgm", "a.webp"])
def test_grey_has_three_equal_channels(tmp_path, name):
    pixels = reopened(Image.new("L", (12, 9), 140), tmp_path / name)
    assert pixels.shape == (9, 12, 3) and np.abs(pixels - 140).max() <= 2


def test_one_bit_is_black_and_white(tmp_path):
    pixels = reopened(Image.fromarray(np.eye(8, dtype=bool)), tmp_path / "a.png")
    assert np.array_equal(pixels[..., 0], 255 * np.eye(8))


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    deep = np.array([[0, 16_384], [32_768, 65_535]], np.uint16)
    pixels = reopened(Image.fromarray(deep), tmp_path / "a.png")
    assert pixels[..., 1].tolist() == [[0, 64], [128, 255]]


def test_floats_are_scaled_to_their_largest(tmp_path):
    pixels = reopened(Image.fromarray(np.array([[0.0, 0.25], [0.5, -1.0]], np.float32)), tmp_path / "a.tif")
    assert pixels[..., 2].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((100, 100, 100, 255), (0, 0, 2, 2))
    pixels = reopened(image.convert(mode), tmp_path / "a.png")
    assert (pixels[:, :2] == 100).all() and (pixels[:, 2:] == 255).all()


def test_transparent_palette_lies_over_white(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (2, 0, 4, 2))
    pixels = reopened(image, tmp_path / "a.gif", transparency=0)
    assert (pixels[:, :2] == (10, 20, 30)).all() and (pixels[:, 2:] == 255).all()


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    pixels = reopened(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.abs(pixels - RED).max() <= 8


@pytest.mark.parametrize(
    ("orientation", "turn", "size"),
    [
        (3, Image.Transpose.ROTATE_180, (40, 20)),
        (6, Image.Transpose.ROTATE_90, (20, 40)),
        (8, Image.Transpose.ROTATE_270, (20, 40)),
    ],
)
@pytest.mark.parametrize("at_least", [None, 8])
def test_exif_turns_the_image_upright(tmp_path, orientation, turn, size, at_least):
    stored = two_halves(*size).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    opened = open_rgb(tmp_path / "a.jpg", at_least=at_least)
    assert opened.width / opened.height == size[0] / size[1]
    assert np.asarray(opened)[opened.height // 2, 1].argmax() == 0
    assert np.asarray(opened)[opened.height // 2, -2].argmax() == 2


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "webp"])
def test_the_aspect_in_a_header_is_that_of_the_upright_image(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / f"a.{kind}", exif=exif)
    opened, extent = open_with_extent(tmp_path / f"a.{kind}")
    assert opened.size == (20, 40) and extent[0] / extent[1] == 0.5
    assert read_aspect(tmp_path / f"a.{kind}") == 0.5


def test_the_largest_value_of_an_image_of_many_bits(tmp_path):
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    Image.new("L", (2, 2), 255).save(tmp_path / "b.png")
    assert max_pixel_value(tmp_path / "a.png") == 4095 and max_pixel_value(tmp_path / "b.png") is None


def test_a_large_jpeg_is_decoded_at_a_reduced_scale(tmp_path):
    two_halves(1600, 800).save(tmp_path / "a.jpg")
    small = open_rgb(tmp_path / "a.jpg", at_least=100)
    assert 100 <= min(small.size) < 800 and small.width == 2 * small.height


BROKEN = {
    "empty.png": (lambda whole: b"", "not an image"),
    "text.jpg": (lambda whole: b"no image", "not an image"),
    "cut.png": (lambda whole: whole[: len(whole) // 2], "broken"),
    "huge.png": (lambda whole: huge_png(), "too large"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_files_say_why(tmp_path, name):
    content, reason = BROKEN[name]
    noise = np.random.RandomState(0).randint(0, 255, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / name).write_bytes(content((tmp_path / "whole.png").read_bytes()))
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_rgb(tmp_path / name)
    assert caught.value.path == tmp_path / name and "\n" not in caught.value.reason


def test_a_cut_jpeg_is_unreadable(tmp_path):
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:1500])
    with pytest.raises(UnreadableImage, match="broken"):
        open_rgb(tmp_path / "a.jpg")


def test_files_that_cannot_be_opened_say_why(as_user):
    Image.new("RGB", (4, 4)).save(as_user / "a.png")
    (as_user / "a.png").chmod(0)
    with pytest.raises(UnreadableImage, match="no right to read"):
        open_rgb(as_user / "a.png")
    with pytest.raises(UnreadableImage, match="not there"):
        open_rgb(as_user / "b.png")


def test_the_limit_on_pixels_is_ours(tmp_path, monkeypatch):
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own would refuse 3000 pixels
    assert open_rgb(tmp_path / "a.png", max_pixels=3000).size == (60, 50)
    with pytest.raises(UnreadableImage, match="too large: 60 x 50 pixels"):
        open_rgb(tmp_path / "a.png", max_pixels=2999)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_decoding_in_threads_leaves_warnings_and_limit_alone(tmp_path, monkeypatch):
    """Threads enter in order and leave in the same order, the one that restores too much if each saves."""
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    first_may_leave, second_may_leave = threading.Event(), threading.Event()
    second_is_in = threading.Event()

    def slow(image: Image.Image) -> Image.Image:
        if threading.current_thread().name == "first":
            assert first_may_leave.wait(10)
        else:
            second_is_in.set()
            assert second_may_leave.wait(10)
        return image.convert("RGB")

    monkeypatch.setattr(decode, "to_rgb", slow)
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    threads = [
        threading.Thread(target=open_rgb, args=(tmp_path / "a.png",), name=n) for n in ("first", "second")
    ]
    threads[0].start()
    threads[1].start()
    assert second_is_in.wait(10)
    first_may_leave.set()
    threads[0].join()
    second_may_leave.set()
    threads[1].join()
    assert warnings.filters == before and limit == Image.MAX_IMAGE_PIXELS


def test_no_warning_of_pillow_gets_out(tmp_path, monkeypatch):
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "a.png").close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(open_rgb, [tmp_path / "a.png"] * 8))
        read_aspect(tmp_path / "a.png")


def test_floats_without_a_value_are_black(tmp_path):
    values = np.array([[0.0, 0.5], [1.0, np.nan], [np.inf, -np.inf]], np.float32)
    assert reopened(Image.fromarray(values), tmp_path / "a.tif")[..., 0].tolist() == [
        [0, 128],
        [255, 0],
        [0, 0],
    ]


@pytest.mark.parametrize("source", [(40, 20), (20, 40), (33, 33), (4000, 30), (30, 4000), (3, 2), (1, 500)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 8)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_views_have_the_size_that_was_asked_for(source, size, crop):
    image = two_halves(*source) if source[0] > 1 else Image.new("RGB", source, RED)
    for view in (center_crop(image, size, crop), resize(image, size)):
        assert view.shape == (3, *size) and view.dtype == np.uint8


def test_center_crop_keeps_the_center_and_the_aspect():
    image = Image.new("RGB", (90, 30), BLUE)
    image.paste(RED, (30, 0, 60, 30))  # the middle third, a square
    view = center_crop(image, (30, 30), 1.0)
    assert (view == np.array(RED)[:, None, None]).all()
    wide = center_crop(image, (30, 60), 1.0)  # half of its width is red
    assert (wide[0] > 120).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(wide.astype(int) - wide[..., ::-1]).max() <= 1


def test_center_crop_at_the_same_size_is_the_image():
    pixels = np.random.RandomState(0).randint(0, 255, (20, 20, 3)).astype(np.uint8)
    assert np.array_equal(center_crop(Image.fromarray(pixels), (20, 20), 1.0), pixels.transpose(2, 0, 1))
