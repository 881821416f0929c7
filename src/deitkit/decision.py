"""What becomes of a model's probabilities: an answer, "unknown", or a set that holds the true class.

Everything is decided after the model has run, by numbers that its validation images gave
(`run_schema.CalibrationInfo`); no probability is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SettingError
from .run_schema import CalibrationInfo
from .tasks import Task

UNKNOWN = "unknown"
KEPT = 0.95  # share of images like those of validation that `reject` keeps
_NOT_CALIBRATED = "the model has no calibration.json, which deitkit train writes; train it again"


@dataclass(frozen=True)
class Decision:
    """When a prediction is an answer, and which classes it names.

    least_probability: of the most likely class, for an answer. most_unfamiliar: score up to which an image is
    like those of the classes. least_in_set: probability from which a class is named; None names the most
    likely one alone.
    """

    least_probability: float = 0.0
    most_unfamiliar: float = math.inf
    least_in_set: float | None = None

    def is_answer(self, probability: float, unfamiliarity: float | None) -> bool:
        """Whether to answer, given the most likely class's probability and the image's unfamiliarity."""
        familiar = unfamiliarity is None or unfamiliarity <= self.most_unfamiliar
        return familiar and probability >= self.least_probability

    def count(self, probabilities: Sequence[float]) -> int:
        """How many classes are named, of probabilities in descending order; at least one."""
        least = self.least_in_set
        return 1 if least is None else max(1, sum(p >= least for p in probabilities))


def check_asked(threshold: float | None, coverage: float | None) -> None:
    """Raises SettingError for what no model can do: values out of range, or both options."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingError(f"--threshold is a probability from 0 to 1, not {threshold:g}")
    if coverage is not None and not 0 < coverage < 1:
        raise SettingError(f"--coverage is a share between 0 and 1, not {coverage:g}")
    if threshold is not None and coverage is not None:
        raise SettingError("--threshold answers with one class and --coverage with a set; give one of them")


def decide(
    calibration: CalibrationInfo,
    task: Task,
    *,
    threshold: float | None = None,
    reject: bool = False,
    coverage: float | None = None,
) -> Decision:
    """The decision rule that is asked for.

    threshold: least probability of an answer. reject: answer "unknown" for images that are less familiar than
    95 % of the validation images. coverage: share of sets that are to hold the true class. Raises
    SettingError for values out of range, options that contradict each other, and a model that was not
    calibrated or is multilabel.
    """
    asked = {"--threshold": threshold is not None, "--reject": reject, "--coverage": coverage is not None}
    named = [name for name, given in asked.items() if given]
    if named and task == "multilabel":
        raise SettingError(f"{named[0]} needs one class per image, and the model is multilabel; leave it out")
    check_asked(threshold, coverage)
    return Decision(
        least_probability=threshold or 0.0,
        most_unfamiliar=_familiar_up_to(calibration) if reject else math.inf,
        least_in_set=None if coverage is None else _least_in_set(calibration, coverage),
    )


def conformal_rank(n: int, coverage: float) -> int | None:
    """The rank, from 1 for the smallest of n scores, that bounds a new score with this probability.

    ceil((n + 1) coverage), as in split conformal prediction; None if n images are too few to tell.
    """
    rank = math.ceil((n + 1) * coverage - 1e-9)
    return rank if rank <= n else None


def least_in_set(true_probabilities: Sequence[float], coverage: float) -> float | None:
    """The least probability with which a class belongs to the set; None if there are too few images.

    true_probabilities: of the true classes of n validation images, in ascending order. Split conformal
    prediction with the score 1 - p (LAC: Sadinle, Lei and Wasserman, JASA 2019): of new images like those, a
    share of at least `coverage` has its true class in the set, whatever the model.
    """
    n = len(true_probabilities)
    rank = conformal_rank(n, coverage)
    return None if rank is None else true_probabilities[n - rank]


def _familiar_up_to(calibration: CalibrationInfo) -> float:
    if calibration.familiar_up_to is None:
        raise SettingError(
            "--reject needs what deitkit train keeps of 19 validation images or more, and the model has "
            "nothing of the kind; train it again"
        )
    return calibration.familiar_up_to


def _least_in_set(calibration: CalibrationInfo, coverage: float) -> float:
    least = least_in_set(calibration.true_probabilities, coverage)
    if least is None:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise SettingError(
            f"--coverage {coverage:g} needs {needed} validation images or more: {_known(calibration)}"
        )
    return least


def _known(calibration: CalibrationInfo) -> str:
    return f"the model has {calibration.images}" if calibration.images else _NOT_CALIBRATED
