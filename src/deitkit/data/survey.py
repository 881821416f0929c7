"""Images that show the same: in which splits they are, so that a measurement knows what training has seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..run_schema import DuplicateCounts
from .image_set import ImageSet
from .near_duplicates import Duplicates
from .splits import Splits

FEW = 20  # images of a class, with which a validation score says little


@dataclass(frozen=True)
class Survey:
    """All labelled images, the name of each one's split (N,), and the groups that show the same."""

    images: ImageSet
    split: NDArray[np.str_]
    duplicates: Duplicates

    @cached_property
    def leaking(self) -> NDArray[np.int64]:
        """Images outside training that show the same as a training image."""
        return np.array(sorted(i for group in self.divided for i in group if self.split[i] != "train"), int)

    @cached_property
    def divided(self) -> list[tuple[int, ...]]:
        """The groups with images in training and outside."""
        trained = self.split == "train"
        return [group for group in self.duplicates.near if 0 < trained[list(group)].sum() < len(group)]

    @cached_property
    def conflicting(self) -> list[tuple[int, ...]]:
        """The groups whose images do not all have the same label."""
        labels = self.images.labels
        return [group for group in self.duplicates.near if (labels[list(group)] != labels[group[0]]).any()]

    def counts(self) -> DuplicateCounts:
        """The short form, which is kept in a run."""
        of = {name: int((self.split[self.leaking] == name).sum()) for name in ("val", "test")}
        return DuplicateCounts(
            groups=len(self.duplicates.near),
            images=sum(map(len, self.duplicates.near)),
            exact=sum(map(len, self.duplicates.exact)),
            conflicting=len(self.conflicting),
            leaking_val=of["val"],
            leaking_test=of["test"],
        )


def survey(splits: Splits, duplicates: Duplicates) -> Survey:
    """duplicates: among `splits.everything`."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    names = [name for name, images in parts.items() if images is not None for _ in range(len(images))]
    return Survey(splits.everything, np.array(names), duplicates)


def leak_warning(counts: DuplicateCounts, num_val: int, held_out: bool) -> str | None:
    """A sentence on images outside training that training knows; None if there are none.

    held_out: whether deitkit held out the validation images, so that it may do so otherwise.
    """
    found = []
    if counts.leaking_val:
        found.append(f"{counts.leaking_val} of {num_val} validation images")
    if counts.leaking_test:
        found.append(f"{counts.leaking_test} test images")
    if not found:
        return None
    remedy = "--group-by auto keeps them on one side" if held_out else "remove them on one side"
    return (
        f"look the same as a training image: {' and '.join(found)}, so accuracy looks better than it is; "
        f"{remedy}, and deitkit check shows them"
    )
