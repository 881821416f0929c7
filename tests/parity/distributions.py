"""Two-sample tests. Each gives its statistic over the critical value at a level of 0.001: below 1 agrees."""

from __future__ import annotations

import math

import numpy as np


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Whether two samples of numbers come from one distribution (Smirnov 1939, asymptotic)."""
    both = np.sort(np.concatenate([a, b]))
    distance = np.abs(
        np.searchsorted(np.sort(a), both, "right") / len(a)
        - np.searchsorted(np.sort(b), both, "right") / len(b)
    ).max()
    critical = math.sqrt(-math.log(0.001 / 2) / 2) * math.sqrt((len(a) + len(b)) / (len(a) * len(b)))
    return float(distance / critical)


def chi_square(a: np.ndarray, b: np.ndarray) -> float:
    """Whether two rows of counts of the same kinds come from one distribution (Pearson 1900)."""
    rows = np.stack([a, b]).astype(float)
    expected = rows.sum(1, keepdims=True) * rows.sum(0) / rows.sum()
    freedom = len(a) - 1
    # Wilson and Hilferty's approximation of the quantile; 3.0902 is the standard normal's.
    critical = freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(((rows - expected) ** 2 / expected).sum() / critical)
