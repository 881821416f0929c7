"""Percentiles, turns, and sides that die."""

from __future__ import annotations

import sys
import time

import pytest

from deitkit.errors import DeitkitError
from deitkit.evaluation.latency import peak_memory_mb, refuse_if_none, summarise, take_turns, time_calls

SIDE = """
import sys, time
from deitkit.evaluation.latency import serve
def create():
    print("a library's own line")
    return lambda batch: lambda: time.sleep(0.002 * batch)
serve(create)
"""


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


def test_sides_take_turns_and_a_dead_one_says_why():
    sides = {
        "sleeper": [sys.executable, "-c", SIDE],
        "dead": [sys.executable, "-c", "raise SystemExit('no compiler here')"],
    }
    turns = []
    found, failed = take_turns(sides, [4, 1], rounds=2, seconds=0.02, on_turn=lambda: turns.append(1))
    assert set(found) == {("sleeper", 1), ("sleeper", 4)} and failed == {"dead": "no compiler here"}
    assert 2 <= found["sleeper", 1]["p50_ms"] < found["sleeper", 4]["p50_ms"]
    assert len(turns) == 2 * 2 * 2
    refuse_if_none(found, failed)
    with pytest.raises(DeitkitError, match="dead: no compiler here"):
        refuse_if_none({}, failed)
