"""Which backend a loaded run takes."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
import torch

from deitkit.classifier import load
from deitkit.config import BackendName
from deitkit.errors import DeitkitError
from deitkit.inference import selection as choose
from deitkit.inference.backends import BACKENDS, CONVERTED
from deitkit.inference.selection import AutoBackend, Tolerance, agrees


class Recorded:
    """Returns what it was given, and is never slower than PyTorch."""

    name = "recorded"

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, views):
        return self.answer


@pytest.fixture
def backend(random_run) -> AutoBackend:
    backend = load(random_run, device="cpu").backend
    assert isinstance(backend, AutoBackend)
    return backend


def with_conversions(backend: AutoBackend, build) -> None:
    """Every converted graph comes from `build`."""
    backend.candidates = {**backend.candidates, **dict.fromkeys(CONVERTED, build)}


def test_the_names_are_those_of_the_registry():
    assert set(get_args(BackendName)) == {"auto", *BACKENDS}


def test_a_few_images_convert_nothing(backend):
    with_conversions(backend, lambda: pytest.fail("converted"))
    backend(torch.rand(1, 3, 16, 24))
    assert backend.name == "pytorch"


def test_much_work_takes_a_faster_backend_that_agrees(backend, monkeypatch):
    views = torch.rand(2, 3, 16, 24)
    expected = backend(views)
    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(choose, "installed", lambda name: True)
    with_conversions(backend, lambda: Recorded(expected))
    assert backend(views) is expected and backend.name == "recorded"


@pytest.mark.parametrize("wrong", [0.1, float("nan")])
def test_a_backend_that_disagrees_is_not_taken(backend, monkeypatch, wrong):
    views = torch.rand(2, 3, 16, 24)
    expected = backend(views)
    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    monkeypatch.setattr(choose, "installed", lambda name: True)
    with_conversions(backend, lambda: Recorded(tuple(t + wrong for t in expected)))
    torch.testing.assert_close(backend(views), expected)
    assert backend.name == "pytorch"


@pytest.mark.parametrize("place", [0, 1])
def test_nan_in_any_output_never_agrees(place):
    outputs = [torch.zeros(2), torch.zeros(2)]
    outputs[place] = torch.tensor([0.0, float("nan")])
    anything = Tolerance(absolute=float("inf"))
    assert not agrees((torch.zeros(2), torch.zeros(2)), tuple(outputs), anything)
    assert not agrees((torch.zeros(2),), (torch.zeros(2), torch.zeros(2)), anything)


def test_tolerances_are_absolute_or_relative_to_the_largest_value():
    a, b = (torch.tensor([0.0, 100.0]),), (torch.tensor([0.9, 100.0]),)
    assert agrees(a, b, Tolerance(absolute=1.0)) and agrees(a, b, Tolerance(relative=1e-2))
    assert not agrees(a, b, Tolerance(absolute=0.5)) and not agrees(a, b, Tolerance(relative=5e-3))


def test_a_converter_that_fails_leaves_pytorch(backend, monkeypatch):
    def fail():
        raise RuntimeError("no such operation")

    monkeypatch.setattr(choose, "_LOOK_AFTER_S", 0.0)
    with_conversions(backend, fail)
    backend(torch.rand(2, 3, 16, 24))
    assert backend.name == "pytorch" and backend.looked


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
