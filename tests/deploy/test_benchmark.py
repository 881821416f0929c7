"""The verb on a tiny run, end to end with two backends."""

from __future__ import annotations

import json

import pytest

from deitkit.cli import app
from deitkit.cli.bench import parse_batches
from deitkit.deploy.benchmark import bench
from deitkit.errors import DeitkitError
from deitkit.evaluation.side_by_side import Turns
from deitkit.evaluation.speed import Latency


@pytest.mark.parametrize("backends", ["pytorch", pytest.param("pytorch,openvino", marks=pytest.mark.slow)])
def test_rows_of_a_run(random_run, backends, capsys, monkeypatch):
    monkeypatch.setattr(
        "deitkit.deploy.benchmark.bench.__kwdefaults__", bench.__kwdefaults__ | {"rounds": 1, "seconds": 0.01}
    )
    options = ["--batch", "2,1", "--backends", backends, "--device", "cpu", "--json"]
    app(["bench", str(random_run), *options], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    sides = {(r["backend"], r["precision"]) for r in rows}
    expected = {("pytorch", "fp32")}
    if "openvino" in backends:
        expected |= {("openvino", "fp32"), ("openvino", "int8")}
    assert sides == expected
    assert [r["batch"] for r in rows] == sorted(r["batch"] for r in rows)
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert 0 <= row["top1"] <= 100 and row["memory_mb"] >= 0


def test_openvino_alone_needs_no_onnx(random_run, capsys, monkeypatch):
    monkeypatch.setattr("deitkit.deploy.benchmark.missing_for_onnx", lambda: "onnxscript")
    rows = bench(str(random_run), batches=[1], backends=["openvino"], device="cpu", rounds=1, seconds=0.01)
    [row] = rows
    assert (row.backend, row.precision) == ("openvino", "fp32") and 0 <= row.score <= 100
    assert 'onnxscript is not installed; pip install "deitkit[onnx]"' in capsys.readouterr().err


def test_what_was_found_before_every_side_died_is_kept(random_run, capsys, monkeypatch):
    row = Turns(Latency(12.5, 12.5, 12.5, 12.5, calls=1), memory_mb=12.5)

    def die(sides, batches, **_):
        return {(name, batches[0]): row for name in sides}, dict.fromkeys(sides, "out of memory")

    monkeypatch.setattr("deitkit.deploy.benchmark.take_turns", die)
    app(["bench", str(random_run), "--backends=pytorch", "--device=cpu"], standalone_mode=False)
    said = capsys.readouterr()
    assert "12.5" in said.out and "pytorch fp32 is left out from batch 32 on: out of memory" in said.err


def test_no_side_left(random_run, monkeypatch):
    monkeypatch.setattr(
        "deitkit.deploy.benchmark.take_turns",
        lambda sides, *_, **__: ({}, dict.fromkeys(sides, "no compiler here")),
    )
    with pytest.raises(DeitkitError, match="pytorch fp32: no compiler here"):
        bench(str(random_run), backends=["pytorch"], device="cpu")


def test_batches_are_read_and_refused():
    assert parse_batches("32, 1,1") == [1, 32]
    for wrong in ("", "0", "a", "1,-2"):
        with pytest.raises(DeitkitError, match="not a list of batch sizes"):
            parse_batches(wrong)


@pytest.mark.parametrize(
    ("target", "options", "sentence"),
    [
        ("nanno", {}, "there is no run nanno"),
        ("nano", {"backends": ["tensorrt"]}, "no backend 'tensorrt'"),
        ("nano", {"device": "cuda"}, "no cuda device"),
    ],
)
def test_mistakes_are_refused(target, options, sentence, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(DeitkitError, match=sentence):
        bench(target, **options)
