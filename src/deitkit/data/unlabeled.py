"""Images without labels, for a teacher to label; never a held-out one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import DataError
from .folder import images_under
from .image_set import NO_LABEL, ImageSet
from .stored import ImageFile, StoredImage, read_bytes, size_of
from .table import is_source, read_unlabeled


def find_unlabeled(folder: Path, held_out: Iterable[ImageSet]) -> tuple[ImageSet, list[str]]:
    """All images of `folder`, labelled NO_LABEL, and the copies of held-out images among them.

    folder: images at any depth, or a source of `sources/`. Copies have the same bytes and are left out:
    training on them would teach what is measured. Raises DataError if no image is left.
    """
    images = read_unlabeled(folder) if is_source(folder) else _images_of_folder(folder)
    held = [others.file(i) for others in held_out for i in range(len(others))]
    sizes = {size for file in held if (size := size_of(file)) is not None}
    contents = {_content(file) for file in held if _may_be_one_of(file, sizes)}
    files = [images.file(i) for i in range(len(images))]
    copied = np.array([_may_be_one_of(f, sizes) and _content(f) in contents for f in files], bool)
    if copied.all():
        raise DataError(
            f"{folder} holds no images that are not held out already; give a folder with other images"
        )
    return images.subset(np.flatnonzero(~copied)), sorted(str(files[i]) for i in np.flatnonzero(copied))


def _images_of_folder(folder: Path) -> ImageSet:
    found = tuple(str(Path(path).resolve()) for path in sorted(images_under(str(folder))))
    return ImageSet(folder, found, np.full(len(found), NO_LABEL, np.int64), ())


def _may_be_one_of(file: ImageFile, sizes: set[int]) -> bool:
    """Whether a file that can be read has one of the sizes; that of a stored image may not be known."""
    size = size_of(file)
    return size in sizes if size is not None else isinstance(file, StoredImage) and bool(sizes)


def _content(file: ImageFile) -> bytes:
    try:
        return hashlib.blake2b(read_bytes(file), digest_size=16).digest()
    except ValueError:  # decoding it will say why
        return b""
