"""Corrections of a data set that leave its files as they are: other labels, and images that are left out.

Both are CSV files such as `deitkit check` writes, with a column `path` relative to the data folder; one of
labels has a column `label` as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, did_you_mean
from .image_listing import split_labels
from .image_set import ImageSet
from .table import image_root, is_source, read_columns


@dataclass(frozen=True)
class Corrections:
    """labels: of images by path, several for multilabel images. excluded: paths. Each with its line."""

    labels: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    _unused: set[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_unused", {*self.labels, *self.excluded})

    def apply(self, images: ImageSet) -> ImageSet:
        """The images without the excluded ones, and with other labels.

        Raises DataError for a label that is not a class, several labels for multiclass images, and a class of
        which no image is left.
        """
        if not self.labels and not self.excluded:
            return images
        self._unused.difference_update(images.paths)
        labels = images.labels.copy()
        for i, path in enumerate(images.paths):
            if path in self.labels:
                labels[i] = self._label(images, *self.labels[path])
        kept = np.array([i for i, path in enumerate(images.paths) if path not in self.excluded], np.int64)
        found = replace(images, labels=labels).subset(kept)
        gone = np.flatnonzero((images.counts() > 0) & (found.counts() == 0))
        if len(gone):
            raise DataError(
                f"--relabel and --exclude leave no image of the class {images.classes[gone[0]]!r} in "
                f"{images.root}; keep some, or remove its folder"
            )
        return found

    def refuse_unused(self, data: Path) -> None:
        """Raises DataError for a path that none of the images had."""
        if self._unused:
            path = min(self._unused)
            line = self.excluded.get(path) or self.labels[path][1]
            raise DataError(f"{line} names {path}, which is no image of a class in {data}")

    def _label(self, images: ImageSet, names: tuple[str, ...], line: str) -> object:
        unknown = [name for name in names if name not in images.classes]
        if unknown:
            known = did_you_mean(unknown[0], images.classes) or f"; they are {', '.join(images.classes[:8])}"
            raise DataError(f"{line} has the label {unknown[0]!r}, which is no class of the images{known}")
        places = [images.classes.index(name) for name in names]
        if images.task == "multilabel":
            return np.isin(np.arange(len(images.classes)), places)
        if len(places) != 1:
            raise DataError(f"{line} has {len(places)} labels, and an image has one; give one, or remove it")
        return places[0]


def read_corrections(data: Path, relabel: str | None, exclude: str | None) -> Corrections:
    """The corrections of the files `relabel` and `exclude`, of images in `data`.

    Raises DataError for a file that cannot be used, and for a path that is not there.
    """
    root = None if is_source(data) else image_root(data)
    labels = {
        path: (split_labels(label), line) for line, path, label in _rows(relabel, root, ("path", "label"))
    }
    excluded = {path: line for line, path, *_ in _rows(exclude, root, ("path",))}
    both = next((path for path in labels if path in excluded), None)
    if both is not None:
        raise DataError(f"{both} is in {relabel} and in {exclude}; keep it in one of them")
    return Corrections(labels, excluded)


def _rows(file: str | None, root: Path | None, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """(where, *cells) of each row; `where` names line and file in messages. root: of paths that are files."""
    if file is None:
        return []
    if not file:
        raise DataError("--relabel and --exclude take the path of a CSV file, and one is empty; leave it out")
    rows: list[tuple[str, ...]] = []
    lines: dict[str, int] = {}
    for number, (path, *cells) in read_columns(Path(file), columns):
        where = f"line {number} of {file}"
        path = path.replace("\\", "/").removeprefix("./")
        if not path or (root is not None and not (root / path).is_file()):
            holds = f", and {root} holds no such file; paths are relative to it" if root is not None else ""
            raise DataError(f"{where} names {path or 'no image'}{holds}")
        if lines.setdefault(path, number) != number:
            raise DataError(f"{path} is in lines {lines[path]} and {number} of {file}; keep one of them")
        rows.append((where, path, *cells))
    return rows
