"""Images that show the same: in which splits they are, so that a measurement knows what training has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..run_schema import DuplicateCounts
from .groups import Spared
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
    spared: Spared | None = None

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
            leaking_paths=tuple(self.images.paths[i] for i in self.leaking),
            moved=self.spared.moved if self.spared else 0,
            spared=self.spared.images if self.spared else 0,
            spared_same_label=self.spared.same_label if self.spared else 0,
        )


def survey(splits: Splits, duplicates: Duplicates) -> Survey:
    """duplicates: among `splits.everything`."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    names = [name for name, images in parts.items() if images is not None for _ in range(len(images))]
    return Survey(splits.everything, np.array(names), duplicates, splits.spared)


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
        f"{' and '.join(found)} look the same as a training image, so accuracy looks better than it is; "
        f"{remedy}, and deitkit check shows them"
    )


def with_effect(
    counts: DuplicateCounts, right: NDArray[np.bool_], leaking: NDArray[np.bool_]
) -> DuplicateCounts:
    """`counts` with what the duplicates do to a measurement.

    right, leaking: (n,) of the validation images, whether the student is right and whether training has seen
    them. Were those that `data.group=auto` spared still there, a model that remembers its training images
    would name the label that it has seen.
    """

    def percent(mask: NDArray[np.bool_]) -> float | None:
        return 100 * float(mask.mean()) if len(mask) else None

    top1, n = percent(right), len(right)
    pretended = None
    if counts.spared and top1 is not None:
        kept = max(0, n - counts.spared)
        pretended = (top1 * kept + 100 * counts.spared_same_label) / (kept + counts.spared)
    return replace(
        counts,
        top1_leaking=percent(right[leaking]),
        top1_others=percent(right[~leaking]) if leaking.any() else None,
        top1_pretended=pretended,
    )


def effect_sentence(counts: DuplicateCounts) -> str | None:
    """What the duplicates do to the student's top-1, in words; None if there is nothing to say."""
    if counts.top1_leaking is not None and counts.top1_others is not None:
        return (
            f"the student is right on {counts.top1_leaking:.1f} % of the {counts.leaking_val} validation "
            f"images that look the same as a training image, and on {counts.top1_others:.1f} % of the others"
        )
    if counts.top1_pretended is not None:
        return (
            f"without --group-by auto, {counts.spared} validation images would have looked the same as a "
            f"training image, and a student that remembers these would have seemed to have a top-1 of "
            f"{counts.top1_pretended:.1f} %"
        )
    return None
