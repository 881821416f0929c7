"""A set of images with labels: files of their own, or stored in larger files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks import SEPARATOR, Task
from .stored import UNKNOWN_SIZE, ImageFile, StoredImages

NO_LABEL = -1


@dataclass(frozen=True)
class ImageSet:
    """Images with paths relative to `root`, and their labels.

    labels: for multiclass (N,) integers that index `classes`, or NO_LABEL; for multilabel (N, K) bool,
    where a row may be empty. stored: where images lie that are no files of their own, whose paths only name
    them; None if all are.
    """

    root: Path
    paths: tuple[str, ...]
    labels: NDArray[Any]
    classes: tuple[str, ...]
    stored: StoredImages | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def task(self) -> Task:
        return "multilabel" if self.labels.ndim == 2 else "multiclass"

    def file(self, i: int) -> ImageFile:
        """What image i is decoded from."""
        stored = self.stored.image(i, self.paths[i]) if self.stored is not None else None
        return stored if stored is not None else self.root / self.paths[i]

    def label_text(self, i: int) -> str:
        """The name of image i's class, or the names of its labels."""
        return SEPARATOR.join(self.classes[k] for k in _indices(self.labels[i]))

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        paths = tuple(self.paths[i] for i in indices)
        stored = self.stored.subset(indices) if self.stored is not None else None
        return ImageSet(self.root, paths, self.labels[indices], self.classes, stored)

    def joined(self, other: ImageSet) -> ImageSet:
        """The images of both sets, with the classes of this one. The other's paths become absolute."""
        paths = tuple(os.path.abspath(str(other.file(i))) for i in range(len(other)))
        return concatenated([self, replace(other, paths=paths)])

    def members(self, k: int) -> NDArray[np.int64]:
        """Indices of the images of class `k`, in order."""
        return np.flatnonzero(self.labels[:, k] if self.task == "multilabel" else self.labels == k)

    def counts(self) -> NDArray[np.int64]:
        """Number of images per class, (K,)."""
        if self.task == "multilabel":
            return np.asarray(self.labels.sum(0), np.int64)
        return np.bincount(self.labels, minlength=len(self.classes))

    def keep_fraction(self, fraction: float, seed: int) -> ImageSet:
        """A stratified random share of the images, with at least one image per class; 1 keeps all.

        With the same seed a smaller share is a subset of a larger one, so that studies of the number of
        images only add images.
        """
        if fraction == 1.0:
            return self
        rng = np.random.RandomState(seed)  # its stream never changes: every NumPy gives the same share
        if self.task == "multilabel":  # labels overlap: one order for all, and the first image of each
            order = rng.permutation(len(self))
            first = [order[self.labels[order, k]][:1] for k in range(len(self.classes))]
            kept = [order[: max(1, round(len(self) * fraction))], *first]
        else:
            kept = []
            for k in range(len(self.classes)):
                members = rng.permutation(self.members(k))
                kept.append(members[: max(1, round(len(members) * fraction))])
        return self.subset(np.unique(np.concatenate(kept)))

    def fingerprint(self, *, times: bool = True) -> str:
        """A hash of classes, paths, labels, file sizes and modification times, which stands for the pixels.

        Without `times` a copy of the folder has the same hash, and so have its images packed into shards.
        Absolute paths, of images outside `root`, count relative to their common folder, so that this may be
        copied as well.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        outside = [path for path in self.paths if os.path.isabs(path)]
        apart = _common_folder(outside) if outside and not times else None
        facts_of = _Facts(self)
        for i, (path, row) in enumerate(zip(self.paths, self.labels, strict=True)):
            size, changed = facts_of(i)
            label = row if self.task == "multiclass" else _indices(row).tolist()
            name = os.path.relpath(path, apart) if apart and os.path.isabs(path) else path
            facts = f"{name}\0{label}\0{size}\0{changed if times else ''}\n"
            digest.update(facts.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


def _common_folder(paths: Sequence[str]) -> str | None:
    """The deepest folder that holds all `paths`; None on several drives."""
    try:
        return os.path.commonpath(paths)
    except ValueError:
        return None


def concatenated(parts: Sequence[ImageSet]) -> ImageSet:
    """The images of all parts, one after the other, with root and classes of the first."""
    stored = None
    if any(part.stored is not None for part in parts):
        stored = StoredImages.joined([part.stored or StoredImages.none(len(part)) for part in parts])
    paths = tuple(path for part in parts for path in part.paths)
    labels = np.concatenate([part.labels for part in parts])
    return ImageSet(parts[0].root, paths, labels, parts[0].classes, stored)


def evenly_spread(total: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `total` indices, evenly spread; if images are sorted by class, over all classes."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(np.int64))


def targets_of(labels: NDArray[Any], num_classes: int) -> NDArray[np.float32]:
    """Labels of either task as targets (N, K); NO_LABEL becomes a row of zeros."""
    if labels.ndim == 2:
        return labels.astype(np.float32)
    return np.asarray(labels[:, None] == np.arange(num_classes), np.float32)


def has_label(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask (N,) of the images with known labels; an empty row of multilabel is known."""
    return labels != NO_LABEL if labels.ndim == 1 else np.ones(len(labels), bool)


def _indices(row: Any) -> NDArray[np.int64]:
    """Indices of the classes of one image, from its label or its row of labels."""
    if np.ndim(row) == 1:
        return np.flatnonzero(row)
    return np.array([row] if row != NO_LABEL else [], np.int64)


class _Facts:
    """Size and modification time of each image of a set; of a stored one, the time of its container.

    Where the size of a stored image is not known, that of its container stands for it, and its place.
    """

    def __init__(self, images: ImageSet):
        self._images = images
        containers = images.stored.containers if images.stored is not None else ()
        self._of_containers = [_size_and_time(container.path) for container in containers]

    def __call__(self, i: int) -> tuple[int | str, int]:
        stored = self._images.stored
        if stored is None or stored.of[i] < 0:
            return _size_and_time(self._images.root / self._images.paths[i])
        whole, changed = self._of_containers[stored.of[i]]
        size = int(stored.sizes[i])
        return (size if size != UNKNOWN_SIZE else f"{whole}:{stored.places[i]}"), changed


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere: decoding will report it
        return -1, 0
    return stat.st_size, stat.st_mtime_ns
