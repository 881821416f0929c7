"""The cost model finds what it was given, and the simulation agrees with what can be calculated."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def test_the_fit_finds_the_model():
    scale = importlib.import_module("scale")
    model = scale.Model(start=2e-3, image=1e-3, message=2e-4, bandwidth=1e9)
    rows = [
        {"parameters": p, "images": b, "processes": n, "seconds": model.seconds(b, n, p)}
        for p in (1e6,)
        for b in (4, 8, 32)
        for n in (1, 2, 4, 8)
    ]
    # A second student, whose images cost more in proportion.
    larger = scale.Model(start=2e-3, image=5e-3, message=2e-4, bandwidth=1e9)
    rows += [
        r | {"parameters": 5e6, "seconds": larger.seconds(r["images"], r["processes"], 5e6)} for r in rows
    ]
    found, errors = scale.fit(rows, cores=8)
    assert (found.start, found.image) == pytest.approx((2e-3, 1e-3), rel=1e-6)
    assert (found.message, found.bandwidth) == pytest.approx((2e-4, 1e9), rel=1e-6)
    assert abs(errors).max() < 1e-9


def test_the_published_run_is_plausible():
    scale = importlib.import_module("scale")
    assert scale.published_rate() == pytest.approx(252, abs=1)
    share = 3 * 2 * scale.MACS["base"] * 1e9 * scale.published_rate() / 125e12
    assert 0.1 < share < 0.5  # of a V100's peak


def test_failures_cost_what_they_must():
    pytest.importorskip("simpy")
    simulation = importlib.import_module("scale_simulation")
    given = simulation.Assumed()
    share = simulation.share_of_steps
    # Without failures: all but the first restart, up to a checkpoint.
    done, restarts = share(8, 0, given, failure_hours=1e9, elastic=True, days=1)
    assert restarts == 1
    assert 1 - (given.restart + given.checkpoint_every) / 86_400 <= done <= 1
    # Of one host, failing every hour: elastic or not, it is gone until it is replaced.
    one = [share(1, 0, given, failure_hours=1.0, elastic=elastic, days=30) for elastic in (False, True)]
    assert one[0] == one[1]
    assert one[0][0] < 1 / (1 + given.replace / 3600)
    # Of many, waiting for each loses more.
    rigid, elastic = (
        share(128, 0, given, failure_hours=48.0, elastic=elastic, days=7)[0] for elastic in (False, True)
    )
    assert rigid < elastic < 1


def test_a_step_takes_what_its_parts_take():
    pytest.importorskip("simpy")
    simulation = importlib.import_module("scale_simulation")
    calm = simulation.Assumed(jitter=0.0, slow_chance=0.0)
    step, waiting = simulation.mean_step(64, 0, calm, steps=60)
    assert step == pytest.approx(calm.compute + calm.exchange, rel=0.02)
    assert waiting < 0.01
    # Storage that gives half the images that are needed.
    needed = calm.images_per_gpu * 8 * calm.image_bytes / (calm.compute + calm.exchange)
    slow = simulation.Assumed(jitter=0.0, slow_chance=0.0, stream=needed / calm.readers / 2, latency=0.0)
    step, _ = simulation.mean_step(64, 0, slow, steps=60)
    assert step == pytest.approx(2 * (calm.compute + calm.exchange), rel=0.15)
