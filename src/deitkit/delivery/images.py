"""The images of a run again: some of training to calibrate on, those of validation to measure on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..data.decode import UnreadableImage
from ..data.folder import ImageSet, Splits, load_splits
from ..errors import DeitkitError
from .classifier import Classifier

CALIBRATION_IMAGES = 128


def run_splits(run: Path, data: Path | None) -> Splits:
    """The splits that the run trained and validated on, or the same kind of splits of `data`.

    Raises DeitkitError where the run's images are gone, or the classes of `data` are others.
    """
    saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
    root = data or Path(saved["data"]["root"])
    if data is None and not root.is_dir():
        raise DeitkitError(
            f"the images of {run} are no longer in {root}; give --data with the folder of some"
        )
    config = Config.from_dict(saved["config"]).data
    splits = load_splits(root, split=config.split, val_fraction=config.val_fraction, seed=config.split_seed)
    if list(splits.train.classes) != saved["classes"]:
        raise DeitkitError(f"the classes in {root} are not those of {run}; give --data with the same classes")
    return splits


def batches(
    classifier: Classifier, images: ImageSet, batch_size: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, 3, H, W) uint8 as the run sees them, and labels (B,); unreadable images are passed over."""
    for first in range(0, len(images), batch_size):
        pixels, labels = [], []
        for i in range(first, min(first + batch_size, len(images))):
            try:
                pixels.append(classifier.pixels(images.full_path(i)))
            except UnreadableImage:
                continue
            labels.append(int(images.labels[i]))
        if pixels:
            yield torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def calibration_views(classifier: Classifier, images: ImageSet) -> Iterator[Tensor]:
    """Views in [0, 1] of up to 128 images spread over the set."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int))
    for pixels, _ in batches(classifier, images.subset(chosen), batch_size=16):
        yield pixels.float() / 255.0
