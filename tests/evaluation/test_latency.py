"""Percentiles and peak memory."""

from __future__ import annotations

import time

import pytest

from deitkit.evaluation.latency import peak_memory_mb, summarise, time_calls


def test_percentiles_are_times_that_occurred():
    found = summarise([t / 1000 for t in range(1, 101)], batch_size=4)
    assert [found[k] for k in ("p50_ms", "p90_ms", "p99_ms")] == pytest.approx([50, 90, 99])
    assert found["images_per_s"] == pytest.approx(4 / 0.05) and found["calls"] == 100
    assert summarise([0.5], 1)["p99_ms"] == 500


def test_a_slow_call_is_measured_three_times():
    assert len(time_calls(lambda: time.sleep(0.01), 0.0)) == 3


def test_peak_memory_remembers_what_is_gone():
    before = peak_memory_mb()
    block = bytearray(b"x") * 200_000_000
    del block
    assert peak_memory_mb() - before > 100 or before > 1000
