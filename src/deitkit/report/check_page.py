"""`check.html`: what `deitkit check` found, as images, with everything inside the page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.data_check import DataCheck
from ..io import write_text
from . import page
from .figures import thumbnail

_GROUPS, _IN_GROUP = 24, 8  # groups shown, and images of each
_IMAGES = 48  # of each list


def write_check(out: Path, found: DataCheck) -> Path:
    """Writes `check.html` into `out`; returns its path."""
    survey = found.survey
    divided = set(survey.divided)
    content = page.render(
        "check.html.j2",
        name=f"check of {found.data}",
        found=found,
        images=survey.images,
        splits=list(next(iter(found.class_counts.values()))),
        sizes=_sizes(found),
        divided=_groups(found, survey.divided),
        others=_groups(found, (group for group in survey.duplicates.near if group not in divided)),
        num_divided=len(divided),
        num_others=len(survey.duplicates.near) - len(divided),
        wrong=[_shown(found, w.index) | {"about": w} for w in (found.wrong_labels or ())[:_IMAGES]],
        outliers=[_shown(found, o.index) | {"about": o} for o in (found.outliers or ())[:_IMAGES]],
        out=out,
    )
    path = out / "check.html"
    write_text(path, content)
    return path


def _groups(found: DataCheck, groups: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
    """The first groups, each with some of its images; of a group, training images come first."""
    shown = []
    for group in list(groups)[:_GROUPS]:
        ordered = sorted(group, key=lambda i: (found.survey.split[i] != "train", i))
        shown.append({"size": len(group), "images": [_shown(found, i) for i in ordered[:_IN_GROUP]]})
    return shown


def _shown(found: DataCheck, i: int) -> dict[str, Any]:
    """What the page says of image i."""
    images = found.survey.images
    return {
        "path": images.paths[i],
        "label": images.label_text(i) or "none of the labels",
        "split": found.survey.split[i],
        "thumbnail": thumbnail(images.file(i)),
    }


def _sizes(found: DataCheck) -> str:
    """The sizes of the images, as a phrase."""
    sizes = np.array(found.sizes)
    small, large = sizes.min(0), sizes.max(0)
    if (small == large).all():
        return f"all of {small[0]} x {small[1]} pixels"
    middle = np.median(sizes, 0).astype(int)
    return (
        f"{small[0]} to {large[0]} pixels wide and {small[1]} to {large[1]} high, {middle[0]} x {middle[1]} "
        "in the median"
    )
