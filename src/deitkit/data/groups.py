"""Images that belong together, such as those of a patient or a day, and a split that keeps them on one side.

`data.group` says which belong together:

    none        each image stands alone
    auto        near-duplicates, see near_duplicates.py
    folder      images whose folder has the same name, below that of the class
    REGEX       images of whose file names its one group matches the same text, as in "patient(\\d+)"
    COLUMN      rows of a table with the same text in that column
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..settings import AUTO
from .image_set import ImageSet, targets_of

NONE, FOLDER = "none", "folder"
_TRIES = 100  # orders of the groups, until each class is on both sides

Groups = NDArray[np.int64]  # (N,) a number for each image, the same for images that belong together


def is_column(rule: str) -> bool:
    """Whether `data.group` names a column: it is none of the words, and no regular expression."""
    return rule not in (NONE, AUTO, FOLDER) and "(" not in rule


def known_groups(images: ImageSet, rule: str, cells: Mapping[str, str] | None = None) -> Groups:
    """The groups of "folder", of a column or of a regular expression.

    cells: of the column, by path; an image whose cell is empty stands alone. Raises DataError for a name that
    the expression does not match.
    """
    if is_column(rule):
        keys = [(cells or {}).get(path, "") for path in images.paths]
    elif rule == FOLDER:
        parents = [os.path.basename(os.path.dirname(path)) for path in images.paths]
        keys = ["" if parent in images.classes else parent for parent in parents]
    else:
        keys = [_matched(rule, path) for path in images.paths]
    distinct = [(key, "" if key else path) for key, path in zip(keys, images.paths, strict=True)]
    number: dict[tuple[str, str], int] = {}
    return np.array([number.setdefault(each, len(number)) for each in distinct], np.int64)


def _matched(rule: str, path: str) -> str:
    found = re.search(rule, os.path.basename(path))
    if found is None or found[1] is None:
        raise DataError(
            f"data.group {rule!r} does not match the file name of {path}; give an expression that matches all"
        )
    return found[1]


def keep_on_one_side(held: NDArray[np.bool_], groups: Groups) -> NDArray[np.bool_]:
    """`held` (N,) with each group on the side of most of its images.

    Of equally many on both sides, it is trained on.
    """
    sizes, of_held = np.bincount(groups), np.bincount(groups, weights=held)
    kept: NDArray[np.bool_] = (2 * of_held > sizes)[groups]
    return kept


@dataclass(frozen=True)
class Spared:
    """What a split that keeps near-duplicates on one side has spared its measurements.

    moved: images. images: of the validation images that there were before, those that looked the same as a
    training image. same_label: how many of these had the label of such a training image.
    """

    moved: int
    images: int
    same_label: int


def spared(images: ImageSet, before: NDArray[np.bool_], after: NDArray[np.bool_], groups: Groups) -> Spared:
    """before, after: (N,) the images that are held out, without and with whole groups."""
    trained = {(int(g), *np.atleast_1d(images.labels[i])) for i, g in enumerate(groups) if not before[i]}
    trained_groups = np.isin(groups, groups[~before])
    leaking = np.flatnonzero(before & trained_groups)
    same = sum((int(groups[i]), *np.atleast_1d(images.labels[i])) in trained for i in leaking)
    return Spared(int((before != after).sum()), len(leaking), same)


def hold_out_groups(images: ImageSet, groups: Groups, val_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Holds out whole groups, about `val_fraction` of each class, so that each class is on both sides.

    The largest groups come first, each to the side where the shares of the classes stay nearer to what is
    wanted. Raises DataError if no order of 100 leaves each class on both sides.
    """
    labels = targets_of(images.labels, len(images.classes)).astype(np.float64)
    num_groups = int(groups.max()) + 1
    counts = np.zeros((num_groups, labels.shape[1] + 1))  # images of each class, and of any
    np.add.at(counts, groups, np.concatenate([labels, np.ones((len(images), 1))], 1))
    total = counts.sum(0)
    rng = np.random.RandomState(seed)  # its stream never changes: every NumPy gives the same split
    for _ in range(_TRIES):
        order = rng.permutation(num_groups)
        order = order[np.argsort(-counts[order, -1], kind="stable")]
        chosen, taken = np.zeros(num_groups, bool), np.zeros_like(total)
        for g in order:
            share, with_g = taken / total, (taken + counts[g]) / total
            chosen[g] = np.square(with_g - val_fraction).sum() < np.square(share - val_fraction).sum()
            taken += chosen[g] * counts[g]
        if ((taken > 0) & (taken < total)).all():
            return chosen[groups]
    missing = images.classes[int(np.flatnonzero((taken == 0) | (taken == total))[0])]
    raise DataError(
        f"with whole groups (data.group) the class {missing!r} is in training or in validation only; "
        "give smaller groups, more images of it, or another data.split_seed"
    )
