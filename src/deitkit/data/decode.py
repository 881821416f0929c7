"""Decodes image files to upright 8-bit RGB, and brings them to size: one way to train, one to evaluate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ..config import resized_side
from .image_file import MAX_PIXELS, ImageSource, decoding, opened
from .image_file import UnreadableImage as UnreadableImage

# Views are cropped from whole resized images of up to this many times their area, as other projects do it.
_MOST_CUT_AWAY = 4
_STRIP_PIXELS = 2**20  # images are converted in strips, so that intermediate results stay small

Extent = tuple[float, float]  # width, height in the pixels of a decoded image

_TO_UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_rgb(
    source: ImageSource, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes an image file to upright 8-bit RGB, transparency over white; of an animation the first frame.

    Args:
        at_least: Decode a JPEG at a reduced scale whose sides are no shorter than this many pixels.
        max_pixels: Refuse larger images.

    Raises UnreadableImage.
    """
    return open_with_extent(source, at_least=at_least, max_pixels=max_pixels)[0]


def open_with_extent(
    source: ImageSource, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Extent]:
    """As `open_rgb`, and how much of the decoded image the file's image covers.

    A reduced scale rounds up, so that the last row and column may be covered in part only.
    """
    with opened(source, max_pixels) as image:
        full_size, extent = image.size, (float(image.width), float(image.height))
        if at_least is not None and image.format == "JPEG":
            drafted = image.draft("RGB", (at_least, at_least))
            extent = drafted[1][2:] if drafted is not None else extent
        with decoding(image, full_size, max_pixels):
            image.load()
            return to_rgb(image), extent[::-1] if _lies_on_its_side(image) else extent


def open_for_view(
    source: ImageSource, size: tuple[int, int], crop: float, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Extent]:
    """As `open_with_extent`, large enough for views of `size` (height, width) that show the share `crop`.

    A JPEG's reduced scale keeps twice the pixels of a view, so that resizing makes it smooth.
    """
    return open_with_extent(source, at_least=round(2 * max(size) / crop), max_pixels=max_pixels)


def read_aspect(source: ImageSource, max_pixels: int = MAX_PIXELS) -> float:
    """The upright image's width over height, from the file's header. Raises UnreadableImage."""
    with opened(source, max_pixels) as image:
        aspect = image.width / image.height
        return 1 / aspect if _lies_on_its_side(image) else aspect


def max_pixel_value(source: ImageSource, max_pixels: int = MAX_PIXELS) -> int | None:
    """The largest value of an image of more than 8 bits, of which 65535 becomes white; None for others."""
    with opened(source, max_pixels) as image:
        if not image.mode.startswith("I"):
            return None
        with decoding(image, image.size, max_pixels):
            return int(image.getextrema()[1])  # type: ignore[arg-type]


def _lies_on_its_side(image: Image.Image) -> bool:
    exif = image.getexif()
    if exif.get(ExifTags.Base.Orientation) not in (5, 6, 7, 8):
        return False
    as_stored = (exif.get(ExifTags.Base.ImageWidth), exif.get(ExifTags.Base.ImageLength))
    return image.format != "TIFF" or image.size == as_stored  # else Pillow gives their upright size itself


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright 8-bit RGB, transparency over white. The result is a copy."""
    image.load()  # Pillow turns TIFFs upright as it loads them, and then they no longer say how they lay
    method = _TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if method is not None:
        image = image.transpose(method)
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_of_values(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _grey_of_values(image: Image.Image) -> Image.Image:
    """RGB of an image of integers beyond 8 bits or of floats, NaN and infinity black.

    16-bit files use the whole range or a part of it; wider ones have no agreed white, and their largest value
    becomes white.
    """
    boxes = _strips(image.size)
    white = 65535.0
    if not image.mode.startswith("I;16"):
        largest = max(float(_values(image.crop(box)).max()) for box in boxes)
        white = 65535.0 if image.mode == "I" and largest <= 65535 else max(largest, 1e-9)
    out = Image.new("RGB", image.size)
    for box in boxes:
        grey = (_values(image.crop(box)).clip(0) / white * 255).round().astype(np.uint8)
        out.paste(Image.fromarray(grey).convert("RGB"), box)
    return out


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)


def _over_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGB", image.size)
    for box in _strips(image.size):
        rgba = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        out.paste(Image.alpha_composite(white, rgba).convert("RGB"), box)
    return out


def _strips(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes of whole rows that cover an image of `size` (width, height)."""
    rows = max(1, _STRIP_PIXELS // size[0])
    return [(0, top, size[0], min(top + rows, size[1])) for top in range(0, size[1], rows)]


def resize(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole image resized to (height, width), whatever its aspect ratio: (3, H, W) uint8.

    Training stores images like this. The affine map of a training view restores the aspect ratio.
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
    """The preprocessing of every evaluation: resize, then crop the center. (3, H, W) uint8.

    The image is resized until it covers `size` / `crop`, then cropped to `size` (height, width), in whole
    pixels as by timm and transformers. Validation while training, `eval` and `predict` all use this function.

    Args:
        extent: The second result of `open_with_extent`.
        interpolation: Pillow's name of a resampling filter.
    """
    H, W = size
    resample = Image.Resampling[interpolation.upper()]
    across, down = extent or image.size
    (width, height), (left, top) = _placement((across, down), size, crop)
    if width * height <= _MOST_CUT_AWAY * W * H:
        whole = image.resize((width, height), resample, box=(0, 0, across, down))
        resized = whole.crop((left, top, left + W, top + H))
    else:  # crop and resize in one step: a panorama would become large before it is cropped
        x, y = across / width, down / height
        box = (left * x, top * y, (left + W) * x, (top + H) * y)
        resized = image.resize((W, H), resample, box=box)
    return np.asarray(resized).transpose(2, 0, 1)


def seen_box(extent: Extent, size: tuple[int, int], crop: float) -> tuple[float, float, float, float]:
    """The part of an image of `extent` that `center_crop` shows: left, top, right, bottom in its pixels."""
    (width, height), (left, top) = _placement(extent, size, crop)
    x, y = extent[0] / width, extent[1] / height
    return left * x, top * y, (left + size[1]) * x, (top + size[0]) * y


def _placement(extent: Extent, size: tuple[int, int], crop: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height to which `center_crop` resizes an image, and left and top of the crop there."""
    (H, W), (across, down) = size, extent
    low, narrow = resized_side(H, crop), resized_side(W, crop)
    if narrow / across > low / down:
        width, height = narrow, max(low, int(narrow * down / across))
    else:
        width, height = max(narrow, int(low * across / down)), low
    return (width, height), ((width - W) // 2, (height - H) // 2)
