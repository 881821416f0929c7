"""Images of the same field without labels, for the teacher to answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from .folder import images_under
from .image_set import NO_LABEL, ImageSet


def find_unlabeled(folder: Path, held_out: Iterable[ImageSet]) -> tuple[ImageSet, list[str]]:
    """All images at any depth of `folder`, labelled NO_LABEL; and those left out, as held-out images are.

    A file with the very content of a validation or test image would teach what is measured. Raises
    DeitkitError where nothing is left.
    """
    found = [Path(path) for path in sorted(images_under(str(folder)))]
    held = [path for images in held_out for path in _files(images)]
    sizes = {path.stat().st_size for path in held}
    contents = {_content(path) for path in held}
    copies = {p for p in found if p.is_file() and p.stat().st_size in sizes and _content(p) in contents}
    kept = [str(path.resolve()) for path in found if path not in copies]
    if not kept:
        raise DataError(
            f"{folder} holds no images that are not held out already; give a folder with other images"
        )
    labels = np.full(len(kept), NO_LABEL, np.int64)
    return ImageSet(folder, tuple(kept), labels, ()), sorted(map(str, copies))


def _files(images: ImageSet) -> Iterator[Path]:
    return (path for path in map(images.full_path, range(len(images))) if path.is_file())


def _content(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
