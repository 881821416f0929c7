"""Paired differences between arms over seeds, with bootstrap intervals and tests.

With one seed, all arms see the same images, order and split. So differences are taken within a seed, and the
spread between seeds cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FEWEST_SEEDS = 3  # with fewer, the spread cannot be estimated
_LEVEL = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """The mean of paired differences, in their unit.

    low, high: 95 % percentile bootstrap interval. p: of a two-sided paired t-test; `adjust` corrects it for
    multiple tests. All three are None with fewer than three differences.
    """

    differences: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def verdict(self) -> str:
        """holds, leans, undecided, leans against, fails; unknown with too few seeds.

        With few seeds a bootstrap interval is hardly wider than the range of the differences. So an interval
        that excludes zero only leans, and the t-test has to agree at 5 %.
        """
        if self.low is None or self.high is None or self.p is None:
            return "unknown"
        if self.low <= 0 <= self.high:
            return "undecided"
        settled = self.p < 1 - _LEVEL
        if self.low > 0:
            return "holds" if settled else "leans"
        return "fails" if settled else "leans against"


def compare(differences: Sequence[float]) -> Comparison:
    """Compares paired differences, one per seed and at least one."""
    values = np.asarray(differences, float)
    if len(values) < FEWEST_SEEDS:
        return Comparison(tuple(values.tolist()), float(values.mean()), None, None, None)
    low, high = bootstrap_interval(values)
    return Comparison(tuple(values.tolist()), float(values.mean()), low, high, paired_t_test(values))


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjusts the p-values for multiple testing (Holm, Scand. J. Statist. 1979)."""
    known = sorted((c.p, i) for i, c in enumerate(comparisons) if c.p is not None)
    adjusted, largest = list(comparisons), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = replace(comparisons[i], p=largest)
    return adjusted


def bootstrap_interval(values: NDArray[np.float64], level: float = _LEVEL) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of (n,) values (Efron, Ann. Statist. 1979).

    The seed of the resamples is fixed, so the same values give the same interval.
    """
    drawn = np.random.RandomState(0).randint(0, len(values), (_RESAMPLES, len(values)))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values[drawn].mean(1), [tail, 100 - tail])
    return float(low), float(high)


def paired_t_test(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value of the mean of (n,) differences being zero; 1 if they are all equal."""
    n = len(differences)
    error = differences.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return 1.0
    return student_t_tails(float(differences.mean() / error), n - 1)


def student_t_tails(t: float, df: int) -> float:
    """P(|T| >= |t|) for Student's t with integer degrees of freedom (Abramowitz & Stegun, 26.7.3 and 4)."""
    angle = math.atan(abs(t) / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if df % 2 else 1.0
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if df % 2 == 0:
        return max(0.0, 1.0 - sine * total)
    return max(0.0, 1.0 - 2 / math.pi * (angle + (sine * total if df > 1 else 0.0)))
