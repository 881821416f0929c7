"""Kept and on-demand pixels agree; whatever was cut short or has changed is made again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitkit.data import cache
from deitkit.data.cache import (
    Decoder,
    DevicePixels,
    PixelStore,
    default_cache_dir,
    on_device,
    open_store,
    refuse_many_unreadable,
)
from deitkit.data.decode import UnreadableImage
from deitkit.data.folder import scan
from deitkit.data.image_file import NO_RIGHT
from deitkit.data.image_set import ImageSet
from deitkit.errors import DataError

from ..conftest import write_images
from .test_decode import two_halves


@pytest.fixture
def images(tmp_path) -> ImageSet:
    data = write_images(tmp_path / "data", count=6)
    two_halves(60, 20).save(data / "cat" / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves(60, 20).save(data / "dog" / "turned.jpg", exif=exif)
    return scan(data, data)


def opened(images: ImageSet, cache: Path, view: str = "resize", limit: int = 10**9) -> PixelStore:
    decoder = Decoder((18, 22), view, 0.9)
    store, unreadable = open_store(images, decoder, cache_dir=cache, limit_bytes=limit, workers=2)
    assert unreadable == []
    return store


def open_small(images: ImageSet, cache: Path, on_progress: Callable[[int], None]) -> None:
    """Decodes into `cache`, an image at a time."""
    decoder = Decoder((8, 8), "resize")
    open_store(images, decoder, cache_dir=cache, limit_bytes=10**9, workers=1, on_progress=on_progress)


@pytest.mark.parametrize("view", ["resize", "center_crop"])
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


def test_an_image_without_the_right_to_read_it_is_tried_again(images, tmp_path, monkeypatch):
    """A right that is given later does not change the file, by which the cache knows it."""
    decoder, decode = Decoder((18, 22), "resize"), Decoder.__call__

    def refused(self, file):
        if str(file).endswith("wide.jpg"):
            raise UnreadableImage(file, NO_RIGHT)
        return decode(self, file)

    given = {"cache_dir": tmp_path / "c", "limit_bytes": 10**9, "workers": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", refused)
        _, unreadable = open_store(images, decoder, **given)
    assert unreadable == [(images.paths.index("cat/wide.jpg"), NO_RIGHT)]
    assert open_store(images, decoder, **given)[1] == []


def test_pixels_in_a_devices_memory_are_the_same_if_they_fit(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_COPIED_AT_ONCE", 4)
    kept = opened(images, tmp_path / "c")
    size = len(images) * 3 * 18 * 22
    cpu = torch.device("cpu")
    assert on_device(kept, cpu, size - 1) is kept
    there = on_device(kept, cpu, size)
    assert isinstance(there, DevicePixels) and there.pixels.device == cpu
    order = np.array([5, 0, 13, 5, 7])
    assert there.fetch(order).equal(kept.fetch(order)) and there.fetch([3]).equal(kept.fetch([3]))
    assert (there.aspects == kept.aspects).all()


def test_a_second_call_decodes_nothing(images, tmp_path, monkeypatch):
    first = opened(images, tmp_path / "c").fetch(range(len(images)))
    monkeypatch.setattr(Decoder, "__call__", lambda self, path: pytest.fail("decoded again"))
    assert opened(images, tmp_path / "c").fetch(range(len(images))).equal(first)


@pytest.mark.parametrize(
    "note", ["[]", "{}", '{"aspects": [1.0], "unreadable": []}', '{"aspects": 1, "unreadable": 3}']
)
def test_a_damaged_note_is_made_again(images, tmp_path, note):
    first = opened(images, tmp_path / "c").fetch(range(len(images)))
    [file] = (tmp_path / "c").glob("*.json")
    whole = file.read_text()
    file.write_text(note)
    assert opened(images, tmp_path / "c").fetch(range(len(images))).equal(first)
    assert file.read_text() == whole


def test_heic_files_are_tried_again_once_they_can_be_read(images, tmp_path, monkeypatch):
    images.file(0).rename(images.root / "cat" / "a.heic")
    images = scan(images.root, images.root)
    for installed in (False, True, True):
        monkeypatch.setattr(cache, "reads_heif", lambda installed=installed: installed)
        opened(images, tmp_path / "c")
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 2


def test_changed_images_are_decoded_again(images, tmp_path):
    before = opened(images, tmp_path / "c").fetch([0])
    two_halves().save(images.file(0))
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
        other = pixels.with_name(f"{pixels.name}.{os.getpid()}-0.part")  # of a process that still writes it
        other.touch()
        pixels = pixels.rename(pixels.with_name(f"{pixels.name}.{os.getpid()}-1.part"))
        two_days_ago = time.time() - 2 * 24 * 3600
        os.utime(pixels, (two_days_ago, two_days_ago))
    assert opened(images, tmp_path / "c").fetch(every).equal(whole)
    left = [other] if what == "only the side file" else []
    assert list((tmp_path / "c").glob("*.part")) == left


@pytest.mark.parametrize("what", [Path.unlink, lambda path: path.write_bytes(b"\0" * 100)])
def test_pixels_that_went_missing_are_made_again(images, tmp_path, what):
    every = range(len(images))
    whole = opened(images, tmp_path / "c").fetch(every)
    [pixels] = (tmp_path / "c").glob("*.pixels")
    what(pixels)
    assert opened(images, tmp_path / "c").fetch(every).equal(whole)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_unreadable_images_are_reported_with_their_index(images, tmp_path, limit):
    images.file(3).write_bytes(b"")
    decoder = Decoder((18, 22), "resize")
    _, unreadable = open_store(images, decoder, cache_dir=tmp_path / "c", limit_bytes=limit, workers=1)
    assert [i for i, _ in unreadable] == [3]


def broken(count: int) -> list[tuple[str, str]]:
    return [(f"{i}.png", "cut") for i in range(count)]


@pytest.mark.parametrize(("count", "total"), [(1, 2), (3, 4), (3, 78), (5, 100), (50, 1000)])
def test_three_unreadable_images_are_skipped_and_more_if_they_are_few(count, total, capsys):
    refuse_many_unreadable(broken(count), total)
    assert f"warning: {count} of {total} images skipped, unreadable: 0.png (cut)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "total", "share"), [(4, 5, 5), (4, 78, 5), (6, 100, 5), (11, 1000, 1), (1, 9, 0)]
)
def test_many_unreadable_images_are_refused(count, total, share):
    with pytest.raises(
        DataError, match=rf"{count} of {total} images .*more than {share} %: 0\.png \(cut\).*; repair"
    ):
        refuse_many_unreadable(broken(count), total, share / 100)


def test_without_a_readable_image_there_is_nothing_to_do():
    with pytest.raises(DataError, match=r"no image can be read: 0\.png \(cut\); 1\.png"):
        refuse_many_unreadable(broken(2), 2)
    refuse_many_unreadable([], 0)


def test_pixels_broken_behind_an_intact_header_are_grey_and_logged_once(tmp_path, capsys):
    data = write_images(tmp_path / "data", count=60, side=40)
    images = scan(data, data)
    store = opened(images, tmp_path / "c", limit=0)
    whole = store.fetch(range(120))
    cut = images.file(7).read_bytes()
    images.file(7).write_bytes(cut[: len(cut) // 2])
    for _ in range(2):
        pixels = store.fetch([6, 7, 8])
        assert pixels[[0, 2]].equal(whole[[6, 8]]) and (pixels[1] == 128).all()
    assert capsys.readouterr().err.count("a grey image replaces it") == 1
    for i in range(9, 15):  # seven of 120 are more than 5 %
        images.file(i).write_bytes(b"")
    store.fetch([9, 10, 11, 12, 13])
    with pytest.raises(DataError, match="7 of 120 images cannot be read"):
        store.fetch([14])


@pytest.mark.parametrize("limit", [0, 10**9])
def test_aspects_are_those_of_the_file_not_of_a_reduced_scale(images, tmp_path, limit):
    two_halves(1003, 667).save(images.file(0), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 8
    two_halves(1003, 667).save(images.file(1), "JPEG", exif=exif)
    aspects = opened(images, tmp_path / "c", limit=limit).aspects
    assert aspects[:2] == pytest.approx([1003 / 667, 667 / 1003], rel=1e-6)


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_link_to_nowhere_is_reported(images, tmp_path, limit):
    images.file(2).unlink()
    images.file(2).symlink_to(tmp_path / "nowhere.png")
    decoder = Decoder((8, 8), "resize")
    _, unreadable = open_store(images, decoder, cache_dir=tmp_path / "c", limit_bytes=limit, workers=1)
    assert unreadable == [(2, "the file is not there")]


def test_size_and_view_have_caches_of_their_own(images, tmp_path):
    for decoder in (Decoder((8, 8), "resize"), Decoder((8, 9), "resize"), Decoder((8, 8), "center_crop")):
        store, _ = open_store(images, decoder, cache_dir=tmp_path / "c", limit_bytes=10**9, workers=1)
        assert store.fetch([0]).shape == (1, 3, *decoder.size)
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 3


def test_an_interrupt_leaves_nothing_behind(images, tmp_path):
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_small(images, tmp_path / "c", interrupt)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_where_and_what_to_set(images, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be cached in .*file.c.*DEITKIT_CACHE"):
        opened(images, tmp_path / "file" / "c")


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DEITKIT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("DEITKIT_CACHE")
    assert default_cache_dir() == tmp_path / "xdg" / "deitkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "deitkit"


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DEITKIT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache_dir().parent == Path(tempfile.gettempdir())


def test_pixels_that_changed_on_the_disk_are_decoded_again(images, tmp_path, capsys):
    before = opened(images, tmp_path / "c").fetch([0, 1, 2])
    [file] = (tmp_path / "c").rglob("*.pixels")
    content = bytearray(file.read_bytes())
    content[len(content) // len(images) + 5] ^= 16  # of image 1
    file.write_bytes(content)
    store = opened(images, tmp_path / "c")
    for _ in range(2):
        assert store.fetch([0, 1, 2]).equal(before)
    said = capsys.readouterr().err
    assert said.count("have changed on the disk") == 1 and images.paths[1] in said
    assert opened(images, tmp_path / "c").fetch([0, 1, 2]).equal(before)
    assert capsys.readouterr().err == ""  # the file was made again


def test_a_changed_note_is_not_believed(images, tmp_path):
    aspects = opened(images, tmp_path / "c").aspects
    [note] = (tmp_path / "c").rglob("*.json")
    content = json.loads(note.read_text())
    content["aspects"][0] += 1.0
    note.write_text(json.dumps(content))
    assert (opened(images, tmp_path / "c").aspects == aspects).all()


def test_images_that_change_while_they_are_decoded_are_not_cached(images, tmp_path):
    def change(n):
        with open(images.file(0), "ab") as file:
            file.write(b"more")

    with pytest.raises(DataError, match="changed while they were read; run the command again"):
        open_small(images, tmp_path / "c", change)
    assert not list((tmp_path / "c").iterdir())


def test_processes_decode_as_threads_do(tmp_path, monkeypatch):
    """Also after one of them has been killed, and for a broken image."""
    from deitkit.data import decode_ahead

    images = scan(write_images(tmp_path / "images"), tmp_path / "images")
    decoder = Decoder((8, 8), "resize")
    images.file(5).write_bytes(b"broken")
    files = [images.file(i) for i in range(len(images))]
    threads = decode_ahead.decode_all(decoder, files, 1)
    assert isinstance(threads[5], str)
    monkeypatch.setattr(decode_ahead, "_disabled", threading.Event())

    def same(found: list[object]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(found, threads, strict=True))

    assert same(decode_ahead.decode_all(decoder, files, 2))
    if sys.platform == "linux":
        pool = decode_ahead._started(2, os.getpid())
        for process in list(pool._processes.values()):
            process.kill()
            process.join()
        assert same(decode_ahead.decode_all(decoder, files, 2)) and not decode_ahead._forks()
        decode_ahead._started.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_processes_that_decode_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from deitkit.data import decode_ahead; from deitkit.data.cache import Decoder\n"
        "decode_ahead._LOOK_SECONDS = 0.05\n"
        "decode_ahead.decode_all(Decoder((8, 8), 'resize'), [Path(sys.argv[1])], 2)\n"
        "print(*decode_ahead._started(2, os.getpid())._processes, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True)
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2, done.stderr
    for _ in range(600):
        if not any(Path(f"/proc/{pid}").exists() and _runs(pid) for pid in children):
            return
        time.sleep(0.05)
    raise AssertionError("they live on")


def _runs(pid: int) -> bool:
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
