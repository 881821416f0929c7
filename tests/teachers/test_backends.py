"""One teacher, several backends: the same answers, the one asked for, and never one that disagrees."""

from __future__ import annotations

import pytest
import torch

from deitkit import DeitkitError
from deitkit.inference import selection
from deitkit.preprocessing import InputSize
from deitkit.teachers.pretrained import backend_builders, choose_backend
from deitkit.teachers.spec import open_member, parse

from .models import onnx_file, timm_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    [member] = parse(timm_file(tmp_path_factory.mktemp("w")))
    return open_member(member, InputSize(32))


@pytest.fixture(scope="module")
def candidates(model):
    return backend_builders(model, model.preprocessing, CPU)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_backends_agree(candidates, name):
    pytest.importorskip(name)
    images = torch.rand(5, 3, 32, 32)
    expected, found = candidates["pytorch"]()(images), candidates[name]()(images)
    assert len(expected) == len(found) == 3
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


class Fixed:
    """Fast or slow, right or wrong."""

    def __init__(self, name: str, value: float = 1.0):
        self.name, self.value = name, value

    def __call__(self, views):
        return (torch.full((len(views), 2), self.value),)


def candidates_of(*backends: Fixed):
    return {backend.name: lambda backend=backend: backend for backend in backends}


@pytest.fixture
def speeds(monkeypatch):
    """Seconds of a pass, by backend."""
    table = {"pytorch": 2.0, "openvino": 1.0, "onnxruntime": 0.5}
    monkeypatch.setattr(selection, "race", lambda backends, views: {b.name: table[b.name] for b in backends})
    monkeypatch.setattr(selection, "installed", lambda name: True)
    monkeypatch.setattr("deitkit.inference.backends.installed", lambda name: True)
    return table


def chosen(model, candidates, wanted="auto"):
    return choose_backend(candidates, model.preprocessing, CPU, wanted).name


def test_the_faster_one_is_chosen_and_said(model, speeds, capsys):
    candidates = candidates_of(Fixed("pytorch"), Fixed("openvino"))
    assert chosen(model, candidates) == "openvino"
    assert "pytorch 4 images/s, openvino 8 images/s" in capsys.readouterr().err
    speeds["openvino"] = 2.5  # no clear difference: chance must not decide
    assert chosen(model, candidates) == "openvino"
    speeds["openvino"] = 4.0
    assert chosen(model, candidates) == "pytorch"


def test_one_that_disagrees_is_passed_over(model, speeds, capsys):
    candidates = candidates_of(Fixed("pytorch"), Fixed("openvino", 2.0), Fixed("onnxruntime"))
    assert chosen(model, candidates) == "onnxruntime"
    assert "openvino disagrees with pytorch" in capsys.readouterr().err
    assert chosen(model, candidates_of(Fixed("pytorch"), Fixed("openvino", float("nan")))) == "pytorch"
    with pytest.raises(DeitkitError, match="openvino disagrees with pytorch"):
        chosen(model, candidates, "openvino")


def test_one_that_fails_is_passed_over(model, speeds, capsys):
    def fails():
        raise RuntimeError("no such operation")

    candidates = candidates_of(Fixed("pytorch"), Fixed("onnxruntime")) | {"openvino": fails}
    assert chosen(model, candidates) == "onnxruntime"
    assert "does not run with openvino (RuntimeError)" in capsys.readouterr().err
    with pytest.raises(DeitkitError, match="cannot be run with openvino"):
        chosen(model, candidates, "openvino")


def test_one_that_cannot_run_here_is_refused(model, monkeypatch):
    candidates = candidates_of(Fixed("python"))
    with pytest.raises(DeitkitError, match="cannot run with compiled; choose one of auto, python"):
        chosen(model, candidates, "compiled")
    assert chosen(model, candidates, "pytorch") == "python"
    monkeypatch.setattr("deitkit.inference.backends.installed", lambda name: False)
    with pytest.raises(DeitkitError, match="openvino is not installed"):
        chosen(model, candidates_of(Fixed("pytorch"), Fixed("openvino")), "openvino")


def test_a_gpu_keeps_pytorch(model, speeds):
    candidates = candidates_of(Fixed("pytorch"), Fixed("openvino"))
    assert choose_backend(candidates, model.preprocessing, torch.device("meta"), "auto").name == "pytorch"


def test_an_onnx_file_runs_in_both_runtimes(tmp_path):
    pytest.importorskip("openvino")
    [member] = parse(f"onnx:{onnx_file(tmp_path / 'a.onnx', softmax=True)}")
    model = open_member(member, InputSize())
    candidates = backend_builders(model, model.preprocessing, CPU)
    images = torch.rand(4, 3, 32, 32)
    a, b = (candidates[name]()(images)[0] for name in ("onnxruntime", "openvino"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_agrees(model, candidates):
    assert chosen(model, candidates, "compiled") == "compiled"


@pytest.mark.gpu
def test_a_gpu_runs_in_bfloat16_and_agrees(model):
    device = torch.device("cuda")
    view = model.preprocessing
    backend = choose_backend(backend_builders(model, view, device), view, device, "auto")
    images = torch.rand(4, 3, 32, 32)
    expected = backend_builders(model, model.preprocessing, CPU)["pytorch"]()(images)
    for a, b in zip(expected, backend(images.to(device)), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=0.05, atol=0.05 * float(a.abs().max()))
