"""What runs a frozen network. Each backend takes views (B, 3, H, W) and gives the network's outputs."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DependencyError

_EXTRA_OF = {"openvino": "cpu", "onnxruntime": "onnx"}  # of deitkit, which installs the backend
# Backends that run a converted graph on the CPU, in the order in which they are tried.
CONVERTED = tuple(_EXTRA_OF)


class Engine(Protocol):
    """Anything that answers a batch of views (B, 3, H, W), float, on the CPU or its own device."""

    @property
    def name(self) -> str: ...

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]: ...


def installed(engine: str) -> bool:
    """Whether the package behind a backend is there; PyTorch always is."""
    return engine not in CONVERTED or importlib.util.find_spec(engine) is not None


def require(engine: str) -> None:
    """Raises DeitkitError where the package behind a backend is missing."""
    if not installed(engine):
        raise DependencyError(
            f'{engine} is not installed; install it with: pip install "deitkit[{_EXTRA_OF[engine]}]"'
        )


class PyTorchEngine:
    """Eager PyTorch on any device, or compiled by TorchInductor, which the first calls wait for."""

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        *,
        precision: torch.dtype = torch.float32,
        compiled: bool = False,
        channels_last: bool = False,
    ):
        self.name = "compiled" if compiled else "pytorch"
        self.format = torch.channels_last if channels_last else torch.preserve_format
        self.network: Any = network.to(device).eval()
        if channels_last:  # convolutions are faster so
            self.network = self.network.to(memory_format=torch.channels_last)
        if compiled:
            self.network = torch.compile(self.network, dynamic=False)  # faster, compiled once a batch size
        self.device, self.precision = device, precision

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        mixed = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=mixed):
            return tuple(
                out.float() for out in self.network(views.to(self.device, memory_format=self.format))
            )


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU; `model` is an ONNX file or its bytes."""

    name = "onnxruntime"

    def __init__(self, model: Path | bytes):
        require(self.name)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # no more than PyTorch was given
        options.log_severity_level = 3
        source = model if isinstance(model, bytes) else os.fspath(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        answer = self.session.run(None, {self.input: np.ascontiguousarray(views.numpy())})
        return tuple(torch.from_numpy(out) for out in answer)


class OpenVINOEngine:
    """OpenVINO on the CPU; `model` comes from `to_openvino`, or is the path of an ONNX or IR file."""

    name = "openvino"

    def __init__(self, model: Any):
        require(self.name)
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        source = os.fspath(model) if isinstance(model, Path) else model
        self.compiled = openvino.Core().compile_model(source, "CPU", options)

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        answer = self.compiled(np.ascontiguousarray(views.numpy()))
        # Copied: OpenVINO's buffers are overwritten by the next call.
        return tuple(torch.from_numpy(np.array(answer[i])) for i in range(len(answer)))


def to_openvino(network: nn.Module, view_size: tuple[int, int]) -> Any:
    """An openvino.Model of `network` for views (B, 3, *view_size) of any B."""
    require("openvino")
    import openvino

    # A batch of two: a batch of one would be folded into the graph as a constant.
    example = torch.zeros(2, 3, *view_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of the constant input size, which is meant
        model = openvino.convert_model(network.cpu().eval(), example_input=example)
    model.reshape([-1, 3, *view_size])
    return model


def write_openvino(network: nn.Module, view_size: tuple[int, int], file: Path) -> None:
    """Writes what `to_openvino` gives as OpenVINO's own format, an .xml file with a .bin beside it."""
    model = to_openvino(network, view_size)
    import openvino

    openvino.save_model(model, os.fspath(file), compress_to_fp16=False)


def disagreement(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> float:
    """The largest difference between two backends' outputs; infinite where one is no number."""
    differences = [float((x.cpu() - y.cpu()).abs().max()) for x, y in zip(a, b, strict=True)]
    # Each is looked at: max() passes over a NaN that is not the first.
    return math.inf if any(map(math.isnan, differences)) else max(differences)
