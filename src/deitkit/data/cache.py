"""Decoded pixels at one size: decoded once and kept on disk, or decoded as needed.

Both stores give the same pixels, bit for bit. A kept one is a plain memory-mapped array, written to
the side and renamed, so that an interrupted write never looks whole.
"""

from __future__ import annotations

import hashlib
import os
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
from ..errors import DataError
from ..io import read_json, write_json, written_aside
from .decode import UnreadableImage, center_crop, open_for_view, read_aspect, resize
from .image_set import ImageSet

_VERSION = 4  # of what is kept: a change in decoding makes old caches stale


@dataclass(frozen=True)
class Decoder:
    """Decodes an image to (3, H, W) uint8, and its width over height."""

    size: tuple[int, int]
    mode: Literal["resize", "center_crop"]
    crop: float = 1.0

    def __call__(self, path: Path) -> tuple[NDArray[np.uint8], float]:
        image, extent = open_for_view(path, self.size, self.crop)
        aspect = extent[0] / extent[1]
        if self.mode == "resize":
            return resize(image, self.size), aspect
        return center_crop(image, self.size, self.crop, extent), aspect


@dataclass(frozen=True)
class PixelStore:
    """Pixels of n images: `fetch` gives uint8; `aspects` (n,) are the originals' width over height."""

    aspects: NDArray[np.float32]
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(b,) indices -> (b, 3, H, W) uint8."""
        return torch.from_numpy(self.read(self.rows[np.asarray(indices)]))

    def subset(self, indices: NDArray[np.int64]) -> PixelStore:
        return replace(self, aspects=self.aspects[indices], rows=self.rows[indices])


def default_cache_dir() -> Path:
    """DEITKIT_CACHE, or deitkit in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DEITKIT_CACHE") or Path(base) / "deitkit")


def open_store(
    images: ImageSet,
    decoder: Decoder,
    *,
    cache_dir: Path,
    limit_bytes: int,
    workers: int,
    on_progress: Callable[[int], None] = lambda n: None,
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """The store of all images, and the unreadable ones as (index, reason).

    Pixels of up to `limit_bytes` are decoded at once by `workers` threads and kept in `cache_dir`;
    a second call finds them there. Larger sets are decoded at each `fetch`, where a file that proves broken
    behind a whole header is grey, and more than one in a hundred of them raise DeitkitError.
    """
    if len(images) * 3 * decoder.size[0] * decoder.size[1] > limit_bytes:
        return _decoding_store(images, decoder, workers, on_progress)
    key = hashlib.sha256(f"{_VERSION} {images.root.resolve()} {images.fingerprint()} {decoder}".encode())
    path = cache_dir / f"{key.hexdigest()[:24]}.pixels"
    try:
        facts = read_json(path.with_suffix(".json"))
        if path.stat().st_size != len(images) * 3 * decoder.size[0] * decoder.size[1]:
            raise ValueError("cut short")
    except (OSError, ValueError):
        try:
            facts = _decode_all(images, decoder, path, workers, on_progress)
        except OSError as error:
            raise DataError(
                f"decoded images cannot be kept in {cache_dir} ({error.strerror}); free some space there, "
                "or set DEITKIT_CACHE to another folder"
            ) from None
    pixels = np.memmap(path, np.uint8, "r", shape=(len(images), 3, *decoder.size))
    store = PixelStore(
        np.array(facts["aspects"], np.float32), lambda rows: pixels[rows], np.arange(len(images))
    )
    return store, [(i, reason) for i, reason in facts["unreadable"]]


def refuse_many_unreadable(
    unreadable: Sequence[tuple[str, str]], num_images: int, allowed: float = 0.01
) -> None:
    """Raises DeitkitError where more than `allowed` of all images are in `unreadable`: (path, reason)."""
    if len(unreadable) > allowed * num_images:
        first = "; ".join(f"{path} ({reason})" for path, reason in unreadable[:3])
        raise DataError(
            f"{len(unreadable)} of {num_images} images cannot be read, more than {100 * allowed:.0f} %: "
            f"{first}; repair or remove them"
        )


def _decode_all(
    images: ImageSet, decoder: Decoder, path: Path, workers: int, on_progress: Callable[[int], None]
) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(images) * 3 * decoder.size[0] * decoder.size[1]
    aspects, unreadable = [1.0] * len(images), []
    with written_aside(path) as side:
        with open(side, "wb") as file:
            # Space is claimed now: a memory map on a full disk would end the process instead.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for i, (aspect, reason) in enumerate(_decoded_into(side, images, decoder, pool)):
                aspects[i] = aspect
                if reason is not None:
                    unreadable.append((i, reason))
                on_progress(1)
    facts = {"aspects": aspects, "unreadable": unreadable}
    write_json(path.with_suffix(".json"), facts)
    return facts


def _decoded_into(
    file: Path, images: ImageSet, decoder: Decoder, pool: ThreadPoolExecutor
) -> Iterator[tuple[float, str | None]]:
    """Aspect of each image, or why it cannot be read; pixels go into `file`, which is closed at the end.

    Windows renames no file that is still mapped.
    """
    pixels = np.memmap(file, np.uint8, "r+", shape=(len(images), 3, *decoder.size))

    def work(i: int) -> tuple[float, str | None]:
        try:
            pixels[i], aspect = decoder(images.full_path(i))
        except UnreadableImage as error:
            return 1.0, error.reason
        return aspect, None

    yield from pool.map(work, range(len(images)))
    pixels.flush()


def _decoding_store(
    images: ImageSet, decoder: Decoder, workers: int, on_progress: Callable[[int], None]
) -> tuple[PixelStore, list[tuple[int, str]]]:
    def header(i: int) -> tuple[float, str | None]:
        on_progress(1)
        try:
            return read_aspect(images.full_path(i)), None
        except UnreadableImage as error:
            return 1.0, error.reason

    pool = ThreadPoolExecutor(max(1, workers))
    checked = list(pool.map(header, range(len(images))))

    broken: dict[str, str] = {}

    def pixels_of(row: int) -> NDArray[np.uint8]:
        try:
            return decoder(images.full_path(row))[0]
        except UnreadableImage as error:
            # A whole header before broken pixels: hours into a run, and again after a resume, the same
            # grey image is better than an end. Many of them are a lost disk.
            if str(error.path) not in broken:
                broken[str(error.path)] = error.reason
                refuse_many_unreadable(list(broken.items()), len(images))
                log.info(f"{error.path} cannot be read ({error.reason}); grey stands in for it")
            return np.full((3, *decoder.size), 128, np.uint8)

    def read(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack(list(pool.map(pixels_of, rows)))

    aspects = np.array([aspect for aspect, _ in checked], np.float32)
    bad = [(i, reason) for i, (_, reason) in enumerate(checked) if reason is not None]
    return PixelStore(aspects, read, np.arange(len(images))), bad
