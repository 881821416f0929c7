"""The verdict is right where it matters: few images, uneven classes, a busy machine."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from deitkit.report.verdict import Candidate, Measurement, Rarest, front, verdict
from deitkit.run_schema import Difference, Speedup

RAREST = Rarest("defective", 9)


def candidate(role, score=90.0, learned=True, folder=None, speed=None):
    params = 4_000_000 if role.startswith("teacher") else 1_000_000
    return Candidate(role, score, (score - 2, score + 2), learned, 50.0, params, speed, folder)


def judge(
    candidates,
    half_width=2.0,
    speedup=2.2,
    metric="top1",
    images=400,
    speed_range=None,
    prefer="balanced",
):
    """The verdict on candidates whose differences have the given half-width.

    Without speeds of their own, student and baseline run at `speedup` times the teacher's.
    """
    speeds = {"teacher": 100.0, "student": 100 * speedup, "baseline": 100 * speedup}
    by_role = {c.role: replace(c, images_per_s=c.images_per_s or speeds[c.role]) for c in candidates}

    def compare(a, b):
        gap = by_role[a].score - by_role[b].score
        return Difference(value=gap, low=gap - half_width, high=gap + half_width, images=images)

    low, high = speed_range or (speedup, speedup)
    speed = Speedup(value=speedup, low=low, high=high) if "teacher" in by_role else None
    return verdict(by_role, Measurement(metric, images, compare, speed), RAREST, prefer)


@pytest.mark.parametrize(
    ("student", "teacher", "speedup", "who", "words"),
    [
        (90, None, 1, "student", "no teacher"),
        (95, 90, 5, "student", "more than"),
        (90.5, 90, 5, "student", "ahead of"),
        (90, 90, 5, "student", "as much as"),
        (90, 90, 0.5, "teacher", "2.0x"),
        (89, 90, 5, "teacher", "400 images do not suffice"),
        (87, 90, 5, "teacher", "more than"),
        (89, 90, 0.5, "teacher", "2.0x"),
    ],
)
def test_it_names_one_model_and_says_why(student, teacher, speedup, who, words):
    models = [candidate("student", student)]
    models += [candidate("teacher", teacher)] if teacher else []
    found = judge(models, speedup=speedup)
    assert found.recommended == who and found.sentence.startswith(f"Deploy the {who}")
    assert words in found.sentence and f"{student:.1f} %" in found.sentence
    assert "400 images" in found.sentence


def test_a_doubling_of_speed_may_cost_a_point_if_the_images_show_it():
    """At four times the speed, 2 points; at eight times 3; and the interval must not go further down."""
    models = [candidate("student", 88.5), candidate("teacher", 90)]
    found = judge(models, speedup=4, half_width=0.4)
    assert found.recommended == "student"
    assert "1.5 points below the teacher's 90.0 %, at 4.0x its speed" in found.sentence
    assert judge(models, speedup=4, half_width=0.6).recommended == "teacher"
    assert judge(models, speedup=8, half_width=0.6).recommended == "student"


def test_what_is_preferred_decides_between_the_sizes_of_the_teacher():
    models = [
        candidate("student", 84, speed=900),
        candidate("teacher", 91, speed=290),
        candidate("teacher-96", 88, speed=600),
        candidate("teacher-128", 93, speed=300),
        candidate("teacher-224", 96, speed=100),
    ]
    found = judge(models, half_width=0.5)
    assert found.recommended == "teacher-224"
    assert found.sentence.startswith("Deploy the teacher at 224 px (candidates/teacher-224/ of the run): 96")
    assert "Other choices: the teacher at 96 px (88.0 %, 600 images/s); the student (84.0 %, 900 images" in (
        found.sentence
    )
    assert judge(models, prefer="accuracy").recommended == "teacher-224"
    assert judge(models, prefer="speed", half_width=9).recommended == "teacher-128"


def test_the_front_has_no_model_that_is_slower_and_less_accurate():
    models = [
        candidate("student", 84, speed=900),
        candidate("teacher", 91, speed=290),
        candidate("teacher-128", 93, speed=300),
    ]
    assert [c.role for c in front(models)] == ["teacher-128", "student"]


def test_too_few_images_are_not_equality():
    """61.1 % of 18 images beside a teacher's 83.3 % is no reason to deploy the student."""
    found = judge([candidate("student", 61.1), candidate("teacher", 83.3)], half_width=24.0, images=18)
    assert found.recommended == "teacher"
    assert "18 images do not suffice to tell" in found.sentence
    assert "interval -1.8 to +46.2" in found.sentence and "about 22 would" in found.sentence


def test_of_classes_of_equal_size_all_are_asked_for(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "RAREST", replace(RAREST, several=True))
    found = judge([candidate("student", 50.0, learned=False)])
    assert "Add images of every class (9 are trained on)" in found.sentence


def test_a_model_that_learnt_nothing_is_never_recommended():
    nothing = candidate("student", 50.0, learned=False)
    found = judge([nothing, candidate("teacher", 90.0)], metric="balanced_accuracy")
    assert found.recommended == "teacher" and "The student learnt nothing" in found.sentence
    found = judge([nothing, candidate("teacher", 50.0, learned=False)], metric="balanced_accuracy")
    assert found.recommended is None and found.sentence.startswith("Deploy none yet: nothing was learnt")
    assert "'defective' has 9" in found.sentence and "balanced accuracy 50.0 %" in found.sentence
    found = judge([replace(nothing, score=75.0)], images=4)
    assert found.recommended is None and "4 validation images do not show that anything was" in found.sentence
    found = judge([nothing])
    assert "Add images of the rarest class ('defective' has 9" in found.sentence
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
    assert "(teacher/ of the run)" in sentence
    sentence = judge([student, candidate("teacher", folder="labels/teacher")]).sentence
    assert "(labels/teacher)" in sentence


def test_it_tells_what_distillation_gave():
    models = [candidate("student", 80), candidate("teacher"), candidate("baseline", 70)]
    sentence = judge(models).sentence
    assert "lifted from 70.0 %" in sentence and "--unlabeled" in sentence
    assert "--unlabeled" not in judge(models, metric="map").sentence


def test_a_busy_machine_is_named():
    models = [candidate("student", 95), candidate("teacher")]
    assert "busy" not in judge(models, speed_range=(2.0, 2.4)).sentence
    sentence = judge(models, speed_range=(0.6, 2.4)).sentence
    assert "The machine was busy" in sentence and "by a factor of 4.0" in sentence
