"""Pixels of images at one size: decoded once and cached on disk, or decoded at each use.

Both give the same pixels, bit for bit. A cache file is a memory-mapped array, written under another name and
renamed, so that an interrupted write never looks complete. Each image has a checksum, which is compared when
it is first used; an image whose bytes have changed on the disk is decoded again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import log
from ..config import DataConfig
from ..errors import DataError
from ..io import read_json, write_json, written_aside
from ..settings import AUTO
from .decode import UnreadableImage, center_crop, open_for_view, read_aspect, resize
from .decode_ahead import Decoded, decode_all
from .image_file import HEIF_SUFFIXES, MAX_PIXELS, NO_RIGHT, reads_heif
from .image_set import ImageSet
from .stored import ImageFile

_VERSION = 4  # of what is cached: a change of decoding makes older files stale

MAX_BROKEN = DataConfig().max_broken
_ALWAYS_ALLOWED = 3  # broken images
_COPIED_AT_ONCE = 1024  # images, to a device


@dataclass(frozen=True)
class Decoder:
    """Decodes an image file to (3, H, W) uint8, and the image's width over height.

    size: height, width. mode: "resize" for training images, whose views restore the aspect ratio;
    "center_crop" for evaluation, with the share `crop` of the image's shorter side.
    """

    size: tuple[int, int]
    mode: Literal["resize", "center_crop"]
    crop: float = 1.0
    max_pixels: int = MAX_PIXELS

    def __call__(self, file: ImageFile) -> tuple[NDArray[np.uint8], float]:
        image, extent = open_for_view(file, self.size, self.crop, self.max_pixels)
        aspect = extent[0] / extent[1]
        if self.mode == "resize":
            return resize(image, self.size), aspect
        return center_crop(image, self.size, self.crop, extent), aspect


@dataclass(frozen=True)
class PixelStore:
    """Pixels of N images. `aspects` (N,) are the width over height of the original images."""

    aspects: NDArray[np.float32]
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(B,) indices -> (B, 3, H, W) uint8."""
        return torch.from_numpy(self.read(self.rows[np.asarray(indices)]))

    def subset(self, indices: NDArray[np.int64]) -> PixelStore:
        return replace(self, aspects=self.aspects[indices], rows=self.rows[indices])


@dataclass(frozen=True)
class DevicePixels:
    """Pixels of N images in a device's memory, where batches are gathered without a copy from the host."""

    aspects: NDArray[np.float32]
    pixels: Tensor  # (N, 3, H, W) uint8

    def fetch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(B,) indices -> (B, 3, H, W) uint8 on the device."""
        return self.pixels[torch.as_tensor(np.asarray(indices), device=self.pixels.device)]


def on_device(
    store: PixelStore,
    device: torch.device,
    limit_bytes: int,
    on_progress: Callable[[int], None] = lambda n: None,
) -> PixelStore | DevicePixels:
    """The pixels in the device's memory if they take at most `limit_bytes` there; else `store`."""
    first = store.fetch([0])
    if len(store) * first.numel() > limit_bytes:
        return store
    pixels = torch.empty(len(store), *first.shape[1:], dtype=torch.uint8, device=device)
    for start in range(0, len(store), _COPIED_AT_ONCE):
        rows = np.arange(start, min(start + _COPIED_AT_ONCE, len(store)))
        pixels[start : start + len(rows)] = store.fetch(rows).to(device)
        on_progress(len(rows))
    return DevicePixels(store.aspects, pixels)


def default_cache_dir() -> Path:
    """`$DEITKIT_CACHE`, or `deitkit` in the user's cache folder, or a temporary folder of the user's.

    Raises DataError if the last is another user's.
    """
    chosen, base = os.environ.get("DEITKIT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen or base:
        return Path(chosen) if chosen else Path(str(base)) / "deitkit"
    try:  # containers have users without a home, and homes that cannot be written to
        folder = Path.home() / ".cache" / "deitkit"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (RuntimeError, OSError):
        pass
    return _temporary_cache_dir()


def _temporary_cache_dir() -> Path:
    """A folder that another user could have made first, since its name can be guessed: then it is refused."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"deitkit-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise DataError(
            f"decoded images cannot be cached in {folder} ({error.strerror}); set DEITKIT_CACHE to a folder"
        ) from None
    if hasattr(os, "getuid") and (found.st_uid != user or stat.S_ISLNK(found.st_mode)):
        raise DataError(f"{folder} belongs to another user; set DEITKIT_CACHE to a folder of your own")
    return folder


def open_store(
    images: ImageSet,
    decoder: Decoder,
    *,
    cache_dir: Path,
    limit_bytes: int,
    workers: int,
    max_broken: float = MAX_BROKEN,
    on_progress: Callable[[int], None] = lambda n: None,
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """Decodes images. Returns their pixels, and the unreadable ones as (index, reason).

    Up to `limit_bytes` of pixels are decoded at once, by `workers` threads, and cached in `cache_dir` for
    later calls. Larger sets are decoded at each `fetch`, in as many processes: an image that turns out to be
    broken behind an intact header is grey then, and a share of more than `max_broken` of these raises
    DataError.
    """
    if len(images) * 3 * decoder.size[0] * decoder.size[1] > limit_bytes:
        return _decoding_store(images, decoder, workers, max_broken, on_progress)
    path = cache_dir / f"{_cache_key(images, decoder)}.pixels"
    try:
        try:
            facts = _read_facts(path, len(images))
            pixels = _mapped(path, images, decoder)
        except (OSError, ValueError, TypeError, KeyError):
            facts = _decode_all(images, decoder, path, workers, on_progress)
            pixels = _mapped(path, images, decoder)
    except OSError as error:
        no_right = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        remedy = "check its permissions" if no_right else "free some space there"
        raise DataError(
            f"decoded images cannot be cached in {cache_dir} ({error.strerror}); {remedy}, "
            "or set DEITKIT_CACHE to another folder"
        ) from None
    read = _CheckedPixels(path, pixels, facts["sums"], images, decoder)
    store = PixelStore(np.array(facts["aspects"], np.float32), read, np.arange(len(images)))
    return store, [(i, reason) for i, reason in facts["unreadable"]]


def open_pixels(
    images: ImageSet, decoder: Decoder, config: DataConfig, on_progress: Callable[[int], None]
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """Decoded pixels, from the cache if possible, and (index, reason) of unreadable images."""
    return open_store(
        images,
        decoder,
        cache_dir=default_cache_dir(),
        limit_bytes=int(config.cache_gb * 1e9),
        workers=decode_threads(config),
        max_broken=config.max_broken,
        on_progress=on_progress,
    )


def decode_threads(config: DataConfig) -> int:
    """Threads that decode images once, before training."""
    return config.workers if config.workers not in (AUTO, 0) else os.cpu_count() or 1


class _CheckedPixels:
    """Rows of cached pixels, each compared with its checksum when it is first read."""

    def __init__(
        self, path: Path, pixels: NDArray[np.uint8], sums: Sequence[int], images: ImageSet, decoder: Decoder
    ) -> None:
        self._path, self._pixels, self._sums = path, pixels, sums
        self._images, self._decoder = images, decoder
        self._damaged = False
        self._checked = np.zeros(len(images), bool)

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = self._pixels[rows]
        for k in np.flatnonzero(~self._checked[rows]):
            i = int(rows[k])
            if zlib.crc32(found[k]) == self._sums[i]:
                self._checked[i] = True
            else:
                self._report(i)
                found[k] = self._decoder(self._images.file(i))[0]
        return found

    def _report(self, i: int) -> None:
        """Warns once, and has the next job decode all images again."""
        if not self._damaged:
            self._damaged = True
            log.warning(
                f"cached pixels of {self._images.file(i)} have changed on the disk; such images are "
                "decoded again"
            )
            with contextlib.suppress(OSError):
                self._path.with_suffix(".json").unlink()


def _mapped(path: Path, images: ImageSet, decoder: Decoder) -> NDArray[np.uint8]:
    """Raises ValueError if the file has another size."""
    shape = (len(images), 3, *decoder.size)
    if path.stat().st_size != math.prod(shape):
        raise ValueError("cut short")
    return np.memmap(path, np.uint8, "r", shape=shape)


def _read_facts(pixels: Path, num_images: int) -> dict[str, Any]:
    """The note beside a file of pixels. Raises OSError, ValueError, TypeError or KeyError if damaged."""
    facts = read_json(pixels.with_suffix(".json"))
    if not isinstance(facts, dict):
        raise ValueError("not an object")
    if facts.pop("check") != _check_of(facts) or len(facts["aspects"]) != num_images:
        raise ValueError("damaged, or of other images")
    return facts


def _check_of(facts: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass"))


def refuse_many_unreadable(
    unreadable: Sequence[tuple[str, str]], num_images: int, max_broken: float = MAX_BROKEN
) -> None:
    """Warns of unreadable images, which the caller skips.

    unreadable: (path, reason) of each. Raises DataError if they are more than three and more than
    `max_broken` of all images, or if they are all images. 0 allows none.
    """
    if not unreadable:
        return
    _refuse_many(unreadable, num_images, max_broken)
    log.warning(
        f"{len(unreadable)} of {num_images} images skipped, unreadable: {some_unreadable(unreadable)}"
    )


def _refuse_many(unreadable: Sequence[tuple[str, str]], num_images: int, max_broken: float) -> None:
    allowed = max(_ALWAYS_ALLOWED, max_broken * num_images) if max_broken > 0 else 0
    if len(unreadable) > allowed:
        raise DataError(
            f"{len(unreadable)} of {num_images} images cannot be read, more than {100 * max_broken:g} %: "
            f"{some_unreadable(unreadable)}; repair or remove them, or allow more with --max-broken "
            "(data.max_broken)"
        )
    if len(unreadable) == num_images:
        raise DataError(f"no image can be read: {some_unreadable(unreadable)}; repair or replace them")


def some_unreadable(unreadable: Sequence[tuple[str, str]]) -> str:
    """The first three, with their reasons."""
    return "; ".join(f"{path} ({reason})" for path, reason in unreadable[:3])


def _cache_key(images: ImageSet, decoder: Decoder) -> str:
    # Without pillow-heif these are unreadable; once it is installed, they are not.
    heif = reads_heif() if any(path.lower().endswith(HEIF_SUFFIXES) for path in images.paths) else None
    content = f"{_VERSION} {images.root.resolve()} {images.fingerprint()} {decoder} {heif}"
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _decode_all(
    images: ImageSet, decoder: Decoder, path: Path, workers: int, on_progress: Callable[[int], None]
) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = _cache_key(images, decoder)
    size = len(images) * 3 * decoder.size[0] * decoder.size[1]
    aspects, sums, unreadable = [1.0] * len(images), [0] * len(images), []
    with written_aside(path) as side:
        with open(side, "wb") as file:
            # Claims the space now: writing to a memory map on a full disk would kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for i, (aspect, crc, reason) in enumerate(_decoded_into(side, images, decoder, pool)):
                aspects[i], sums[i] = aspect, crc
                if reason is not None:
                    unreadable.append((i, reason))
                on_progress(1)
        if _cache_key(images, decoder) != key:  # these pixels would stand for what the images were before
            raise DataError(f"images in {images.root} changed while they were read; run the command again")
    facts = {"aspects": aspects, "unreadable": unreadable, "sums": sums}
    if all(reason != NO_RIGHT for _, reason in unreadable):  # else the next job looks again
        write_json(path.with_suffix(".json"), facts | {"check": _check_of(facts)})
    return facts


def _decoded_into(
    file: Path, images: ImageSet, decoder: Decoder, pool: ThreadPoolExecutor
) -> Iterator[tuple[float, int, str | None]]:
    """Writes pixels into `file`. Yields each image's width over height, the pixels' checksum, and why it
    cannot be read or None.

    Closes the file at the end: Windows cannot rename a mapped file.
    """
    pixels = np.memmap(file, np.uint8, "r+", shape=(len(images), 3, *decoder.size))

    def work(i: int) -> tuple[float, int, str | None]:
        try:
            pixels[i], aspect = decoder(images.file(i))
        except UnreadableImage as error:
            return 1.0, zlib.crc32(pixels[i]), error.reason
        return aspect, zlib.crc32(pixels[i]), None

    yield from pool.map(work, range(len(images)))
    pixels.flush()


def _decoding_store(
    images: ImageSet, decoder: Decoder, workers: int, max_broken: float, on_progress: Callable[[int], None]
) -> tuple[PixelStore, list[tuple[int, str]]]:
    def header(i: int) -> tuple[float, str | None]:
        on_progress(1)
        try:
            return read_aspect(images.file(i), decoder.max_pixels), None
        except UnreadableImage as error:
            return 1.0, error.reason

    with ThreadPoolExecutor(max(1, workers)) as pool:
        checked = list(pool.map(header, range(len(images))))

    broken: dict[str, str] = {}

    def pixels_of(file: ImageFile, decoded: Decoded) -> NDArray[np.uint8]:
        if not isinstance(decoded, str):
            return decoded
        # Hours into a run, and again after a resume, the same grey image is better than an end. Many of them
        # are a lost disk.
        if str(file) not in broken:
            broken[str(file)] = decoded
            _refuse_many(list(broken.items()), len(images), max_broken)
            log.warning(f"{file} cannot be read ({decoded}); a grey image replaces it")
        return np.full((3, *decoder.size), 128, np.uint8)

    def read(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        files = [images.file(int(row)) for row in rows]
        decoded = decode_all(decoder, files, workers)
        return np.stack([pixels_of(file, found) for file, found in zip(files, decoded, strict=True)])

    aspects = np.array([aspect for aspect, _ in checked], np.float32)
    bad = [(i, reason) for i, (_, reason) in enumerate(checked) if reason is not None]
    return PixelStore(aspects, read, np.arange(len(images))), bad
