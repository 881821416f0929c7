"""The verdict is right where it matters: few images, uneven classes, a busy machine."""

from __future__ import annotations

import pytest

from deitkit.report.verdict import Candidate, Rarest, verdict
from deitkit.run_schema import Comparison, Difference, Speedup

RAREST = Rarest("defective", 9)


def candidate(role, score=90.0, learned=True, folder=None):
    params = 4_000_000 if role == "teacher" else 1_000_000
    return Candidate(role, score, (score - 2, score + 2), learned, params, folder)


def judge(candidates, half_width=2.0, speedup=2.2, metric="top1", images=400, speed_range=None):
    """The verdict on candidates whose differences have the given half-width."""
    by_role = {c.role: c for c in candidates}
    differences = {}
    for a, b in (("student", "teacher"), ("student", "baseline"), ("baseline", "teacher")):
        if a in by_role and b in by_role:
            gap = by_role[a].score - by_role[b].score
            differences[f"{a}-{b}"] = Difference(
                value=gap, low=gap - half_width, high=gap + half_width, images=images
            )
    low, high = speed_range or (speedup, speedup)
    speed = Speedup(value=speedup, low=low, high=high) if "teacher" in by_role else None
    return verdict(by_role, Comparison(metric=metric, differences=differences, speedup=speed), images, RAREST)


@pytest.mark.parametrize(
    ("student", "teacher", "speedup", "who", "words"),
    [
        (90, None, 1, "student", "no teacher"),
        (95, 90, 5, "student", "more than"),
        (90.5, 90, 5, "student", "ahead of"),
        (91.5, 90, 5, "student", "at most 1 point below"),
        (90, 90, 5, "student", "as much as"),
        (90, 90, 0.5, "teacher", "0.50x"),
        (89, 90, 5, "teacher", "400 images do not suffice"),
        (87, 90, 5, "teacher", "ahead of"),
        (89, 90, 0.5, "teacher", "0.50x"),
    ],
)
def test_it_names_one_model_and_says_why(student, teacher, speedup, who, words):
    models = [candidate("student", student)]
    models += [candidate("teacher", teacher)] if teacher else []
    found = judge(models, speedup=speedup)
    assert found.recommended == who and found.sentence.startswith(f"Deploy the {who}")
    assert words in found.sentence and f"{student:.1f} %" in found.sentence
    assert "400 images" in found.sentence


def test_too_few_images_are_not_equality():
    """61.1 % of 18 images beside a teacher's 83.3 % is no reason to deploy the student."""
    found = judge([candidate("student", 61.1), candidate("teacher", 83.3)], half_width=24.0, images=18)
    assert found.recommended == "teacher"
    assert "18 images do not suffice to tell" in found.sentence
    assert "interval -46.2 to +1.8" in found.sentence and "about 22 would" in found.sentence


def test_a_model_that_learnt_nothing_is_never_recommended():
    nothing = candidate("student", 50.0, learned=False)
    found = judge([nothing, candidate("teacher", 90.0)], metric="balanced_accuracy")
    assert found.recommended == "teacher" and "The student learnt nothing" in found.sentence
    found = judge([nothing, candidate("teacher", 50.0, learned=False)], metric="balanced_accuracy")
    assert found.recommended is None and found.sentence.startswith("Deploy none yet: nothing was learnt")
    assert "'defective' has 9" in found.sentence and "balanced accuracy 50.0 %" in found.sentence
    found = judge([nothing])
    assert found.recommended is None and "The student is no better" in found.sentence
    found = judge([candidate("student"), candidate("teacher", 50.0, learned=False)])
    assert found.recommended == "student" and "no better than chance" in found.sentence


def test_the_baseline_only_beyond_chance():
    student, teacher = candidate("student", 90), candidate("teacher", 80)
    assert judge([student, teacher, candidate("baseline", 90.2)]).recommended == "student"
    found = judge([student, teacher, candidate("baseline", 98)])
    assert found.recommended == "baseline" and found.sentence.startswith("Deploy the baseline")
    found = judge([student, candidate("teacher", 99.9), candidate("baseline", 95)])
    assert found.recommended == "teacher"
    nothing = candidate("student", 50.0, learned=False)
    assert judge([nothing, teacher, candidate("baseline", 90)]).recommended == "baseline"


def test_it_says_where_the_teacher_is():
    student = candidate("student", 60)
    sentence = judge([student, candidate("teacher")]).sentence
    assert "teacher/ in the run's folder" in sentence
    sentence = judge([student, candidate("teacher", folder="labels/teacher")]).sentence
    assert "(labels/teacher)" in sentence


def test_it_tells_what_distillation_gave():
    models = [candidate("student", 80), candidate("teacher"), candidate("baseline", 70)]
    sentence = judge(models).sentence
    assert "lifted it from 70.0 %" in sentence and "--unlabeled" in sentence
    assert "--unlabeled" not in judge(models, metric="map").sentence


def test_a_busy_machine_is_named():
    models = [candidate("student", 95), candidate("teacher")]
    assert "busy" not in judge(models, speed_range=(2.0, 2.4)).sentence
    sentence = judge(models, speed_range=(0.6, 2.4)).sentence
    assert "The machine was busy" in sentence and "from 0.6x to 2.4x" in sentence
