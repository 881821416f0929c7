"""What a CPU can show of the programme for a GPU: every part runs, and the floor on paper is right."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deitkit.data.cache import Decoder

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def programme(*arguments: str) -> str:
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def failures(found: object) -> list[object]:
    """Every entry "failed" or "left_out" in nested dicts."""
    if not isinstance(found, dict):
        return []
    inner = [failure for value in found.values() for failure in failures(value)]
    return [found[key] for key in ("failed", "left_out") if key in found] + inner


PARTS = ["limits", "training", "loop", "inference", "results", "start"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "number",
    [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 7))],
    ids=lambda n: PARTS[n - 1],
)
def test_every_part_runs_with_tiny_numbers(number, tmp_path):
    found = json.loads(programme("--trial", f"--part={number}", f"--out={tmp_path / 'gpu.json'}"))
    part = found[PARTS[number - 1]]
    assert len(part) > 2 and not failures(part)
    assert json.loads((tmp_path / "gpu.json").read_text()) == found


def test_the_floor_counts_the_papers_operations():
    rows = [line.split("|")[1:-1] for line in programme("--floor").splitlines()[2:]]
    assert [row[0].strip() for row in rows] == sorted(row[0].strip() for row in rows)
    assert {row[0].strip() for row in rows} == set("123456")  # every part has a floor
    rows = [row[1:] for row in rows]
    tflop = {row[0].strip(): float(row[1]) for row in rows}
    # arXiv 2012.12877, table 5: DeiT-Ti 1.3, S 4.6 and B 17.6 billion multiply-adds; the last block has less
    # to do here.
    for name, multiply_adds in (("tiny", 1.3), ("small", 4.6), ("base", 17.6)):
        assert tflop[f"{name}, a forward pass of 1"] == pytest.approx(2e-3 * multiply_adds, rel=0.1)
        assert tflop[f"{name}, a training step"] == pytest.approx(
            3 * tflop[f"{name}, a forward pass of 256"], rel=0.01
        )
    # Linear in the batch, and the views cost no products.
    assert tflop["small, views and a training step"] == tflop["small, a training step"]
    least = [float(row[3]) for row in rows]
    bound = [max(1000 * float(row[1]) / 800, float(row[2]) / 3) for row in rows]
    assert least == pytest.approx(bound, rel=0.02)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("gpu")


@pytest.mark.parametrize("tokens", [6, 8, 198])
def test_padded_attention_is_attention(benchmark, tokens):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 8) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(benchmark.padded_attention(q, k, v), expected)


def test_the_device_decodes_what_the_host_decodes(benchmark, tmp_path):
    jpeg = benchmark.example_jpeg()
    (tmp_path / "a.jpg").write_bytes(jpeg)
    expected, _ = Decoder((256, 256), "resize")(tmp_path / "a.jpg")
    found = benchmark.decode_on_device([torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)], 256)
    assert found.shape == (1, 3, 256, 256)
    assert (found[0].int() - torch.from_numpy(expected.copy()).int()).abs().float().mean() < 0.5


def test_a_part_that_is_ended_keeps_what_it_found(benchmark, capsys):
    clock = benchmark.Clock(100)
    clock.found["steps"] = {}
    clock.derive = lambda: {"measured": len(clock.found["steps"])}
    clock.measure(clock.found["steps"], "first", lambda: 1.0)
    clock.measure(clock.found["steps"], "second", lambda: 1 / 0)
    clock.end = 0
    clock.measure(clock.found["steps"], "third", lambda: 3.0)
    said = capsys.readouterr().out
    found = benchmark.last_report(said + '{"steps": {"first"')
    assert found == {"steps": {"first": 1.0, "second": found["steps"]["second"]}, "measured": 2}
    assert "ZeroDivisionError" in found["steps"]["second"]["failed"]
    assert clock.found["left_out"] == ["third"] and benchmark.last_report("") == {}
