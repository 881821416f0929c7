"""Which model of a run to deploy, and the sentences that say why.

1. A model that does not tell the classes apart better than chance is never recommended.
2. The baseline replaces the student if it is more accurate beyond chance: it costs the same.
3. Of student (or baseline) and teacher, the one that is clearly more accurate is recommended. If the student
   is at most a point below, it is the student, unless it is slower. If the images do not suffice to tell, it
   is the more accurate one, and the verdict says about how many images would settle it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.metrics import Interval
from ..run_folder import TEACHER_FOLDER
from ..run_schema import Comparison, Difference, Metric, Role, Speedup

_NEGLIGIBLE = 1.0  # points: a smaller model may be this much less accurate
_NAMES: Mapping[Metric, str] = {"top1": "", "balanced_accuracy": "balanced accuracy ", "map": "mAP "}


@dataclass(frozen=True)
class Candidate:
    """A model that may be deployed.

    score, interval: in percent, by the metric that the models are compared by. learned: whether it beats
    chance. folder: where a teacher lies if not in the run's folder.
    """

    role: Role
    score: float
    interval: Interval
    learned: bool
    params: int
    folder: str | None = None


@dataclass(frozen=True)
class Rarest:
    """The class with the fewest training images."""

    name: str
    images: int


@dataclass(frozen=True)
class Verdict:
    """The model to deploy, None for none, and why."""

    recommended: Role | None
    sentence: str


def verdict(
    candidates: Mapping[Role, Candidate], comparison: Comparison, val_images: int, rarest: Rarest
) -> Verdict:
    """Weighs accuracy, speed and size. candidates: the student, and what else there is, by role."""
    words = _Words(comparison, val_images)
    student, teacher = candidates["student"], candidates.get("teacher")
    baseline = candidates.get("baseline")
    learned = [c for c in candidates.values() if c.learned]
    if not learned:
        return Verdict(None, words.nothing_learned(list(candidates.values()), rarest))
    compact = _compact(student, baseline, comparison)
    if compact is None:
        assert teacher is not None
        return Verdict("teacher", words.student_learned_nothing(student, teacher, rarest))
    if teacher is None or not teacher.learned:
        return Verdict(compact.role, words.without_rival(compact, teacher))
    difference = comparison.differences[f"{compact.role}-teacher"]
    slower = comparison.speedup is not None and comparison.speedup.value < 1
    if _prefers_teacher(difference, slower):
        return Verdict("teacher", words.teacher(compact, teacher, baseline, difference))
    return Verdict(compact.role, words.compact(compact, teacher, difference))


def _compact(student: Candidate, baseline: Candidate | None, comparison: Comparison) -> Candidate | None:
    """The student, or the baseline of the same size if it is more accurate beyond chance."""
    if baseline is None or not baseline.learned:
        return student if student.learned else None
    if not student.learned or comparison.differences["student-baseline"].high < 0:
        return baseline
    return student


def _prefers_teacher(difference: Difference, slower: bool) -> bool:
    """Whether the teacher is recommended; `difference`: of the smaller model's score minus its own."""
    if difference.low > -_NEGLIGIBLE:
        return slower and difference.value <= 0
    return difference.value < 0 or (difference.value == 0 and slower)


class _Words:
    """The sentences of a verdict."""

    def __init__(self, comparison: Comparison, val_images: int):
        self.comparison, self.images = comparison, val_images
        self.metric = _NAMES[comparison.metric]

    def score(self, value: float) -> str:
        return f"{self.metric}{value:.1f} %"

    def full(self, model: Candidate) -> str:
        low, high = model.interval
        return f"{self.score(model.score)} (95 % interval {low:.1f} to {high:.1f}, {self.images} images)"

    def nothing_learned(self, models: list[Candidate], rarest: Rarest) -> str:
        *others, last = (f"the {model.role}" for model in models)
        which = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return (
            "Deploy none yet: nothing was learnt about which class an image shows. "
            f"{which[0].upper()}{which[1:]} no better than always naming one class; the student reaches "
            f"{self.full(models[0])}. {_remedy(rarest)}"
        )

    def student_learned_nothing(self, student: Candidate, teacher: Candidate, rarest: Rarest) -> str:
        return (
            f"Deploy the teacher ({self.where(teacher)}): {self.full(teacher)}. The student learnt nothing "
            f"about which class an image shows: {self.score(student.score)} is no better than always naming "
            f"one class. Train longer (--epochs or --budget). {_remedy(rarest)}"
        )

    def without_rival(self, model: Candidate, teacher: Candidate | None) -> str:
        if teacher is None:
            return f"Deploy the {model.role}: {self.full(model)}; there is no teacher to compare it with."
        return (
            f"Deploy the {model.role}: {self.full(model)}; the teacher, with {self.score(teacher.score)}, "
            "is no better than chance."
        )

    def compact(self, model: Candidate, teacher: Candidate, difference: Difference) -> str:
        if difference.low > 0:
            relation = "more than"
        elif difference.low > -_NEGLIGIBLE:
            relation = f"at most {_NEGLIGIBLE:.0f} point below"
        elif difference.value == 0:
            relation = "as much as"
        else:
            relation = "ahead of"
        also = "" if difference.decided or difference.low > -_NEGLIGIBLE else f" {self.undecided(difference)}"
        where = "" if model.role == "student" else " (baseline/ of the run)"
        return (
            f"Deploy the {model.role}{where}: {self.full(model)}, {relation} the teacher's "
            f"{self.score(teacher.score)}{self.pace(model, teacher)}.{also}{self.caveat()}"
        )

    def teacher(
        self, model: Candidate, teacher: Candidate, baseline: Candidate | None, difference: Difference
    ) -> str:
        relation = "ahead of" if difference.decided or difference.value < 0 else "no worse than"
        helped = ""
        if baseline is not None and model.role == "student" and model.score > baseline.score:
            helped = f" (distillation lifted it from {self.score(baseline.score)})"
        also = "" if difference.decided else f" {self.undecided(difference)}"
        # What brought students closer to their teachers: docs/small-data.md.
        more = "train longer (--epochs or --budget)"
        if self.comparison.metric != "map":
            more += " or add images without labels (--unlabeled)"
        return (
            f"Deploy the teacher ({self.where(teacher)}): with {self.score(teacher.score)} it is {relation} "
            f"the {model.role}'s {self.full(model)}{helped}.{also}{self.runs(model, teacher)} "
            f"For a better {model.role}, {more}.{self.caveat()}"
        )

    def undecided(self, difference: Difference) -> str:
        """That the images do not suffice, and how many would."""
        needed = difference.images_needed
        more = f"about {_rounded(needed)} would" if needed else "more would"
        return (
            f"{self.images} images do not suffice to tell (the smaller model is {difference.value:+.1f} "
            f"points apart, 95 % interval {difference.low:+.1f} to {difference.high:+.1f}); {more}."
        )

    def pace(self, model: Candidate, teacher: Candidate) -> str:
        speedup = self.comparison.speedup
        speed = "" if speedup is None else f", at {_times(speedup)} its speed"
        return f"{speed}, {_size(model, teacher)}"

    def runs(self, model: Candidate, teacher: Candidate) -> str:
        speedup = self.comparison.speedup
        if speedup is None:
            return f" The {model.role} has {_size(model, teacher)}."
        return f" The {model.role} runs at {_times(speedup)} its speed, with {_size(model, teacher)}."

    def caveat(self) -> str:
        """A word on speeds that varied while they were measured."""
        speedup = self.comparison.speedup
        if speedup is None or speedup.steady:
            return ""
        return (
            f" The machine was busy: measured in turns, the speedup varied from {speedup.low:.1f}x to "
            f"{speedup.high:.1f}x; deitkit bench measures it again."
        )

    def where(self, teacher: Candidate) -> str:
        return teacher.folder or f"{TEACHER_FOLDER}/ in the run's folder"


def _remedy(rarest: Rarest) -> str:
    return (
        f"Add images of the rarest class ({rarest.name!r} has {rarest.images} for training), or check the "
        "labels."
    )


def _times(speedup: Speedup) -> str:
    """A speedup such as "2.2x" or "0.56x"."""
    return f"{speedup.value:.1f}x" if speedup.value >= 1 else f"{speedup.value:.2f}x"


def _size(model: Candidate, teacher: Candidate) -> str:
    return f"{model.params / 1e6:.1f} against {teacher.params / 1e6:.1f} million parameters"


def _rounded(images: int) -> int:
    """To two digits: it is an estimate."""
    digits = len(str(images)) - 2
    return images if digits <= 0 else round(images, -digits)
