"""The statistics of paired differences, against NumPy and published tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deitkit.study.statistics import adjust, bootstrap_interval, compare, paired_t_test, student_t_tails


@pytest.mark.parametrize(
    ("t", "df", "p"),  # two-sided quantiles from a table of Student's distribution
    [
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (9.925, 2, 0.01),
        (3.182, 3, 0.05),
        (2.571, 5, 0.05),
        (3.355, 8, 0.01),
        (2.228, 10, 0.05),
    ],
)
def test_tails_are_the_tables(t, df, p):
    assert student_t_tails(t, df) == pytest.approx(p, rel=2e-3)
    assert student_t_tails(-t, df) == student_t_tails(t, df)
    assert student_t_tails(0.0, df) == pytest.approx(1.0)


def test_t_test_against_numerical_integration():
    d = np.array([1.0, 2.5, 0.3, 1.9])
    t = d.mean() / np.sqrt(d.var(ddof=1) / 4)
    grid = np.linspace(-t, t, 200_001)
    density = 6 * np.sqrt(3) / (np.pi * (3 + grid**2) ** 2)  # Student's, three degrees of freedom
    assert paired_t_test(d) == pytest.approx(1 - np.trapezoid(density, grid), abs=1e-6)


def test_bootstrap_against_all_resamples():
    values = np.array([0.4, 1.9, 2.2, 3.1])
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]  # the exact distribution
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.1)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.1)
    assert bootstrap_interval(values) == (low, high)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([2.0, 2.1, 1.9], "holds"),
        ([0.2, 3.0, 1.0], "leans"),
        ([1.0, -1.2, 0.4], "undecided"),
        ([-0.2, -3.0, -1.0], "leans against"),
        ([-2.0, -2.1, -1.9], "fails"),
        ([2.0, 2.1], "unknown"),
        ([0.0, 0.0, 0.0], "undecided"),
    ],
)
def test_verdicts(differences, verdict):
    found = compare(differences)
    assert found.verdict == verdict
    assert found.mean == pytest.approx(np.mean(differences))


def test_equal_differences_have_no_spread_to_judge_by():
    assert compare([1.0, 1.0, 1.0]).verdict == "leans"


def test_p_values_beside_each_other():
    comparisons = [compare(d) for d in ([2.0, 2.1, 1.9], [2.0, 2.4, 1.6], [1.0, 2.0], [1.0, -1.0, 0.5])]
    plain = [c.p for c in comparisons]
    adjusted = [c.p for c in adjust(comparisons)]
    assert adjusted[0] == pytest.approx(3 * plain[0])
    assert adjusted[1] == pytest.approx(2 * plain[1])
    assert adjusted[2] is None
    assert adjusted[3] == pytest.approx(plain[3])
