"""Which backend runs a frozen network: the one asked for, or the fastest that agrees with PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import DependencyError
from .backends import (
    CONVERTED,
    Engine,
    OnnxRuntimeEngine,
    OpenVINOEngine,
    PyTorchEngine,
    disagreement,
    installed,
    to_openvino,
)
from .joint_classifier import JointClassifier
from .onnx_graph import to_onnx

Backend = Literal["auto", "pytorch", "compiled", "onnxruntime", "openvino"]
TOLERANCE = 1e-3  # largest difference of logits and probabilities between backends in fp32
# About what a conversion takes: a backend is looked for once eager passes have cost as much, so that
# neither a single image waits for it, nor many images go without it.
_LOOK_AFTER_S = 4.0
_CALLS = 5  # of each backend in a race


def create_engine(
    graph: JointClassifier, view_size: tuple[int, int], backend: str, device: torch.device
) -> Engine:
    """The backend of that name (one of `Backend`) for `graph`.

    Other backends than PyTorch's run on the CPU whatever `device` says. Raises DeitkitError for a name that
    is unknown, and for a backend that is not installed.
    """
    if backend not in get_args(Backend):
        raise DependencyError(
            f"there is no backend {backend!r}; choose one of {', '.join(get_args(Backend))}"
        )
    if backend == "openvino":
        return OpenVINOEngine(to_openvino(graph, view_size))
    if backend == "onnxruntime":
        return OnnxRuntimeEngine(to_onnx(graph, view_size, graph.output_names).SerializeToString())
    if backend == "auto" and device.type == "cpu":
        return FastestThatAgrees(graph, view_size)
    return PyTorchEngine(graph, device, compiled=backend == "compiled")


class FastestThatAgrees:
    """Starts with PyTorch at once, and changes to a faster backend when there is enough to do.

    After about four seconds of passes it converts the graph for OpenVINO, or where that is missing or
    disagrees for ONNX Runtime, and keeps whichever is faster on the batch at hand, if its outputs are
    within `TOLERANCE` of PyTorch's.
    """

    def __init__(self, graph: JointClassifier, view_size: tuple[int, int]):
        self.eager = PyTorchEngine(graph, torch.device("cpu"))
        self.graph, self.view_size = graph, view_size
        self.chosen: Engine = self.eager
        self.spent_s, self.looked = 0.0, False

    @property
    def name(self) -> str:
        return self.chosen.name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        if self.looked:
            return self.chosen(views)
        if self.spent_s >= _LOOK_AFTER_S:
            self.look(views)
        started = time.perf_counter()
        answer = self.chosen(views)
        self.spent_s += time.perf_counter() - started
        return answer

    def look(self, views: Tensor) -> None:
        """Settles on a backend now, for batches such as `views`."""
        self.looked = True
        self.chosen = self._fastest(views)

    def _fastest(self, views: Tensor) -> Engine:
        expected = self.eager(views)
        for backend in filter(installed, CONVERTED):
            try:
                engine = create_engine(self.graph, self.view_size, backend, self.eager.device)
                agrees = disagreement(engine(views), expected) <= TOLERANCE
            except Exception:  # a converter fails in ways of its own, and PyTorch is there
                continue
            if agrees:
                seconds = race((engine, self.eager), views)
                return min((engine, self.eager), key=lambda e: seconds[e.name])
        return self.eager


def race(engines: Sequence[Engine], views: Tensor) -> dict[str, float]:
    """Seconds of a pass on each backend, by name: the fastest of a few calls.

    They take turns, so that a machine's slow moment counts for all.
    """
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for _ in range(_CALLS):
        for engine in engines:
            started = time.perf_counter()
            engine(views)
            times[engine.name].append(time.perf_counter() - started)
    return {name: min(values) for name, values in times.items()}
