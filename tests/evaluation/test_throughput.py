import time

import pytest

from deitkit.evaluation.throughput import images_per_s


def test_counts_images_a_second():
    assert images_per_s(lambda: time.sleep(0.01), 32, seconds=0.2) == pytest.approx(3200, rel=0.35)


def test_one_stall_does_not_move_the_median():
    calls = iter(range(10**6))
    rate = images_per_s(lambda: time.sleep(0.2 if next(calls) == 6 else 0.01), 32, seconds=0.3)
    assert rate == pytest.approx(3200, rel=0.35)


def test_a_slow_first_call_does_not_count():
    calls = iter(range(10**6))
    rate = images_per_s(lambda: time.sleep(0.3 if next(calls) == 0 else 0.01), 32, seconds=0.2)
    assert rate == pytest.approx(3200, rel=0.35)


def test_a_pass_longer_than_the_time_is_still_measured():
    calls = []
    images_per_s(lambda: (calls.append(1), time.sleep(0.02)), 1, seconds=0.01)
    assert len(calls) == 5  # two of warm-up, three measured
