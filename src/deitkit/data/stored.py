"""Images that lie inside larger files, such as shards of WebDataset or tables of Parquet.

An image set gives each image as a `Path` or as a `StoredImage`; whoever decodes takes either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNKNOWN_SIZE = -1


@dataclass(frozen=True)
class Container:
    """A file with images in it.

    read: (path, place, size) -> the bytes of one image. A function of a module, so that processes can be
    sent its name. Raises OSError or ValueError, with a short phrase, if the file has changed.
    """

    path: Path
    read: Callable[[Path, int, int], bytes]


@dataclass(frozen=True)
class StoredImage:
    """One image in a container. place: an offset or a row, as `Container.read` counts. size: in bytes."""

    name: str
    container: Container
    place: int
    size: int

    def __str__(self) -> str:
        return f"{self.container.path}/{self.name}"

    def read(self) -> bytes:
        """The bytes of the image file. Raises OSError or ValueError."""
        return self.container.read(self.container.path, self.place, self.size)


ImageFile = Path | StoredImage


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Where N images lie: for each the index of its container, or -1 if it is a file of its own.

    containers: C of them. of (N,): the index. places, sizes (N,): as in `StoredImage`.
    """

    containers: tuple[Container, ...]
    of: NDArray[np.int32]
    places: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @staticmethod
    def none(count: int) -> StoredImages:
        """`count` images that are files of their own."""
        nowhere = np.full(count, -1, np.int64)
        return StoredImages((), nowhere.astype(np.int32), nowhere, nowhere)

    @staticmethod
    def joined(parts: Sequence[StoredImages]) -> StoredImages:
        """The images of all parts, one after the other."""
        first = np.cumsum([0, *(len(part.containers) for part in parts)])
        of = [np.where(part.of < 0, -1, part.of + at) for part, at in zip(parts, first, strict=False)]
        return StoredImages(
            tuple(container for part in parts for container in part.containers),
            np.concatenate(of).astype(np.int32),
            np.concatenate([part.places for part in parts]),
            np.concatenate([part.sizes for part in parts]),
        )

    def image(self, i: int, name: str) -> StoredImage | None:
        if self.of[i] < 0:
            return None
        return StoredImage(name, self.containers[self.of[i]], int(self.places[i]), int(self.sizes[i]))

    def subset(self, indices: NDArray[np.int64]) -> StoredImages:
        return StoredImages(self.containers, self.of[indices], self.places[indices], self.sizes[indices])


def read_bytes(file: ImageFile) -> bytes:
    """The bytes of an image file. Raises OSError, or ValueError."""
    return file.read() if isinstance(file, StoredImage) else file.read_bytes()


def size_of(file: ImageFile) -> int | None:
    """The size in bytes; None if there is no such file, or it is not known."""
    if isinstance(file, StoredImage):
        return file.size if file.size != UNKNOWN_SIZE else None
    return file.stat().st_size if file.is_file() else None
