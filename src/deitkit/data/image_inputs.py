"""Images as callers have them: files, folders, patterns, encoded bytes, Pillow images, arrays and tensors."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DataError
from .decode import Extent, UnreadableImage, open_for_view, open_rgb, to_rgb
from .folder import images_under
from .image_file import MAX_PIXELS
from .stored import ImageFile
from .table import is_source, read_unlabeled
from .video import is_video, video_frames

_ACCEPTED = (
    "a path, a folder, a pattern, a video file, bytes of an image file, a Pillow image, an array (H, W, 3) "
    "or a tensor (3, H, W), or a list of these"
)


@dataclass(frozen=True)
class NamedImage:
    """One image and the name that its prediction carries: the path, or "image" for what has none."""

    name: str
    content: ImageFile | bytes | Image.Image

    def open(
        self, size: tuple[int, int], crop: float, max_pixels: int = MAX_PIXELS
    ) -> tuple[Image.Image, Extent]:
        """The image as RGB and its extent; see `decode.open_for_view`. Raises UnreadableImage."""
        if isinstance(self.content, Image.Image):
            image = to_rgb(self.content)
            return image, image.size
        if isinstance(self.content, bytes):
            try:
                return open_for_view(io.BytesIO(self.content), size, crop, max_pixels)
            except UnreadableImage as error:
                raise UnreadableImage(self.name, error.reason) from None
        return open_for_view(self.content, size, crop, max_pixels)

    def whole(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The image as RGB at its own size. Raises UnreadableImage."""
        if isinstance(self.content, Image.Image):
            return to_rgb(self.content)
        if isinstance(self.content, bytes):
            try:
                return open_rgb(io.BytesIO(self.content), max_pixels=max_pixels)
            except UnreadableImage as error:
                raise UnreadableImage(self.name, error.reason) from None
        return open_rgb(self.content, max_pixels=max_pixels)


OneImage = str | Path | bytes | Image.Image | NDArray[Any] | Tensor | NamedImage
ImageInput = OneImage | Iterable[OneImage]


def named_images(images: ImageInput) -> Iterator[NamedImage]:
    """Every image of `images`, in order; a folder gives all images below it, a pattern what it matches, a
    video file one frame per second.

    An array (H, W), (H, W, 3) or (H, W, 4) or a tensor (3, H, W) or (1, H, W) is one image; with one more
    dimension in front it is a batch. Its values are uint8, or floats in [0, 1]. Raises DataError for anything
    else, and for a path that does not exist.
    """
    if isinstance(images, (str, Path)):
        for found in named_files([str(images)]):
            if isinstance(found, NamedImage):
                yield found
            else:
                for frame in video_frames(found):
                    yield NamedImage(f"{found} at {frame.seconds:.1f} s", frame.image)
    elif isinstance(images, NamedImage):
        yield images
    elif isinstance(images, (bytes, bytearray, memoryview)):
        yield NamedImage("image", bytes(images))
    elif isinstance(images, Image.Image):
        yield NamedImage("image", images)
    elif isinstance(images, Tensor):
        yield from map(_from_array, _channels_last(images))
    elif isinstance(images, np.ndarray):
        yield from map(_from_array, images if images.ndim == 4 else [images])
    elif isinstance(images, Iterable):
        for image in images:
            yield from named_images(image)
    else:
        raise DataError(f"cannot classify a {type(images).__name__}; give {_ACCEPTED}")


def named_files(paths: Iterable[str]) -> list[NamedImage | Path]:
    """The images of `paths` as `expand` finds them, not opened yet, and the paths of videos.

    A file that is removed from now on is reported as unreadable. Raises DataError if nothing is found.
    """
    return [
        file if isinstance(file, Path) and is_video(file) else NamedImage(str(file), file)
        for file in expand(paths)
    ]


def expand(paths: Iterable[str]) -> list[ImageFile]:
    """Files unchanged, folders as all images below them except hidden ones, patterns as what they match.

    Of shards and of tables with images in them, all of their images.

    Raises DataError if nothing is found.
    """
    found: list[ImageFile] = []
    for text in paths:
        path = Path(text)
        if is_source(path):
            listed = read_unlabeled(path)
            found += [listed.file(i) for i in range(len(listed))]
        elif path.is_dir():
            found += map(Path, sorted(images_under(str(path))))
        elif os.path.lexists(path):  # a link to nowhere is reported as unreadable
            found.append(path)
        else:
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise DataError(f"there is no file {text}; give images, folders or patterns that exist")
            found += [Path(match) for match in matches if Path(match).is_file()]
    if not found:
        raise DataError(f"no images in {', '.join(paths)}; give images or folders that hold some")
    return found


def _channels_last(images: Tensor) -> list[NDArray[Any]]:
    """(C, H, W) or (B, C, H, W) -> arrays (H, W, C)."""
    batch = images.detach().cpu()[None] if images.ndim == 3 else images.detach().cpu()
    if batch.ndim != 4 or batch.shape[1] not in (1, 3):
        raise DataError(f"cannot classify a tensor {tuple(images.shape)}; give (3, H, W) or (B, 3, H, W)")
    if batch.is_floating_point():
        batch = batch.float()
    elif batch.dtype != torch.uint8:
        raise DataError(f"cannot classify a tensor of {batch.dtype}; give uint8, or floats in [0, 1]")
    return [image.permute(1, 2, 0).numpy() for image in batch]


def _from_array(pixels: NDArray[Any]) -> NamedImage:
    """(H, W) or (H, W, C), C of 1, 3 or 4; uint8, or floats in [0, 1]."""
    if (
        pixels.ndim not in (2, 3)
        or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4))
        or 0 in pixels.shape
    ):
        raise DataError(f"cannot classify an array {pixels.shape}; give (H, W, 3), channels last")
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            raise DataError(
                f"an array of floats has values from {pixels.min():g} to {pixels.max():g}; "
                "give floats in [0, 1], or uint8"
            )
        pixels = np.round(pixels * 255.0).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DataError(f"cannot classify an array of {pixels.dtype}; give uint8, or floats in [0, 1]")
    return NamedImage("image", Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
