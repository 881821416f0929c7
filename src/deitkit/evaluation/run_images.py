"""The images of a run again: some of training to calibrate on, those of validation to measure on."""

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

from ..classifier import Classifier, ImageClassifier
from ..config import Config
from ..data.decode import UnreadableImage
from ..data.folder import scan_as
from ..data.image_set import ImageSet, evenly_spread
from ..data.splits import Splits, eval_folder, load_splits
from ..data.table import NAME as TABLE
from ..data.table import find_table, image_root, is_table, read_table
from ..errors import DataError
from ..io import read_json
from ..run_folder import read_settings

CALIBRATION_IMAGES = 128
Decoded = TypeVar("Decoded")


def run_splits(run: Path, data: Path | None) -> Splits:
    """The images that the run trained and validated on, or the same kind of splits of `data`.

    Images that the run's own folder has gained since are in neither. Raises DeitkitError where the run's
    images are gone, or the classes of `data` are others.
    """
    saved = read_settings(run)
    root = data or Path(saved["data"]["root"])
    if data is None and not root.exists():
        raise DataError(f"the images of {run} are no longer in {root}; give --data with the folder of some")
    config = Config.from_dict(saved["config"]).data
    task = saved.get("task", "multiclass")
    splits = load_splits(
        root, split=config.split, val_fraction=config.val_fraction, seed=config.split_seed, task=task
    )
    if list(splits.train.classes) != saved["classes"] or splits.train.task != task:
        raise DataError(f"the classes in {root} are not those of {run}; give --data with the same classes")
    listed = _own_split(run) if data is None else None
    if listed is None:
        return splits
    train, val = (_listed(splits, listed[part]) for part in ("train", "val"))
    if len(val) == 0:
        raise DataError(
            f"no validation image of {run} is left in {root}; give --data with the folder of some"
        )
    return replace(splits, train=train, val=val)


def _own_split(run: Path) -> dict[str, list[str]] | None:
    """The content of the run's `split.json`; None for a run without one."""
    listed = [folder / "split.json" for folder in (run, run.parent)]  # a baseline has its run's split
    split = next((file for file in listed if file.exists()), None)
    return read_json(split) if split is not None else None


def _listed(splits: Splits, paths: Sequence[str]) -> ImageSet:
    """The images of `paths`, in whichever part they are now; those that are gone are passed over."""
    train, val = splits.train, splits.val
    labels = np.concatenate([train.labels, val.labels])
    images = ImageSet(train.root, train.paths + val.paths, labels, train.classes)
    place = {path: i for i, path in enumerate(images.paths)}
    return images.subset(np.array([place[path] for path in paths if path in place], np.int64))


def labelled_images(folder: Path, classifier: Classifier, part: str | None = None) -> ImageSet:
    """The images of `folder` with labels that index the run's classes; a part of these is enough.

    Of a folder with train/ and val/, those of val/. part: "train", "val" or "test", of a labels.csv that
    says so; None for all. Raises DeitkitError for a class that the run does not know, and for a folder that
    is not of the run's kind.
    """
    if not is_table(folder):
        if classifier.task == "multilabel":
            raise DataError(f"the run knows several labels an image, and {folder} has no {TABLE}; add one")
        if part is not None:
            raise DataError(f"--part chooses rows of a {TABLE}; give the folder of the part instead")
        return scan_as(eval_folder(folder), classifier.classes)
    table = read_table(folder, classifier.classes, classifier.task)
    if part is None:
        return table.images
    chosen = table.split(part) if table.splits is not None else None
    if chosen is None:
        raise DataError(f"no row of {find_table(folder)} has the split {part!r}; leave out --part")
    return chosen


def without_training_images(run: Path, images: ImageSet) -> tuple[ImageSet, list[str]]:
    """The images that the run was not trained on, and what to say of it.

    On images it was trained on, a model looks more accurate and better calibrated than it is. They are known
    by their files, whichever link or folder leads there; a copy is another file. Raises DeitkitError where no
    image is left.
    """
    trained, parts = read_json(run / "config.json").get("data"), _own_split(run)  # weights alone have neither
    if trained is None or parts is None or not Path(trained["root"]).exists():
        return images, ["The run's own images are not here: some of these may be among them."]
    root = image_root(Path(trained["root"]))
    trained_on = {os.path.realpath(root / path) for path in parts["train"] + parts.get("unlabeled", [])}
    unseen = [i for i in range(len(images)) if os.path.realpath(images.full_path(i)) not in trained_on]
    if not unseen:
        raise DataError(
            f"the run was trained on every image of {images.root}; give images that it has not seen"
        )
    left_out = len(images) - len(unseen)
    notes = [f"{left_out} images that the run was trained on are left out."] if left_out else []
    return images.subset(np.array(unseen)), notes


class FileBatches(Generic[Decoded]):
    """Batches of image files, decoded when they are needed; unreadable files are left out.

    Iterating yields (decoded images of a batch, their labels). Afterwards `skipped` holds (path, reason) of
    the unreadable files. decode: path -> image; raises UnreadableImage. advance: called with the number of
    unreadable files of each batch.
    """

    def __init__(
        self,
        images: ImageSet,
        decode: Callable[[Path], Decoded],
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
                    decoded.append(self.decode(self.images.full_path(i)))
                except UnreadableImage as error:
                    self.skipped.append((self.images.paths[i], error.reason))
                    continue
                read.append(i)
            self.advance(len(chosen) - len(read))
            if decoded:
                yield decoded, torch.from_numpy(self.images.labels[read])


def stacked(batches: Iterable[tuple[list[NDArray[np.uint8]], Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of arrays (3, H, W) as tensors (B, 3, H, W), and their labels."""
    return ((torch.from_numpy(np.stack(pixels)), labels) for pixels, labels in batches)


def pixel_batches(
    classifier: ImageClassifier, images: ImageSet, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views (B, 3, H, W) uint8 as `classifier` sees them, and their labels; unreadable files are left out."""
    return stacked(FileBatches(images, classifier.pixels, batch_size))


def calibration_views(classifier: ImageClassifier, images: ImageSet) -> Iterator[Tensor]:
    """Views in [0, 1] of up to 128 images spread over the set."""
    chosen = evenly_spread(len(images), CALIBRATION_IMAGES)
    for pixels, _ in pixel_batches(classifier, images.subset(chosen), batch_size=16):
        yield pixels.float() / 255.0
