"""Small trainings come to the recorded weights, bit for bit, and their runs to the recorded answers."""

from __future__ import annotations

import json

import pytest

from . import record

# The others take half a minute each on a slow machine.
QUICK = ("small_data", "multilabel")
EXPECTED = json.loads(record.EXPECTED.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return record.environment()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in record.CASES]
)
def test_golden(name, environment, tmp_path):
    expected = EXPECTED[name]
    if expected["environment"] != environment:
        pytest.skip(f"recorded with {expected['environment']}, and here is {environment}")
    if name in record.NEEDS:
        pytest.importorskip(record.NEEDS[name])
    found = record.CASES[name](record.Stage.build(tmp_path))
    different = list(record.differences(expected["found"], found))
    assert not different, f"recorded with {expected['versions']}, and here is {record.versions()}"
