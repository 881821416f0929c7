"""Which model of a run to deploy, and the sentences that say why.

1. A model that does not tell the classes apart better than chance is never recommended.
2. The baseline stands in for the student if it is more accurate beyond chance: it costs the same.
3. The most accurate model is recommended, unless a faster one is worth more. Each doubling of speed may cost
   points of accuracy: 0 for `accuracy`, 1 for `balanced`, 3 for `speed`. For `balanced` the images have to
   show it: the 95 % interval of the difference must not go further down. Of several such models, the one
   with the largest sum of accuracy and points for speed is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..evaluation.metrics import Interval
from ..run_folder import BASELINE_FOLDER, CANDIDATES_FOLDER, TEACHER_FOLDER
from ..run_schema import Difference, Metric, Role, Speedup, role_name, rounded_count
from ..tasks import METRICS

Preference = Literal["balanced", "accuracy", "speed"]
POINTS_PER_DOUBLING: Mapping[Preference, float] = {"accuracy": 0.0, "balanced": 1.0, "speed": 3.0}
_CLEARLY_ABOVE = 5.0  # points over chance, from which few images may be what is missing
_NAMES = {metric.key: f"{metric.name} " for metric in METRICS.values()} | {"top1": ""}


@dataclass(frozen=True)
class Candidate:
    """A model that may be deployed.

    score, interval: in percent, by the metric that the models are compared by. learned: whether it beats
    `chance`, the score of naming one class always. images_per_s: None if unknown. folder: where a teacher
    lies if not in the run's folder.
    """

    role: Role
    score: float
    interval: Interval
    learned: bool
    chance: float
    params: int
    images_per_s: float | None = None
    folder: str | None = None

    @property
    def name(self) -> str:
        return f"the {role_name(self.role)}"

    def speedup_over(self, other: Candidate) -> float | None:
        """How many times as fast as `other` it is; None if a speed is unknown."""
        if not self.images_per_s or not other.images_per_s:
            return None
        return self.images_per_s / other.images_per_s


@dataclass(frozen=True)
class Rarest:
    """The class with the fewest training images; several if classes are as large."""

    name: str
    images: int
    several: bool = False


@dataclass(frozen=True)
class Measurement:
    """What the models were compared on.

    compare: the first model's score minus the second's. speedup: of the student over the teacher, with its
    spread, which tells whether the machine was busy.
    """

    metric: Metric
    images: int
    compare: Callable[[Role, Role], Difference]
    speedup: Speedup | None


@dataclass(frozen=True)
class Verdict:
    """The model to deploy, None for none, and why: the answer in the first line."""

    recommended: Role | None
    sentence: str


def verdict(
    candidates: Mapping[Role, Candidate],
    measured: Measurement,
    rarest: Rarest,
    prefer: Preference = "balanced",
) -> Verdict:
    """Weighs accuracy and speed. candidates: the student, and what else there is, by role."""
    words = _Words(measured, rarest)
    rivals = _rivals(candidates, measured)
    if not rivals:
        return Verdict(None, words.nothing_learned(list(candidates.values())))
    best = max(rivals, key=_rank)
    chosen = max(
        (c for c in rivals if c is best or _may_replace(c, best, measured, prefer)),
        key=lambda c: _worth(c, best, prefer),
    )
    return Verdict(chosen.role, words.deploy(chosen, best, candidates, rivals))


def _rank(model: Candidate) -> tuple[float, float]:
    """By accuracy, and among equals by speed."""
    return model.score, model.images_per_s or 0.0


def _rivals(candidates: Mapping[Role, Candidate], measured: Measurement) -> list[Candidate]:
    """The models that learnt something, with the student or its baseline and not both."""
    learned = {role: c for role, c in candidates.items() if c.learned}
    if "student" in learned and "baseline" in learned:
        better = measured.compare("student", "baseline").high < 0
        del learned["student" if better else "baseline"]
    return list(learned.values())


def _may_replace(model: Candidate, best: Candidate, measured: Measurement, prefer: Preference) -> bool:
    """Whether `model` is fast enough for what it loses to the most accurate one."""
    speedup = model.speedup_over(best)
    if speedup is None or speedup <= 1:
        return False
    allowed = POINTS_PER_DOUBLING[prefer] * math.log2(speedup)
    lost = measured.compare(model.role, best.role)
    return (lost.value if prefer == "speed" else lost.low) >= -allowed


def _worth(model: Candidate, best: Candidate, prefer: Preference) -> float:
    """Accuracy in points, and points for the speed over that of `best`."""
    return model.score + POINTS_PER_DOUBLING[prefer] * math.log2(model.speedup_over(best) or 1.0)


def front(models: list[Candidate]) -> list[Candidate]:
    """Those than which no other is both faster and more accurate, the most accurate first."""
    kept: list[Candidate] = []
    for model in sorted(models, key=lambda c: (-c.score, -(c.images_per_s or 0.0))):
        if not kept or (model.images_per_s or 0.0) > (kept[-1].images_per_s or 0.0):
            kept.append(model)
    return kept


class _Words:
    """The sentences of a verdict."""

    def __init__(self, measured: Measurement, rarest: Rarest):
        self.measured, self.rarest = measured, rarest
        self.metric = _NAMES[measured.metric]

    def score(self, model: Candidate) -> str:
        return f"{self.metric}{model.score:.1f} %"

    def full(self, model: Candidate) -> str:
        low, high = model.interval
        return f"{self.score(model)} (95 % interval {low:.1f} to {high:.1f}, {self.measured.images} images)"

    def nothing_learned(self, models: list[Candidate]) -> str:
        best = max(models, key=lambda model: model.score)
        if best.score - best.chance > _CLEARLY_ABOVE:
            return (
                f"Deploy none yet: {self.measured.images} validation images do not show that anything was "
                f"learnt. The best, {best.name}, has {self.full(best)}, and naming one class always would "
                f"have {best.chance:.1f} %. {self.remedy()}"
            )
        *others, last = (model.name for model in models)
        which = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        return (
            "Deploy none yet: nothing was learnt about which class an image shows. "
            f"{which[0].upper()}{which[1:]} no better than always naming one class; the student reaches "
            f"{self.full(models[0])}. {self.remedy()}"
        )

    def deploy(
        self,
        chosen: Candidate,
        best: Candidate,
        candidates: Mapping[Role, Candidate],
        rivals: list[Candidate],
    ) -> str:
        """What to deploy, beside which other model, and what else there is."""
        others = [c for c in rivals if c is not chosen]
        rival = best if best is not chosen else max(others, key=_rank, default=None)
        beside = self.alone(chosen, candidates) if rival is None else self.beside(chosen, rival)
        rest = [c for c in front(rivals) if c is not chosen and c is not rival]
        sentences = [
            f"Deploy {chosen.name}{_where(chosen)}: {self.full(chosen)}{beside}.",
            self.also(rest),
            self.of_student(chosen, rival, candidates),
            self.caveat(),
        ]
        return "\n".join(filter(None, sentences))

    def alone(self, chosen: Candidate, candidates: Mapping[Role, Candidate]) -> str:
        """Of the only model that learnt something."""
        others = [c for c in candidates.values() if not c.learned and c.role != "baseline"]
        if not others:
            return "; there is no teacher to compare it with"
        return f"; {others[0].name}, with {self.score(others[0])}, is no better than chance"

    def beside(self, chosen: Candidate, rival: Candidate) -> str:
        """How the recommended model compares with the most accurate one of the others."""
        difference = self.measured.compare(chosen.role, rival.role)
        if difference.value < 0:
            relation = f"{-difference.value:.1f} points below"
        elif difference.low > 0:
            relation = "more than"
        else:
            relation = "ahead of" if difference.value > 0 else "as much as"
        speedup = chosen.speedup_over(rival)
        speed = "" if speedup is None else f", at {_times(speedup)} its speed"
        told = f", {relation} {rival.name}'s {self.score(rival)}{speed}"
        if not math.isclose(chosen.params, rival.params, rel_tol=0.1):
            told += f", {chosen.params / 1e6:.1f} against {rival.params / 1e6:.1f} million parameters"
        return told if difference.decided else f"{told}.\n{self.undecided(difference)}"

    def undecided(self, difference: Difference) -> str:
        """That the images do not suffice, and how many would."""
        needed = difference.images_needed
        more = f"about {rounded_count(needed)} would" if needed else "more would"
        return (
            f"{self.measured.images} images do not suffice to tell which of the two is more accurate (the "
            f"difference is {difference.value:+.1f} points, 95 % interval {difference.low:+.1f} to "
            f"{difference.high:+.1f}); {more}"
        )

    def also(self, rest: list[Candidate]) -> str:
        """The other models that are faster, or more accurate, than all the rest."""
        named = [f"{c.name} ({self.score(c)}{_rate(c)})" for c in rest]
        return f"Other choices: {'; '.join(named)}." if named else ""

    def of_student(
        self, chosen: Candidate, rival: Candidate | None, candidates: Mapping[Role, Candidate]
    ) -> str:
        """What distillation did for a student that is not recommended, and how to get a better one."""
        student, baseline = candidates["student"], candidates.get("baseline")
        if chosen.role in ("student", "baseline"):
            return ""
        if not student.learned:
            return (
                f"The student learnt nothing about which class an image shows: {self.score(student)} is no "
                f"better than always naming one class. Train longer (--epochs or --budget). {self.remedy()}"
            )
        # What brought students closer to their teachers: docs/small-data.md.
        more = "train longer (--epochs or --budget)"
        if self.measured.metric != "map":
            more += " or add images without labels (--unlabeled)"
        reached = "The student" if rival is student else f"The student reaches {self.score(student)}"
        if baseline is not None and student.score > baseline.score:
            lifted = f"was lifted from {self.score(baseline)} by distillation"
            reached += f" {lifted}" if rival is student else f" ({lifted})"
        elif rival is student:
            return f"For a better student, {more}."
        return f"{reached}; for a better one, {more}."

    def caveat(self) -> str:
        """A word on speeds that varied while they were measured."""
        speedup = self.measured.speedup
        if speedup is None or speedup.steady:
            return ""
        return (
            f"The machine was busy: measured in turns, the ratio of two speeds varied by a factor of "
            f"{speedup.high / speedup.low:.1f}; deitkit bench measures them again."
        )

    def remedy(self) -> str:
        if self.rarest.several:
            return f"Add images of every class ({self.rarest.images} are trained on), or check the labels."
        return (
            f"Add images of the rarest class ({self.rarest.name!r} has {self.rarest.images} for training), "
            "or check the labels."
        )


def _where(model: Candidate) -> str:
    """The folder of a model that is not the student, in brackets."""
    if model.role == "student":
        return ""
    kept = {"teacher": f"{TEACHER_FOLDER}/", "baseline": f"{BASELINE_FOLDER}/"}
    folder = model.folder or f"{kept.get(model.role, f'{CANDIDATES_FOLDER}/{model.role}/')} of the run"
    return f" ({folder})"


def _rate(model: Candidate) -> str:
    return "" if model.images_per_s is None else f", {model.images_per_s:.0f} images/s"


def _times(speedup: float) -> str:
    """A speedup such as "2.2x" or "0.56x"."""
    return f"{speedup:.1f}x" if speedup >= 1 else f"{speedup:.2f}x"
