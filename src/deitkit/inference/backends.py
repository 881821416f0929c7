"""The backends that run a frozen network, in one registry: `BACKENDS`.

A backend takes views (B, 3, H, W), float in [0, 1], and returns the network's outputs. To add one, write a
class with `name` and `__call__`, register it in `BACKENDS`, and add its name to `config.BackendName`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DependencyError
from .onnx_graph import to_onnx


class Backend(Protocol):
    """Runs a frozen network on views (B, 3, H, W), float, on the CPU or on the backend's own device."""

    @property
    def name(self) -> str: ...

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class FrozenNetwork:
    """What a backend is built from.

    network: views (B, 3, *view_size) -> a tuple of tensors. device, precision, channels_last: how PyTorch
    runs it; a converted graph runs on the CPU in float32. output_names: names in the ONNX graph, None to let
    the exporter name them.
    """

    network: nn.Module
    view_size: tuple[int, int]
    device: torch.device
    precision: torch.dtype = torch.float32
    channels_last: bool = False
    output_names: tuple[str, ...] | None = None


class PyTorchBackend:
    """Eager PyTorch on any device, or compiled by TorchInductor during the first call of each batch size."""

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
        self.network: Callable[[Tensor], tuple[Tensor, ...]]
        network = network.to(device).eval()
        if channels_last:  # faster convolutions
            network = network.to(memory_format=torch.channels_last)
        # Static shapes are faster; each batch size is compiled once.
        self.network = torch.compile(network, dynamic=False) if compiled else network
        self.device, self.precision = device, precision

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        mixed = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=mixed):
            outputs = self.network(views.to(self.device, memory_format=self.format))
            return tuple(out.float() for out in outputs)


class OnnxRuntimeBackend:
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
        outputs = self.session.run(None, {self.input: np.ascontiguousarray(views.numpy())})
        return tuple(torch.from_numpy(out) for out in outputs)


def import_openvino() -> Any:
    """The package openvino, imported without its telemetry. Raises DependencyError if it is not installed.

    Its converter sends each import and conversion to a web analytics service, and has no switch for one
    process. Without the package openvino_telemetry it falls back to functions that do nothing.
    """
    require("openvino")
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
        import openvino.tools.ovc
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return openvino


class OpenVINOBackend:
    """OpenVINO on the CPU; `model` comes from `to_openvino`, or is the path of an ONNX or IR file."""

    name = "openvino"

    def __init__(self, model: Any):
        openvino = import_openvino()
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        source = os.fspath(model) if isinstance(model, Path) else model
        self.compiled = openvino.Core().compile_model(source, "CPU", options)

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        outputs = self.compiled(np.ascontiguousarray(views.numpy()))
        # Copied, because the next call overwrites OpenVINO's buffers.
        return tuple(torch.from_numpy(np.array(outputs[i])) for i in range(len(outputs)))


def to_openvino(network: nn.Module, view_size: tuple[int, int], batch: int | None = None) -> Any:
    """An openvino.Model of `network` for views (B, 3, *view_size); B is `batch`, any number if None."""
    openvino = import_openvino()
    # A batch of two: tracing would fold a batch of one into the graph as a constant.
    example = torch.zeros(2, 3, *view_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that the input size is constant, as intended
        # Whoever converts compares outputs, so that the tracer need not run the network twice more for that.
        traced = torch.jit.trace(network.cpu().eval(), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    model.reshape([batch or -1, 3, *view_size])
    return model


def write_openvino(network: nn.Module, view_size: tuple[int, int], file: Path) -> None:
    """Writes `network` in OpenVINO's format: the .xml file `file` and a .bin file beside it."""
    model = to_openvino(network, view_size)
    import_openvino().save_model(model, os.fspath(file), compress_to_fp16=False)


def _pytorch(frozen: FrozenNetwork, *, compiled: bool = False) -> Backend:
    return PyTorchBackend(
        frozen.network,
        frozen.device,
        precision=frozen.precision,
        compiled=compiled,
        channels_last=frozen.channels_last,
    )


def _onnxruntime(frozen: FrozenNetwork) -> Backend:
    graph = to_onnx(frozen.network, frozen.view_size, frozen.output_names)
    return OnnxRuntimeBackend(graph.SerializeToString())


def _openvino(frozen: FrozenNetwork) -> Backend:
    return OpenVINOBackend(to_openvino(frozen.network, frozen.view_size))


@dataclass(frozen=True)
class BackendKind:
    """An entry of `BACKENDS`.

    build: makes the backend. open_file: runs a graph that was written to a file, for backends of converted
    graphs; these run on the CPU only. package: what it imports. extra: of deitkit, which installs that.
    """

    build: Callable[[FrozenNetwork], Backend]
    open_file: Callable[[Path], Backend] | None = None
    package: str | None = None
    extra: str | None = None


# Converted graphs are tried in this order.
BACKENDS: Mapping[str, BackendKind] = {
    "pytorch": BackendKind(_pytorch),
    "compiled": BackendKind(partial(_pytorch, compiled=True)),
    "openvino": BackendKind(_openvino, OpenVINOBackend, "openvino", "cpu"),
    "onnxruntime": BackendKind(_onnxruntime, OnnxRuntimeBackend, "onnxruntime", "onnx"),
}
# Backends that run a converted graph on the CPU, in the order in which they are tried.
CONVERTED = tuple(name for name, kind in BACKENDS.items() if kind.open_file is not None)


def installed(name: str) -> bool:
    """Whether the package behind a backend is installed; True for a name that needs none."""
    package = BACKENDS[name].package if name in BACKENDS else None
    return package is None or importlib.util.find_spec(package) is not None


def require(name: str) -> None:
    """Raises DependencyError if the package behind a backend is missing."""
    if not installed(name):
        raise DependencyError(
            f'{name} is not installed; install it with: pip install "deitkit[{BACKENDS[name].extra}]"'
        )


def open_file(name: str, file: Path) -> Backend:
    """The backend `name`, one of CONVERTED, on a graph file."""
    opened = BACKENDS[name].open_file
    assert opened is not None, f"{name} runs no files"
    return opened(file)


def builders(frozen: FrozenNetwork) -> dict[str, Callable[[], Backend]]:
    """A function that builds each backend for `frozen`, by name; PyTorch, the reference, comes first."""
    return {name: partial(kind.build, frozen) for name, kind in BACKENDS.items()}
