"""The images of a run again: some of training to calibrate on, those of validation to measure on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.decode import UnreadableImage
from ..data.folder import scan_as
from ..data.images import ImageSet
from ..data.splits import Splits, load_splits
from ..data.table import NAME as TABLE
from ..data.table import is_table, read_table
from ..errors import DeitkitError
from ..runs import read_settings
from .classifier import Classifier

CALIBRATION_IMAGES = 128


def run_splits(run: Path, data: Path | None) -> Splits:
    """The splits that the run trained and validated on, or the same kind of splits of `data`.

    Raises DeitkitError where the run's images are gone, or the classes of `data` are others.
    """
    saved = read_settings(run)
    root = data or Path(saved["data"]["root"])
    if data is None and not root.is_dir():
        raise DeitkitError(
            f"the images of {run} are no longer in {root}; give --data with the folder of some"
        )
    config = Config.from_dict(saved["config"]).data
    splits = load_splits(root, split=config.split, val_fraction=config.val_fraction, seed=config.split_seed)
    if list(splits.train.classes) != saved["classes"] or splits.train.task != saved.get("task", "classes"):
        raise DeitkitError(f"the classes in {root} are not those of {run}; give --data with the same classes")
    return splits


def labelled_images(folder: Path, classifier: Classifier, part: str | None = None) -> ImageSet:
    """The images of `folder` with labels that index the run's classes; a part of these is enough.

    part: "train", "val" or "test", of a labels.csv that says so; None for all. Raises DeitkitError
    for a class that the run does not know, and for a folder that is not of the run's kind.
    """
    if classifier.task == "classes":
        if part is not None:
            raise DeitkitError(f"--part chooses rows of a {TABLE}; give the folder of the part instead")
        return scan_as(folder, classifier.classes)
    if not is_table(folder):
        raise DeitkitError(f"the run knows several labels an image, and {folder} has no {TABLE}; add one")
    table = read_table(folder, classifier.classes)
    if part is None:
        return table.images
    chosen = table.part(part) if table.parts is not None else None
    if chosen is None:
        raise DeitkitError(f"no row of {folder / TABLE} has the split {part!r}; leave out --part")
    return chosen


def batches(
    classifier: Classifier, images: ImageSet, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, 3, H, W) uint8 as the run sees them, and their labels; unreadable images are passed over."""
    for first in range(0, len(images), batch_size):
        pixels, read = [], []
        for i in range(first, min(first + batch_size, len(images))):
            try:
                pixels.append(classifier.pixels(images.full_path(i)))
            except UnreadableImage:
                continue
            read.append(i)
        if pixels:
            yield torch.from_numpy(np.stack(pixels)), torch.from_numpy(images.labels[read])


def calibration_views(classifier: Classifier, images: ImageSet) -> Iterator[Tensor]:
    """Views in [0, 1] of up to 128 images spread over the set."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int))
    for pixels, _ in batches(classifier, images.subset(chosen), batch_size=16):
        yield pixels.float() / 255.0
