"""The images of a run, or of a folder: to calibrate on those of training, to measure on others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..classifier import Classifier
from ..config import DataConfig
from ..data.cache import refuse_many_unreadable
from ..data.decode import UnreadableImage
from ..data.folder import scan_as
from ..data.image_set import ImageSet, concatenated, evenly_spread
from ..data.source import is_here, is_remote, shown
from ..data.splits import Splits, eval_folder, load_splits
from ..data.stored import ImageFile
from ..data.table import NAME as TABLE
from ..data.table import find_table, image_root, is_source, is_table, read_table
from ..errors import DataError, DeitkitError
from ..run_folder import holds_teacher, read_info, read_split, refuse_untrained, run_of_teacher

CALIBRATION_IMAGES = 128
_UNKNOWN = "The run's own images are not here: some of these may be among them."
Decoded = TypeVar("Decoded")


def run_of(folder: Path) -> Path | None:
    """The run behind a folder: itself, or the run that keeps a fitted teacher; None for another teacher."""
    return run_of_teacher(folder) if holds_teacher(folder) else folder


def run_splits(folder: Path, classifier: Classifier, data: Path | None) -> Splits:
    """The images that a run, or a run's teacher, was trained and validated on; or splits of `data` like them.

    Images that the run's own folder has gained since are in neither. Raises DataError if the images are gone,
    or the classes of `data` are others.
    """
    run = run_of(folder)
    if run is None:
        if data is None:
            raise DataError(f"the teacher in {folder} does not know its images; give --data with a folder")
        return _with_classes_of(classifier, _load(data, DataConfig(), classifier), folder, data)
    info = read_info(run)
    refuse_untrained(run, info)
    assert info.data is not None
    root = data or Path(info.data.root or "")
    if data is None and not is_here(root):
        where = (
            f"in {shown(root)}, which is read only if you name it"
            if is_remote(root)
            else f"no longer in {root}"
        )
        raise DataError(f"the images of {run} are {where}; give --data with the folder of some")
    config = info.config.data if info.config is not None else DataConfig()
    relabel = config.relabel if data is None and Path(config.relabel or "").is_file() else None
    # The list of the run's own images says what was left out, and on which side each was.
    config = replace(config, group="none", exclude=None, relabel=relabel)
    splits = _with_classes_of(classifier, _load(root, config, classifier), folder, root)
    saved = read_split(run) if data is None else None
    if saved is None:
        return splits
    train, val = (_listed(splits, paths) for paths in (saved.train, saved.val))
    if len(val) == 0:
        raise DataError(
            f"no validation image of {run} is left in {root}; give --data with the folder of some"
        )
    return replace(splits, train=train, val=val)


def _load(data: Path, config: DataConfig, classifier: Classifier) -> Splits:
    return load_splits(data, config, task=classifier.task)


def _with_classes_of(classifier: Classifier, splits: Splits, folder: Path, root: Path) -> Splits:
    """The splits; raises DataError if their classes are not the classifier's."""
    if splits.train.classes != classifier.classes or splits.train.task != classifier.task:
        raise DataError(f"the classes in {root} are not those of {folder}; give --data with the same classes")
    return splits


def _listed(splits: Splits, paths: Sequence[str]) -> ImageSet:
    """The images of `paths`, in whichever split they are now; those that are gone are left out."""
    images = concatenated([splits.train, splits.val])
    place = {path: i for i, path in enumerate(images.paths)}
    return images.subset(np.array([place[path] for path in paths if path in place], np.int64))


def labelled_images(folder: Path, classifier: Classifier, part: str | None = None) -> ImageSet:
    """The images of `folder` with labels that index the classifier's classes; some of them are enough.

    Of a folder with train/ and val/, those of val/. part: "train", "val" or "test", of a labels.csv that has
    splits; None for all. Raises DataError for an unknown class, and for a folder of the other task.
    """
    if not is_table(folder):
        if classifier.task == "multilabel":
            raise DataError(f"the model is multilabel, and {folder} has no {TABLE}; add one")
        if part is not None:
            raise DataError(f"--part chooses rows of a {TABLE}; give the folder of the split instead")
        return scan_as(eval_folder(folder), classifier.classes)
    table = read_table(folder, classifier.classes, classifier.task)
    if part is None:
        return table.images
    chosen = table.split(part) if table.splits is not None else None
    if chosen is None:
        raise DataError(f"no row of {find_table(folder)} has the split {part!r}; leave out --part")
    return chosen


def without_training_images(folder: Path, images: ImageSet) -> tuple[ImageSet, list[str]]:
    """The images that a run, or a run's teacher, was not trained on, and notes on what was left out.

    On its training images a model looks more accurate and better calibrated than it is. They are recognised
    by their files, whichever link or folder leads there, and in a copy of the whole folder by names, sizes
    and labels. Any other copy is another image. Raises DataError if no image is left.
    """
    run = run_of(folder)
    if run is None:
        return images, [f"{folder} may have been fitted on some of these images."]
    info, split = read_info(run), read_split(run)  # converted weights have neither data nor a split
    if info.data is None or split is None:
        return images, [_UNKNOWN]
    paths = (*split.train, *split.unlabeled)
    here = is_here(Path(info.data.root or ""))
    trained_on = _copied(images, paths, info.data.fingerprint)
    if not trained_on and not here:
        return images, [_UNKNOWN]
    if here:
        trained_on |= _same_files(images, Path(info.data.root or ""), paths)
    unseen = [i for i in range(len(images)) if i not in trained_on]
    if not unseen:
        raise DataError(
            f"the run was trained on every image of {images.root}; give images that it has not seen"
        )
    left_out = len(images) - len(unseen)
    notes = [f"{left_out} images that the run was trained on are left out."] if left_out else []
    return images.subset(np.array(unseen)), notes


def _same_files(images: ImageSet, data: Path, paths: Iterable[str]) -> set[int]:
    """The images whose files are those of `paths` in `data`, whichever link or folder leads there."""
    if is_source(data):
        same = images.stored is not None and os.path.realpath(images.root) == os.path.realpath(
            image_root(data)
        )
        named = set(paths) if same else set()
        return {i for i, path in enumerate(images.paths) if path in named}
    files = {os.path.realpath(image_root(data) / path) for path in paths}
    return {i for i in range(len(images)) if os.path.realpath(str(images.file(i))) in files}


def _copied(images: ImageSet, paths: Sequence[str], fingerprint: str) -> set[int]:
    """The images of `paths`, if they are there in a copy of the folder with that fingerprint."""
    place = {path: i for i, path in enumerate(images.paths)}
    rows = [place[path] for path in paths if path in place]
    if len(rows) < len(paths):
        return set()
    same = images.subset(np.array(rows, np.int64)).fingerprint(times=False) == fingerprint
    return set(rows) if same else set()


def has_validation_images(folder: Path, images: ImageSet) -> bool:
    """Whether some of the images are those that the run behind `folder` was validated, and calibrated, on.

    By their files, or by their paths in the folder if the run's own images are not here.
    """
    run = run_of(folder)
    split = read_split(run) if run is not None else None
    data = read_info(run).data if run is not None else None
    if split is None or data is None:
        return False
    if not is_here(Path(data.root or "")):
        return not set(images.paths).isdisjoint(split.val)
    return bool(_same_files(images, Path(data.root or ""), split.val))


def image_finder(data: Path) -> Callable[[str], ImageFile]:
    """What gives the image of a path of `data`, for pages; without the data, a file that is not there."""
    root = image_root(data)
    if not (is_here(data) and is_source(data)):
        return lambda path: root / path
    try:
        images = read_table(data).images
    except DeitkitError:
        return lambda path: root / path
    place = {path: i for i, path in enumerate(images.paths)}
    return lambda path: images.file(place[path]) if path in place else root / path


class FileBatches(Generic[Decoded]):
    """Batches of image files, decoded when they are needed; a few unreadable files are left out.

    Iterating yields (decoded images of a batch, their labels). Afterwards `skipped` holds (path, reason) of
    the unreadable files; too many of them raise DataError. decode: file -> image; raises UnreadableImage.
    advance: called with the number of unreadable files of each batch.
    """

    def __init__(
        self,
        images: ImageSet,
        decode: Callable[[ImageFile], Decoded],
        batch_size: int = 32,
        advance: Callable[[int], object] = lambda images: None,
    ):
        self.images, self.decode, self.batch_size, self.advance = images, decode, batch_size, advance
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[list[Decoded], Tensor]]:
        for first in range(0, len(self.images), self.batch_size):
            decoded, read = [], []
            chosen = range(first, min(first + self.batch_size, len(self.images)))
            for i in chosen:
                try:
                    decoded.append(self.decode(self.images.file(i)))
                except UnreadableImage as error:
                    self.skipped.append((self.images.paths[i], error.reason))
                    continue
                read.append(i)
            self.advance(len(chosen) - len(read))
            if decoded:
                yield decoded, torch.from_numpy(self.images.labels[read])
        refuse_many_unreadable(self.skipped, len(self.images))


def stacked(batches: Iterable[tuple[list[NDArray[np.uint8]], Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of arrays (3, H, W) as tensors (B, 3, H, W), and their labels."""
    return ((torch.from_numpy(np.stack(pixels)), labels) for pixels, labels in batches)


def pixel_batches(
    classifier: Classifier, images: ImageSet, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views (B, 3, H, W) uint8 as `classifier` sees them, and their labels; unreadable files are left out."""
    return stacked(FileBatches(images, classifier.pixels, batch_size))


def calibration_views(classifier: Classifier, images: ImageSet) -> Iterator[Tensor]:
    """Views in [0, 1] of up to 128 images spread over the set."""
    chosen = evenly_spread(len(images), CALIBRATION_IMAGES)
    for pixels, _ in pixel_batches(classifier, images.subset(chosen), batch_size=16):
        yield pixels.float() / 255.0
