"""Which model to deploy, and why, in one sentence."""

from __future__ import annotations

from typing import Any

SMALL_GAP = 1.0  # points of top-1 that at least twice the speed is worth
CLEARLY_FASTER = 1.1  # speed ratios nearer to 1 than this are noise


def verdict(
    student: dict[str, Any], teacher: dict[str, Any] | None, control: dict[str, Any] | None, val_images: int
) -> str:
    """One plain sentence that names the model to deploy and the numbers behind it.

    The dicts are those of `results.json` (top1 and interval in percent). Two accuracies count as
    different only where their 95 % intervals do not overlap; where they do, the sentence says so
    and the faster model is named. The teacher is named where it is clearly more accurate and the
    student does not repay that with speed.
    """
    if control is not None and _clearly_better(control, student):
        gain = control["top1"] - student["top1"]
        return (
            f"Deploy the control in control/, trained without a teacher: it gets {_accuracy(control)} of "
            f"{val_images:,} validation images right, {gain:.1f} points more than the distilled student's "
            f"{student['top1']:.1f} %{_beside_teacher(control, teacher)}."
        )
    if teacher is None:
        return (
            f"Deploy the student: it gets {_accuracy(student)} of {val_images:,} validation images right"
            f"{_cost(student)}{_worth(student, control)}."
        )
    return _against_teacher(student, teacher, val_images) + _worth(student, control) + "."


def _against_teacher(student: dict[str, Any], teacher: dict[str, Any], val_images: int) -> str:
    ratio = _speed_ratio(student, teacher)
    gap = teacher["top1"] - student["top1"]
    numbers = f"{_accuracy(student)} against the teacher's {_accuracy(teacher)} on {val_images:,} images"
    trade = _trade(student, teacher)
    if _clearly_better(student, teacher):
        joined = "but" if ratio and ratio * CLEARLY_FASTER < 1 else "and"
        return f"Deploy the student: it is more accurate, {numbers}, {joined} {trade}"
    if not _clearly_better(teacher, student):
        same = f"{val_images:,} validation images cannot tell their accuracies apart ({numbers})"
        same = same.replace(f" on {val_images:,} images", "")
        if _prefer_student(student, teacher):
            return f"Deploy the student: {trade}, and {same}"
        return f"Deploy the teacher: {same}, and the student {trade.removeprefix('it ')}"
    if gap <= SMALL_GAP and ratio and ratio >= 2:
        return f"Deploy the student: {trade} for {gap:.1f} points of accuracy, {numbers}"
    faster = ratio is not None and ratio >= CLEARLY_FASTER
    price = f"the student {trade.removeprefix('it ')}" + (
        f" and is the choice only where that counts for more than {gap:.1f} points" if faster else ""
    )
    reverse = f"{_accuracy(teacher)} against the student's {_accuracy(student)} on {val_images:,} images"
    return f"Deploy the teacher: it is more accurate, {reverse}; {price}"


def _prefer_student(student: dict[str, Any], teacher: dict[str, Any]) -> bool:
    """Between equals, whether the student is the faster or, at equal speed, the smaller one."""
    ratio = _speed_ratio(student, teacher)
    if ratio is None or 1 / CLEARLY_FASTER < ratio < CLEARLY_FASTER:
        return student["params"] <= teacher["params"]
    return ratio > 1


def _trade(student: dict[str, Any], teacher: dict[str, Any]) -> str:
    """What the student's speed and size are, seen from the teacher: "it is 4.2x as fast and ..."."""
    parts = []
    ratio = _speed_ratio(student, teacher)
    if ratio is not None:
        parts.append(
            "is as fast" if 1 / CLEARLY_FASTER < ratio < CLEARLY_FASTER else f"runs at {ratio:.2g}x the speed"
        )
    share = student["params"] / teacher["params"]
    parts.append(f"has {share:.2g}x the parameters")
    return "it " + " and ".join(parts)


def _worth(student: dict[str, Any], control: dict[str, Any] | None) -> str:
    """What the teacher added, where a control was trained to tell."""
    if control is None:
        return ""
    gain = student["top1"] - control["top1"]
    if _clearly_better(student, control):
        return f"; learning from the teacher was worth {gain:.1f} points over the control's {control['top1']:.1f} %"
    return f"; the control without a teacher reaches {control['top1']:.1f} %, which is no measurable difference"


def _beside_teacher(model: dict[str, Any], teacher: dict[str, Any] | None) -> str:
    if teacher is None:
        return ""
    if _clearly_better(teacher, model):
        return f", though the teacher, with {_accuracy(teacher)}, is more accurate where its speed will do"
    return f", and the teacher's {_accuracy(teacher)} is not clearly better"


def _accuracy(model: dict[str, Any]) -> str:
    low, high = model["interval"]
    return f"{model['top1']:.1f} % ({low:.1f} to {high:.1f})"


def _cost(student: dict[str, Any]) -> str:
    size = f" in {student['bytes'] / 1e6:.1f} MB" if student.get("bytes") else ""
    speed = student.get("images_per_s")
    return f" at {speed:,.0f} images/s{size}" if speed else size


def _clearly_better(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["interval"][0] > b["interval"][1]


def _speed_ratio(student: dict[str, Any], teacher: dict[str, Any]) -> float | None:
    mine, theirs = student.get("images_per_s"), teacher.get("images_per_s")
    return mine / theirs if mine and theirs else None
