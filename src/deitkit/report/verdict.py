"""One sentence at the end of a training: which model to deploy, and why."""

from __future__ import annotations

import math
from typing import Any

from ..run_folder import TEACHER_FOLDER
from ..tasks import SCORES, Score


def verdict(
    student: dict[str, Any],
    teacher: dict[str, Any] | None,
    baseline: dict[str, Any] | None,
    val_images: int,
    score: Score = SCORES["multiclass"],
) -> str:
    """Weighs accuracy, with its 95 % interval from the number of validation images, speed and size.

    The facts are those of `results.json`; the task's `score` in percent.
    """
    low, high = student["interval"]
    key, say = score.key, score.say
    found = f"{say(student[key])} (95 % interval {low:.1f} to {high:.1f}, {val_images} images)"
    if teacher is None:
        return f"Deploy the student: {found}; there is no teacher to compare it with."
    gap = student[key] - teacher[key]
    speed = student["images_per_s"] / teacher["images_per_s"]
    size = f"{student['params'] / 1e6:.1f} against {teacher['params'] / 1e6:.1f} million parameters"
    pace = f"{speed:.1f}x its speed" if speed >= 1 else f"{speed:.2f}x its speed"
    # Of the difference, as if other images had measured each: on the same ones it is smaller still.
    margin = math.hypot((high - low) / 2, (teacher["interval"][1] - teacher["interval"][0]) / 2)
    if baseline is not None and baseline[key] > max(student[key] + margin, teacher[key]):
        return (
            f"Deploy the baseline: trained without a teacher it reaches {say(baseline[key])}, more than "
            f"the student's {found} and the teacher's {say(teacher[key])}; it is baseline/ of the run."
        )
    if gap >= 0:
        certainty = "more than" if gap > margin else "no less than, within chance,"
        return (
            f"Deploy the student: {found}, {certainty} the teacher's {say(teacher[key])}, at {pace}, {size}."
        )
    if -gap <= margin and speed >= 1:  # of two that cannot be told apart, the faster one
        return (
            f"Deploy the student: {found} is within chance of the teacher's {say(teacher[key])}, "
            f"and it runs at {pace}, {size}."
        )
    kept = teacher.get("folder", f"{TEACHER_FOLDER}/ in the run's folder")  # stored labels keep their own
    # What brought students nearer to their teachers: docs/small-data.md.
    more = "train longer (--epochs or --budget)"
    if score is SCORES["multiclass"]:
        more += " or add images without labels (--unlabeled)"
    helped = ""
    if baseline is not None and student[key] > baseline[key]:
        helped = f" (distillation lifted it from {say(baseline[key])})"
    return (
        f"Deploy the teacher (predict takes {kept}): with {say(teacher[key])} it is "
        f"ahead of the student's {found}{helped}, which runs at {pace}; before choosing the student, {more}."
    )
