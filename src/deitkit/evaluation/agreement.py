"""How often classifiers agree (arXiv 2012.12877, table 4), and what a student takes from its teacher.

Decisions are predicted classes (n,) of several classifiers on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def disagreement(decisions: Sequence[Tensor]) -> list[list[float]]:
    """Percent of images on which two classifiers disagree, for every pair; symmetric.

    If the labels are one of the "classifiers", their row holds the others' error rates, as in the paper's
    table.
    """
    table = torch.stack(list(decisions))  # (classifiers, n)
    return [[100 * (a != b).double().mean().item() for b in table] for a in table]


@dataclass(frozen=True)
class TeacherAgreement:
    """How often a student agrees with its teacher; in percent, None without such an image.

    where_right, where_wrong: on the images that the teacher classifies right, and wrong. corrects: share of
    the teacher's mistakes that the student gets right. breaks: share of the teacher's right predictions that
    the student gets wrong.
    """

    overall: float | None
    where_right: float | None
    where_wrong: float | None
    corrects: float | None
    breaks: float | None


def agreement_with_teacher(student: Tensor, teacher: Tensor, labels: Tensor) -> TeacherAgreement:
    """Compares decisions (n,) of student and teacher, given the labels (n,)."""
    same, teacher_right = student == teacher, teacher == labels
    return TeacherAgreement(
        overall=_percent(same, torch.ones_like(same)),
        where_right=_percent(same, teacher_right),
        where_wrong=_percent(same, ~teacher_right),
        corrects=_percent(student == labels, ~teacher_right),
        breaks=_percent(student != labels, teacher_right),
    )


def _percent(hits: Tensor, among: Tensor) -> float | None:
    """Of the images chosen by the mask `among`, the percentage that are hits."""
    return 100 * hits[among].double().mean().item() if bool(among.any()) else None
