"""Files of every kind come out as upright RGB; kept and on-demand pixels agree."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.data.decode import UnreadableImage, centre_view, open_rgb, squash
from deitkit.data.folder import ImageSet, scan
from deitkit.data.store import Decoder, PixelStore, open_store, refuse_many_unreadable
from deitkit.errors import DeitkitError

from ..conftest import write_pictures
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
def test_exif_turns_the_picture_upright(tmp_path, orientation, turn, size, at_least):
    stored = two_halves(*size).transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    opened = open_rgb(tmp_path / "a.jpg", at_least=at_least)
    assert opened.width / opened.height == size[0] / size[1]
    assert np.asarray(opened)[opened.height // 2, 1].argmax() == 0
    assert np.asarray(opened)[opened.height // 2, -2].argmax() == 2


def test_a_large_jpeg_is_decoded_at_a_reduced_scale(tmp_path):
    two_halves(1600, 800).save(tmp_path / "a.jpg")
    small = open_rgb(tmp_path / "a.jpg", at_least=100)
    assert 100 <= min(small.size) < 800 and small.width == 2 * small.height


BROKEN = {
    "empty.png": (lambda whole: b"", "not an image"),
    "text.jpg": (lambda whole: b"no picture", "not an image"),
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


@pytest.mark.parametrize("source", [(40, 20), (20, 40), (33, 33), (4000, 30), (30, 4000), (3, 2), (1, 500)])
@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 8)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_views_have_the_size_that_was_asked_for(source, size, crop):
    image = two_halves(*source) if source[0] > 1 else Image.new("RGB", source, RED)
    for view in (centre_view(image, size, crop), squash(image, size)):
        assert view.shape == (3, *size) and view.dtype == np.uint8


def test_centre_view_keeps_the_centre_and_the_aspect():
    image = Image.new("RGB", (90, 30), BLUE)
    image.paste(RED, (30, 0, 60, 30))  # the middle third, a square
    view = centre_view(image, (30, 30), 1.0)
    assert (view == np.array(RED)[:, None, None]).all()
    wide = centre_view(image, (30, 60), 1.0)  # half of its width is red
    assert (wide[0] > 120).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(wide.astype(int) - wide[..., ::-1]).max() <= 1


def test_centre_view_without_a_crop_is_the_picture():
    pixels = np.random.RandomState(0).randint(0, 255, (20, 20, 3)).astype(np.uint8)
    assert np.array_equal(centre_view(Image.fromarray(pixels), (20, 20), 1.0), pixels.transpose(2, 0, 1))


@pytest.fixture
def images(tmp_path) -> ImageSet:
    data = write_pictures(tmp_path / "data", count=6)
    two_halves(60, 20).save(data / "cat" / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves(60, 20).save(data / "dog" / "turned.jpg", exif=exif)
    return scan(data, data)


def opened(images: ImageSet, cache: Path, view: str = "squashed", limit: int = 10**9) -> PixelStore:
    decoder = Decoder((18, 22), view, 0.9)
    store, unreadable = open_store(images, decoder, cache_dir=cache, limit_bytes=limit, workers=2)
    assert unreadable == []
    return store


@pytest.mark.parametrize("view", ["squashed", "centre"])
def test_kept_and_on_demand_pixels_are_the_same(images, tmp_path, view):
    kept, fresh = opened(images, tmp_path / "c", view), opened(images, tmp_path / "d", view, limit=0)
    assert not (tmp_path / "d").exists()
    order = [5, 0, 13, 5, 7]
    assert kept.fetch(order).equal(fresh.fetch(order))
    assert kept.fetch(order).shape == (5, 3, 18, 22)
    assert kept.aspects == pytest.approx(fresh.aspects)
    assert kept.aspects[images.paths.index("cat/wide.jpg")] == pytest.approx(3, abs=0.1)
    assert kept.aspects[images.paths.index("dog/turned.jpg")] == pytest.approx(1 / 3, abs=0.02)
    some = np.array([2, 13, 4])
    assert kept.subset(some).fetch([1, 0]).equal(kept.fetch([13, 2]))


def test_a_second_call_decodes_nothing(images, tmp_path, monkeypatch):
    first = opened(images, tmp_path / "c").fetch(range(len(images)))
    monkeypatch.setattr(Decoder, "__call__", lambda self, path: pytest.fail("decoded again"))
    assert opened(images, tmp_path / "c").fetch(range(len(images))).equal(first)


def test_changed_images_are_decoded_again(images, tmp_path):
    before = opened(images, tmp_path / "c").fetch([0])
    two_halves().save(images.full_path(0))
    assert not opened(images, tmp_path / "c").fetch([0]).equal(before)


@pytest.mark.parametrize("what", ["no note", "half a note", "only the side file"])
def test_an_interrupted_cache_is_made_again(images, tmp_path, what):
    every = range(len(images))
    whole = opened(images, tmp_path / "c").fetch(every)
    [pixels], [note] = (list((tmp_path / "c").glob(f"*.{kind}")) for kind in ("pixels", "json"))
    text = note.read_text()
    note.unlink()
    if what == "half a note":
        note.write_text(text[: len(text) // 2])
    pixels.write_bytes(b"\0" * pixels.stat().st_size)
    if what == "only the side file":
        pixels.rename(pixels.with_suffix(f".{os.getpid()}.part"))
    assert opened(images, tmp_path / "c").fetch(every).equal(whole)
    assert not list((tmp_path / "c").glob("*.part"))


@pytest.mark.parametrize("what", [Path.unlink, lambda path: path.write_bytes(b"\0" * 100)])
def test_pixels_that_went_missing_are_made_again(images, tmp_path, what):
    every = range(len(images))
    whole = opened(images, tmp_path / "c").fetch(every)
    [pixels] = (tmp_path / "c").glob("*.pixels")
    what(pixels)
    assert opened(images, tmp_path / "c").fetch(every).equal(whole)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_unreadable_images_are_reported_with_their_index(images, tmp_path, limit):
    images.full_path(3).write_bytes(b"")
    decoder = Decoder((18, 22), "squashed")
    _, unreadable = open_store(images, decoder, cache_dir=tmp_path / "c", limit_bytes=limit, workers=1)
    assert [i for i, _ in unreadable] == [3]


def test_one_unreadable_image_in_a_hundred_is_allowed():
    refuse_many_unreadable([("a.png", "cut")], 100)
    with pytest.raises(DeitkitError, match=r"1 of 99 images cannot be read.*a\.png \(cut\)"):
        refuse_many_unreadable([("a.png", "cut")], 99)
