"""The same photograph is found again, and images that merely look alike are kept apart."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.config import DataConfig
from deitkit.data.folder import scan
from deitkit.data.image_set import ImageSet
from deitkit.data.near_duplicates import (
    Duplicates,
    centres,
    decorrelated,
    duplicates_of,
    hashes,
    near_pairs,
    standing_out,
)


def scene(seed: int, side: int = 160) -> Image.Image:
    """Smooth random blobs, as structured as a photograph."""
    coarse = np.random.RandomState(seed).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


def write_scenes(folder: Path, name: str = "{i:02}.png") -> Path:
    """Twenty scenes in each of two classes. name: of a file, by its number `i` and that of its `four`."""
    for k, label in enumerate(("a", "b")):
        (folder / label).mkdir()
        for i in range(20):
            scene(100 * k + i).save(folder / label / name.format(i=i, four=i // 4))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scenes(tmp_path)


def groups(folder: Path) -> list[list[str]]:
    images = scan(folder, folder)
    return [[images.paths[i] for i in group] for group in duplicates_of(images, DataConfig()).near]


def test_different_images_are_no_duplicates(folder):
    assert groups(folder) == []


@pytest.mark.parametrize(
    "again",
    [
        lambda image: jpeg(image, 50),
        lambda image: image.resize((70, 70)),
        lambda image: image.resize((200, 120)),
        lambda image: image.crop((2, 1, 158, 159)),
        lambda image: image.convert("L"),
        lambda image: image.point(lambda value: value // 2 + 40),
    ],
    ids=["quality", "size", "aspect", "crop", "grey", "contrast"],
)
def test_the_same_photograph_again(folder, again):
    again(scene(3)).convert("RGB").save(folder / "b" / "again.png")
    assert groups(folder) == [["a/03.png", "b/again.png"]]


def test_a_group_of_many_copies_is_one_group(folder):
    for quality in range(40, 95, 5):
        jpeg(scene(5), quality).save(folder / "a" / f"q{quality}.jpg", quality=95)
    [group] = groups(folder)
    assert len(group) == 12 and "a/05.png" in group


def test_exact_copies_are_told_from_near_ones(folder):
    shutil.copy(folder / "a" / "00.png", folder / "b" / "copy.png")
    scene(0).resize((90, 90)).save(folder / "b" / "small.png")
    images = scan(folder, folder)
    found = duplicates_of(images, DataConfig())
    named = lambda found: [{images.paths[i] for i in group} for group in found]  # noqa: E731
    assert named(found.exact) == [{"a/00.png", "b/copy.png"}]
    assert named(found.near) == [{"a/00.png", "b/copy.png", "b/small.png"}]


def test_parts_that_all_look_alike_are_kept_apart(tmp_path):
    """Their hashes all correlate by more than the limit, and none stands out."""
    rng = np.random.RandomState(0)
    part = rng.randn(1, 450)
    found = part + 0.3 * rng.randn(200, 450)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert (found @ found.T).min() > 0.85
    assert standing_out(found.astype(np.float32), found.astype(np.float32)) == []


def test_blocks_give_what_one_block_gives(monkeypatch):
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (50, 3, 32, 32)).astype(np.uint8)
    pixels[40] = pixels[3]
    whole = near_pairs(pixels)
    monkeypatch.setattr("deitkit.data.near_duplicates._BLOCK", 7)
    assert near_pairs(pixels) == whole == [(3, 40)]


def test_empty_and_unreadable_images_have_no_duplicates(folder):
    for name in ("black", "white"):
        Image.new("RGB", (40, 40), name).save(folder / "a" / f"{name}.png")
    (folder / "a" / "broken1.png").write_bytes(b"x")
    (folder / "a" / "broken2.png").write_bytes(b"yz")
    (folder / "b" / "empty1.png").touch()
    (folder / "b" / "empty2.png").touch()
    assert groups(folder) == []


def test_more_images_than_can_be_compared(folder, monkeypatch):
    shutil.copy(folder / "a" / "00.png", folder / "b" / "copy.png")
    jpeg(scene(1), 60).save(folder / "b" / "again.jpg")
    monkeypatch.setattr("deitkit.data.near_duplicates.MOST_IMAGES", 10)
    assert groups(folder) == [["a/00.png", "b/copy.png"]]


def test_groups_as_numbers():
    found = Duplicates(exact=(), near=((1, 3, 4), (2, 5)))
    assert found.group_of(6).tolist() == [0, 1, 2, 1, 1, 2]


def test_one_image():
    images = ImageSet(Path("."), ("a.png",), np.zeros(1, np.int64), ("a",))
    assert duplicates_of(images, DataConfig()).near == ()


def test_what_all_images_share_neither_hides_duplicates_nor_makes_them():
    """Hashes in four patterns and a little of their own, as of cells cut from a few kinds of modules."""
    rng = np.random.RandomState(0)
    alike = rng.randn(200, 4) @ rng.randn(4, 450) / 2 + 0.1 * rng.randn(200, 450)
    found = np.concatenate([alike, alike[:10] + 0.05 * rng.randn(10, 450)])
    found = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    planted = [(k, 200 + k) for k in range(10)]
    assert standing_out(*decorrelated(found, found)) == planted
    as_they_are = standing_out(found, found)
    assert set(planted) - set(as_they_are) and set(as_they_are) - set(planted)


def test_grey_images_stay_without_a_hash():
    pixels = np.random.RandomState(0).randint(0, 256, (120, 3, 32, 32)).astype(np.uint8)
    pixels[5] = pixels[9] = 128
    found, _ = decorrelated(hashes(pixels), hashes(centres(pixels)))
    lengths = np.linalg.norm(found, axis=1)
    assert lengths[[5, 9]].tolist() == [0, 0] and np.allclose(np.delete(lengths, [5, 9]), 1, atol=1e-5)
    assert near_pairs(pixels) == []
