"""From a file to RGB pixels, whatever the file; and the two ways of bringing pixels to size."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..config import resized_side
from ..errors import DataError

# Above this a image would take over a gigabyte of memory: refused by its header.
_MAX_PIXELS = 300_000_000


# Views are cut from whole resized images up to so many times their area, as other projects do it.
_MOST_CUT_AWAY = 4

Extent = tuple[float, float]  # width, height in an image's pixels


class UnreadableImage(DataError):
    """A file that holds no image that can be read; `path` and a short `reason`."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def open_rgb(source: Path | BinaryIO, *, at_least: int | None = None) -> Image.Image:
    """The image as 8-bit RGB, upright; the first frame of an animation, transparency over white.

    With `at_least`, a JPEG may be decoded at a reduced scale whose sides are no shorter than that
    many pixels. Raises UnreadableImage.
    """
    return open_with_extent(source, at_least=at_least)[0]


def open_with_extent(source: Path | BinaryIO, *, at_least: int | None = None) -> tuple[Image.Image, Extent]:
    """As `open_rgb`, with how much of the image the file's own image takes up.

    A reduced scale rounds up, so that the last row and column may be covered in part only.
    """
    with _opened(source) as image:
        extent: Extent = image.size
        if at_least is not None and image.format == "JPEG":
            drafted = image.draft("RGB", (at_least, at_least))
            extent = drafted[1][2:] if drafted is not None else extent
        image.load()
        return to_rgb(image), extent[::-1] if _lies_on_its_side(image) else extent


def open_for_view(source: Path | BinaryIO, size: tuple[int, int], crop: float) -> tuple[Image.Image, Extent]:
    """As `open_with_extent`, large enough for views of `size` (height, width) that show the share `crop`.

    Twice the pixels of a view are left, so that resizing, and not the JPEG's reduced scale, makes it smooth.
    """
    return open_with_extent(source, at_least=round(2 * max(size) / crop))


def read_aspect(source: Path) -> float:
    """The upright image's width over height, from the file's header; raises UnreadableImage."""
    with _opened(source) as image:
        aspect = image.width / image.height
        return 1 / aspect if _lies_on_its_side(image) else aspect


def _lies_on_its_side(image: Image.Image) -> bool:
    exif = image.getexif()
    as_stored = (exif.get(ExifTags.Base.ImageWidth), exif.get(ExifTags.Base.ImageLength))
    if image.format == "TIFF" and image.size != as_stored:
        return False  # Pillow tells the upright size of these itself
    return exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


class _PillowSettings:
    """Pillow's warnings and its own limit on pixels, both off while any thread is inside.

    They belong to the whole process: each thread that saved and restored them on its own would
    restore what another one had set. So the first one in and the last one out do it.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters, self._limit = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; the size is checked here
                Image.MAX_IMAGE_PIXELS = None
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_pillow_settings = _PillowSettings()


@contextlib.contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """The file with its header read; whatever fails in here or in the caller is UnreadableImage."""
    try:
        with _pillow_settings, Image.open(source) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise UnreadableImage(source, f"too large: {image.width} x {image.height} pixels")
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(source, "not an image, or an empty or unknown kind of file") from None
    except FileNotFoundError:
        raise UnreadableImage(source, "the file is not there") from None
    except PermissionError:
        raise UnreadableImage(source, "no right to read the file") from None
    except Exception as error:  # a broken file can fail anywhere in a decoder
        raise UnreadableImage(source, f"broken: {error}") from None


def max_pixel_value(source: Path) -> int | None:
    """The largest value of a image of over 8 bits, of which 65535 becomes white; None for any other."""
    with _opened(source) as image:
        return int(image.getextrema()[1]) if image.mode.startswith("I") else None  # type: ignore[arg-type]


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image of any mode as 8-bit RGB, upright, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
        # 16-bit files use the whole range or a part of it; wider ones have no agreed white.
        white = 65535.0 if image.mode.startswith("I") and pixels.max() <= 65535 else max(pixels.max(), 1e-9)
        grey = (pixels.clip(0) / white * 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole image at (height, width), its aspect ratio given up: (3, H, W) uint8.

    Training views undo the squash: they know the aspect ratio, and their one affine map covers it.
    """
    resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(resized).transpose(2, 0, 1)


def center_crop(
    image: Image.Image,
    size: tuple[int, int],
    crop: float,
    extent: Extent | None = None,
    interpolation: str = "bicubic",
) -> NDArray[np.uint8]:
    """Evaluation's preprocessing, the one place for it: (3, H, W) uint8.

    Resized, until it covers `size` / `crop`, then cut to `size` (height, width) around the
    centre, with the whole pixels of timm's and transformers' resize and centre crop. Validation while
    training, `eval` and `predict` all come through here. extent: as `open_with_extent` gives it.
    interpolation: a name of Pillow's.
    """
    H, W = size
    way = Image.Resampling[interpolation.upper()]
    across, down = extent or image.size
    low, narrow = resized_side(H, crop), resized_side(W, crop)
    if narrow / across > low / down:
        width, height = narrow, max(low, int(narrow * down / across))
    else:
        width, height = max(narrow, int(low * across / down)), low
    left, top = (width - W) // 2, (height - H) // 2
    if width * height <= _MOST_CUT_AWAY * W * H:
        whole = image.resize((width, height), way, box=(0, 0, across, down))
        resized = whole.crop((left, top, left + W, top + H))
    else:  # cut and resized in one go: a panorama must not be blown up before it is cut
        x, y = across / width, down / height
        box = (left * x, top * y, (left + W) * x, (top + H) * y)
        resized = image.resize((W, H), way, box=box)
    return np.asarray(resized).transpose(2, 0, 1)
