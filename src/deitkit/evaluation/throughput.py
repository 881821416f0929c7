"""How fast a forward pass is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def images_per_s(forward: Callable[[], object], batch_size: int, seconds: float = 1.5) -> float:
    """Images a second of `forward`, which works through one batch of `batch_size` at each call.

    Two warm-up calls come first (allocation, compilation, clocks), then rounds of equally many calls for
    about `seconds`; the median round counts, so that another process waking up does not. A pass
    longer than `seconds` is still measured, three times.
    """
    for _ in range(2):
        pass_s = _timed(forward, 1)
    rounds = 5 if pass_s * 5 <= seconds else 3
    calls = max(1, int(seconds / rounds / pass_s))
    return batch_size * calls / statistics.median(_timed(forward, calls) for _ in range(rounds))


def _timed(forward: Callable[[], object], calls: int) -> float:
    """Seconds that so many calls take, the accelerator's queue included."""
    wait_for_device()
    start = time.perf_counter()
    for _ in range(calls):
        forward()
    wait_for_device()
    return max(time.perf_counter() - start, 1e-9)


def wait_for_device() -> None:
    """Returns when an accelerator, if there is one, has done all that was asked of it."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
