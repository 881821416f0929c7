"""From a file to RGB pixels, whatever the file; and the two ways of bringing pixels to size."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Above this a picture would take over a gigabyte of memory: refused by its header.
_MAX_PIXELS = 300_000_000


class UnreadableImage(Exception):
    """A file that holds no picture that can be read; `path` and a short `reason`."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def open_rgb(source: Path | BinaryIO, *, at_least: int | None = None) -> Image.Image:
    """The picture as 8-bit RGB, upright; the first frame of an animation, transparency over white.

    With `at_least`, a JPEG may be decoded at a reduced scale whose sides are no shorter than that
    many pixels. Raises UnreadableImage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata; the size is checked below
            return _open(source, at_least)
    except UnreadableImage:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(source, "the picture is too large") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage(source, "not an image, or an empty or unknown kind of file") from None
    except PermissionError:
        raise UnreadableImage(source, "no right to read the file") from None
    except Exception as error:  # a broken file can fail anywhere in a decoder
        raise UnreadableImage(source, f"broken: {error}") from None


def _open(source: Path | BinaryIO, at_least: int | None) -> Image.Image:
    with Image.open(source) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise UnreadableImage(source, f"{image.width} x {image.height} pixels are too many")
        if at_least is not None and image.format == "JPEG":
            image.draft("RGB", (at_least, at_least))
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An open picture of any mode as 8-bit RGB, upright, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        # 16-bit files use the whole range or a part of it; wider ones have no agreed white.
        white = 65535.0 if image.mode.startswith("I") and pixels.max() <= 65535 else max(pixels.max(), 1e-9)
        grey = (pixels.clip(0) / white * 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def squash(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole picture at (height, width), its aspect ratio given up: (3, H, W) uint8.

    Training views undo the squash: they know the aspect ratio, and their one affine map covers it.
    """
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(resized).transpose(2, 0, 1)


def centre_view(image: Image.Image, size: tuple[int, int], crop: float) -> NDArray[np.uint8]:
    """Evaluation's preprocessing, the one place for it: (3, H, W) uint8.

    Resized, bicubic, until it covers `size` / `crop`, then cut to `size` (height, width) around the
    centre. Validation while training, `eval` and `predict` all come through here.
    """
    H, W = size
    scale = max(H / crop / image.height, W / crop / image.width)
    width, height = (
        max(W, math.floor(image.width * scale + 0.5)),
        max(H, math.floor(image.height * scale + 0.5)),
    )
    left, top = (width - W) / 2 / width * image.width, (height - H) / 2 / height * image.height
    # Cut and resized in one go: a panorama must not be blown up before it is cut.
    box = (left, top, image.width - left, image.height - top)
    resized = image.resize((W, H), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.asarray(resized).transpose(2, 0, 1)
