"""Which backend a loaded run takes."""

from __future__ import annotations

import sys

import pytest
import torch

from deitkit.classifier import load
from deitkit.errors import DeitkitError
from deitkit.inference import selection as choose
from deitkit.inference.backends import disagreement
from deitkit.inference.selection import FastestThatAgrees


class Recorded:
    """An backend that answers as asked, and is never slower than PyTorch."""

    name = "recorded"

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, views):
        return self.answer


@pytest.fixture
def engine(random_run) -> FastestThatAgrees:
    engine = load(random_run, device="cpu").engine
    assert isinstance(engine, FastestThatAgrees)
    return engine


def test_a_few_pictures_convert_nothing(engine, monkeypatch):
    monkeypatch.setattr(choose, "create_engine", lambda *a: pytest.fail("converted"))
    engine(torch.rand(1, 3, 16, 24))
    assert engine.name == "pytorch"


def test_much_work_takes_a_faster_engine_that_agrees(engine, monkeypatch):
    views = torch.rand(2, 3, 16, 24)
    expected = engine(views)
    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(choose, "installed", lambda name: True)
    monkeypatch.setattr(choose, "create_engine", lambda *a: Recorded(expected))
    assert engine(views) is expected and engine.name == "recorded"


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_an_engine_that_disagrees_is_not_taken(engine, monkeypatch, wrong):
    views = torch.rand(2, 3, 16, 24)
    expected = engine(views)
    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(choose, "installed", lambda name: True)
    monkeypatch.setattr(choose, "create_engine", lambda *a: Recorded(tuple(t + wrong for t in expected)))
    torch.testing.assert_close(engine(views), expected)
    assert engine.name == "pytorch"


@pytest.mark.parametrize("place", [0, 1])
def test_no_number_in_any_output_is_infinitely_far(place):
    outputs = [torch.zeros(2), torch.zeros(2)]
    outputs[place] = torch.tensor([0.0, float("nan")])
    assert disagreement((torch.zeros(2), torch.zeros(2)), tuple(outputs)) == float("inf")


def test_a_converter_that_fails_leaves_pytorch(engine, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(choose, "create_engine", fail)
    engine(torch.rand(2, 3, 16, 24))
    assert engine.name == "pytorch" and engine.looked


def test_openvino_by_name_agrees(random_run):
    pytest.importorskip("openvino")
    pixels = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    fast, eager = (
        load(random_run, device="cpu", backend=name).forward(pixels) for name in ("openvino", "pytorch")
    )
    torch.testing.assert_close(fast.class_logits, eager.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fast.distill_logits, eager.distill_logits, atol=1e-4, rtol=1e-4)


def test_unknown_and_missing_backends_are_refused(random_run, monkeypatch):
    with pytest.raises(DeitkitError, match=r"no backend 'tensorrt'.*onnxruntime"):
        load(random_run, device="cpu", backend="tensorrt")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("deitkit.inference.backends.installed", lambda name: False)
    with pytest.raises(DeitkitError, match=r"openvino is not installed.*deitkit\[cpu\]"):
        load(random_run, device="cpu", backend="openvino")
