"""Sides take turns, and one that dies says why."""

from __future__ import annotations

import sys

from deitkit.evaluation.side_by_side import take_turns

SIDE = """
import sys, time
from deitkit.evaluation.side_by_side import serve
def create():
    print("a library's own line")
    return lambda batch: lambda: time.sleep(0.002 * batch)
serve(create)
"""


def test_sides_take_turns_and_a_dead_one_says_why():
    sides = {
        "sleeper": [sys.executable, "-c", SIDE],
        "dead": [sys.executable, "-c", "raise SystemExit('no compiler here')"],
    }
    turns = []
    found, failed = take_turns(sides, [4, 1], rounds=2, seconds=0.02, on_turn=lambda: turns.append(1))
    assert set(found) == {("sleeper", 1), ("sleeper", 4)} and failed == {"dead": "no compiler here"}
    assert 2 <= found["sleeper", 1].latency.p50_ms < found["sleeper", 4].latency.p50_ms
    assert len(turns) == 2 * 2 * 2
