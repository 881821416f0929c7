"""Runs a frozen teacher fast: a frozen model is a pure inference graph.

Both backends take (B, 3, H, W) float views in [0, 1] and give (logits (B, K), two maps).
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .backbone import Backbone

Answer = tuple[Tensor, tuple[Tensor, ...]]


class Network(nn.Module):
    """A backbone with the head of the user's classes: views -> logits and maps."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, *maps = self.backbone(views)
        return self.head(pooled), *maps


class Backend(Protocol):
    """Anything that answers a batch of views."""

    name: str

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]: ...


class PyTorchBackend:
    """Channels-last eager inference on the device; bfloat16 on a GPU."""

    name = "pytorch"

    def __init__(self, network: nn.Module, device: torch.device):
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.device = device

    @torch.inference_mode()
    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        views = views.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return tuple(out.float() for out in self.network(views))


class OpenVINOBackend:
    """OpenVINO on the CPU: for small convnets several times as fast as eager PyTorch.

    A graph is of one size of views; it is made for each size when the first such views come.
    """

    name = "openvino"

    def __init__(self, network: nn.Module, view_size: tuple[int, int]):
        self.network = network
        self.compiled = {view_size: self._compile(view_size)}

    def _compile(self, view_size: tuple[int, int]) -> Any:
        import openvino

        # batch of two: a batch of one would be folded into the graph as a constant
        example = torch.zeros(2, 3, *view_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of the constant input size, which is meant
            model = openvino.convert_model(self.network.cpu().eval(), example_input=example)
        model.reshape([-1, 3, *view_size])
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # no more than PyTorch was given
        }
        return openvino.Core().compile_model(model, "CPU", options)

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        size = (views.shape[-2], views.shape[-1])
        if size not in self.compiled:
            self.compiled[size] = self._compile(size)
        answer = self.compiled[size](np.ascontiguousarray(views.numpy()))
        # Copied: OpenVINO's buffers are overwritten by the next call.
        return tuple(torch.from_numpy(np.array(answer[i])) for i in range(len(answer)))


def choose_backend(
    network: nn.Module, view_size: tuple[int, int], device: torch.device, wanted: str
) -> Backend:
    """The wanted backend; `auto` takes OpenVINO on a CPU where it is installed and agrees with PyTorch."""
    eager = PyTorchBackend(network, device)
    installed = importlib.util.find_spec("openvino") is not None
    if wanted == "pytorch" or device.type != "cpu" or not installed:
        return eager
    fast = OpenVINOBackend(network, view_size)
    views = torch.rand(2, 3, *view_size, generator=torch.Generator().manual_seed(0))
    for a, b in zip(eager(views), fast(views), strict=True):
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(a.abs().max())):
            return eager
    return fast
